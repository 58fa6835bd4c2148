"""The file of samples: whatever is interrupted, cut or split over processes, it ends as if nothing had been."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.cli.process import Process
from diffusion_mlm.cli.sample_file import Key, SampleFile
from diffusion_mlm.errors import OutputDirectoryError

EXPECTED: dict[Key, tuple[str, int]] = {
    (index, number): (f"prefix {index}", 7 + number) for index in (0, 2, 3) for number in range(2)
}
BATCHES: list[list[Key]] = [[(2, 0), (2, 1)], [(3, 1), (0, 0)], [(0, 1), (3, 0)]]
SETTINGS: dict[str, Any] = {"seed": 7, "steps": None, "words": ("a", "b"), "checkpoint": "0" * 32}


def line_of(key: Key) -> str:
    prefix, seed = EXPECTED[key]
    sample = {"prefix_index": key[0], "sample_index": key[1], "prefix": prefix, "text": "é\n" * 9, "seed": seed}
    return json.dumps(sample)


WHOLE = "".join(f"{line_of(key)}\n" for key in EXPECTED).encode()


def work(path: Path, process: Process, at_most: int = 99) -> SampleFile:
    """What a process does that makes its share, or dies after `at_most` batches of it."""
    file = SampleFile(str(path), process)
    file.claim(SETTINGS, any_seed=False, overwrite=False)
    there = file.find(EXPECTED)
    share = BATCHES[process.rank :: process.num_processes]
    for batch in [batch for batch in share if not set(batch) <= there][:at_most]:
        file.append([line_of(key) for key in batch])
    file.close()
    return file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


interruptions = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=3),  # batches that each of the processes makes
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 999)), max_size=2),  # which file is cut where
        st.sampled_from(
            [b"", b"\n", b"\0\0\0\0", b'{"prefix_index": 0', b'{"prefix_index": [], "sample_index": 0}\n']
        ),
    ),
    max_size=4,
)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(interruptions, st.integers(1, 4))
def test_any_interruptions_end_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[Any], num_processes: int
) -> None:
    path = tmp_path_factory.mktemp("samples") / "out.jsonl"
    for made, cuts, garbage in rounds:
        for rank, at_most in enumerate(made):
            work(path, Process(rank, len(made)), at_most)
        for which, where in cuts:
            data = [file for file in sorted(path.parent.iterdir()) if "state" not in file.name]
            if data:
                content = data[which % len(data)].read_bytes()
                data[which % len(data)].write_bytes(content[: where % (len(content) + 1)] + garbage)
    missing = [work(path, Process(rank, num_processes)).assemble(EXPECTED) for rank in reversed(range(num_processes))]
    assert missing[-1] == 0 and path.read_bytes() == WHOLE
    assert names(path.parent) == ["out.jsonl", "out.jsonl.state.json"]


@pytest.mark.parametrize("end", range(0, len(WHOLE) + 1, 37))
def test_a_file_cut_anywhere_is_completed(tmp_path: Path, end: int) -> None:
    path = tmp_path / "out.jsonl"
    work(path, Process()).assemble(EXPECTED)
    path.write_bytes(path.read_bytes()[:end])
    assert work(path, Process()).assemble(EXPECTED) == 0
    assert path.read_bytes() == WHOLE and len(names(tmp_path)) == 2


def test_the_last_process_puts_the_file_together_and_nobody_waits(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "out.jsonl"
    assert work(path, Process(2, 3)).assemble(EXPECTED) == 4
    assert work(path, Process(0, 3)).assemble(EXPECTED) == 2
    assert not path.exists()
    assert work(path, Process(1, 3)).assemble(EXPECTED) == 0
    assert path.read_bytes() == WHOLE
    before = path.stat().st_mtime_ns
    assert work(path, Process(3, 4)).assemble(EXPECTED) == 0  # comes late, and finds all done
    assert path.stat().st_mtime_ns == before


def test_lines_of_another_prefix_or_seed_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    work(path, Process()).assemble(EXPECTED)
    others = {key: (prefix, seed + (key == (2, 1))) for key, (prefix, seed) in EXPECTED.items()}
    assert SampleFile(str(path), Process()).find(others) == EXPECTED.keys() - {(2, 1)}


# Whose file it is


def test_samples_of_other_settings_are_refused_and_what_differs_is_said(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    work(path, Process(), at_most=1)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    file = SampleFile(str(path), Process())
    with pytest.raises(ValueError, match="`seed` was 7, now 8; .*--overwrite-output") as raised:
        file.claim({**SETTINGS, "seed": 8, "checkpoint": "1" * 32}, any_seed=False, overwrite=False)
    assert "other `checkpoint`" in str(raised.value) and "0000" not in str(raised.value)
    assert before == {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}


def test_overwriting_replaces_other_samples_and_keeps_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    work(path, Process(), at_most=1)
    file = SampleFile(str(path), Process())
    file.claim(SETTINGS, any_seed=False, overwrite=True)
    assert len(file.find(EXPECTED)) == 2
    work(path, Process()).assemble(EXPECTED)
    work(path, Process(0, 2))
    file.claim({**SETTINGS, "steps": 3}, any_seed=False, overwrite=True)
    assert file.find(EXPECTED) == set() and names(tmp_path) == ["out.jsonl.state.json"]


def test_a_foreign_file_is_replaced_when_asked_only(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    file = SampleFile(str(path), Process())
    with pytest.raises(ValueError, match="was not written by this command"):
        file.require_usable(overwrite=False)
    with pytest.raises(ValueError, match="nothing says what they are"):
        file.claim(SETTINGS, any_seed=False, overwrite=False)
    assert path.read_text() == "mine"
    file.require_usable(overwrite=True)
    file.claim(SETTINGS, any_seed=False, overwrite=True)
    assert names(tmp_path) == ["out.jsonl.state.json"]


def test_processes_agree_on_the_seed_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    seeds = [
        SampleFile(str(path), Process(rank, 3)).claim({**SETTINGS, "seed": seed}, any_seed=True, overwrite=False)
        for rank, seed in ((2, 5), (0, 6), (1, 7))
    ]
    assert seeds == [5, 5, 5]


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    assert work(tmp_path / "out.jsonl", Process()).assemble(EXPECTED) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == WHOLE and len(names(tmp_path)) == 2


def test_the_others_wait_until_process_0_has_put_foreign_samples_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    claim: dict[str, Any] = {"any_seed": False, "overwrite": True}
    seeds: list[int] = []
    waiting = threading.Thread(
        target=lambda: seeds.append(SampleFile(str(path), Process(1, 2)).claim(SETTINGS, **claim))
    )
    waiting.start()
    SampleFile(str(path), Process(0, 2)).claim(SETTINGS, **claim)
    waiting.join(timeout=30)
    assert seeds == [7] and not path.exists()
    monkeypatch.setattr("diffusion_mlm.cli.sample_file._SECONDS_TO_WAIT", 0.0)
    with pytest.raises(TimeoutError, match="process 0 has not replaced them"):
        SampleFile(str(path), Process(1, 2)).claim({**SETTINGS, "steps": 3}, **claim)


def test_a_part_that_another_run_writes_is_left_alone(tmp_path: Path) -> None:
    """The lock is of a process, and goes with it."""
    path = tmp_path / "out.jsonl"
    work(path, Process(), at_most=1)
    (part,) = tmp_path.glob("*part*")
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(part)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        for process in (Process(), Process(0, 2)):
            with pytest.raises(OutputDirectoryError, match="another run is writing"):
                work(path, process)
        with pytest.raises(OutputDirectoryError, match="another run is writing"):
            SampleFile(str(path), Process()).claim({**SETTINGS, "steps": 3}, any_seed=False, overwrite=True)
        holder.kill()
    assert work(path, Process()).assemble(EXPECTED) == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seed": "x"}', "\0"])
def test_damaged_state_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.jsonl.state.json").write_text(content)
    with pytest.raises(ValueError, match="out.jsonl.state.json is damaged: remove it"):
        work(tmp_path / "out.jsonl", Process())


@pytest.mark.parametrize("name", ["", ".", "..", "nul\0", "/", "a-directory", "a-file/out.jsonl"])
def test_name_that_no_file_can_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-directory").mkdir()
    (tmp_path / "a-file").write_text("mine")
    with pytest.raises(ValueError, match="`--output-file` is"):
        SampleFile(name, Process()).require_usable(overwrite=True)


# The processes


def test_process_is_what_launchers_say() -> None:
    assert Process.of_environment({}) == Process.of_environment({"WORLD_SIZE": "4"}) == Process(0, 1, 0)
    assert Process.of_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Process(5, 8, 1)
    for wrong in (
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": "2"},
    ):
        with pytest.raises(ValueError, match="RANK"):
            Process.of_environment(wrong)
    assert "RANK" not in os.environ, "the tests are one process each"
