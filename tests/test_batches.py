"""`generate` with many prefixes: the order of the file, however it is batched, split, killed and started again."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaForMaskedLM

from diffusion_mlm.cli import main
from diffusion_mlm.cli.batches import make_jobs, plan_batches
from diffusion_mlm.cli.prefixes import given_prefixes
from diffusion_mlm.generation import generate, load_generator
from diffusion_mlm.generation_config import DiffusionGenerationConfig

ROOT = Path(__file__).parents[1]
PREFIXES = ["Once upon a time", "The", "  One day, a fox ", "The", "One", "A kind girl named Mia had a small"]

# Runs `generate` in this process; returns exit status, standard output and standard error.
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str
) -> Command:
    """The command in a directory with the prefixes in prefixes.txt."""
    monkeypatch.chdir(tmp_path)
    Path("prefixes.txt").write_text("".join(f"{prefix}\n" for prefix in PREFIXES))

    def run_here(*argv: object, rank: int | None = None, of: int = 1) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if rank is not None:
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(of))
            status = main(["generate", "--checkpoint", checkpoint, *map(str, argv)])
        return (status, *capsys.readouterr())

    return run_here


def assert_one_sentence(err: str, *words: str) -> None:
    (message,) = [line for line in err.splitlines() if line.startswith("diffusion-mlm: ")]
    assert "Traceback" not in err and err.endswith(message + "\n")
    for word in words:
        assert word in message, message


ASKED = ("--prefixes-file", "prefixes.txt", "--num-samples", 3, "--batch-size", 4, "--seed", 5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> bytes:
    """What an undisturbed run of ASKED writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reference"))
        Path("prefixes.txt").write_text("".join(f"{prefix}\n" for prefix in PREFIXES))
        assert main(["generate", "--checkpoint", checkpoint, *map(str, ASKED), "--output-file", "out.jsonl"]) == 0
        return Path("out.jsonl").read_bytes()


# The plan


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(st.lists(st.integers(1, 40), max_size=300), st.integers(1, 9))
def test_batches_hold_every_sample_once_and_rows_of_similar_length(lengths: list[int], batch_size: int) -> None:
    batches = plan_batches(lengths, batch_size)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    sizes = [len(batch) for batch in batches]
    assert all(1 <= size <= batch_size for size in sizes)
    for start in range(0, len(batches), 32):
        together = batches[start : start + 32]
        assert max(map(len, together)) - min(map(len, together)) <= 1
        in_order = [lengths[place] for batch in together for place in batch]
        assert in_order == sorted(in_order, reverse=True)


def test_samples_are_those_of_generate(run: Command, checkpoint: str, reference: bytes) -> None:
    """Also the prefix that comes twice: it goes on with the seeds that are not used yet."""
    model, tokenizer = load_generator(checkpoint)
    output = generate(model, tokenizer, PREFIXES, seed=5, num_return_sequences=3, max_new_tokens=5)
    lines = [json.loads(line) for line in reference.splitlines()]
    assert [(line.pop("prefix_index"), line.pop("sample_index")) for line in lines] == [
        (index, number) for index in range(len(PREFIXES)) for number in range(3)
    ]
    assert lines == [vars(sample) for sample in output.samples]
    config = DiffusionGenerationConfig(num_return_sequences=3)
    jobs = make_jobs(model, tokenizer, given_prefixes(PREFIXES), config, seed=2**32 - 1)
    assert [job.text.seed for job in jobs[3:6]] == [2**32 - 1, 0, 1]
    assert [job.text.seed for job in jobs[9:12]] == [2, 3, 4]


# Into a file


def test_a_finished_file_is_left_as_it_is(run: Command, reference: bytes) -> None:
    status, out, err = run(*ASKED, "--output-file", "out.jsonl")
    assert (status, out) == (0, "")
    assert "18 samples of 6 prefixes are in out.jsonl" in err
    assert Path("out.jsonl").read_bytes() == reference
    assert sorted(path.name for path in Path().iterdir()) == ["out.jsonl", "out.jsonl.state.json", "prefixes.txt"]
    before = Path("out.jsonl").stat().st_mtime_ns
    assert run(*ASKED, "--output-file", "out.jsonl", "--overwrite-output")[0] == 0
    assert Path("out.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("end", (0, 1, 200, "line - 1", "line", "line + 1", -100, -1))
def test_a_file_cut_anywhere_is_completed_byte_for_byte(run: Command, reference: bytes, end: int | str) -> None:
    line = len(b"".join(reference.splitlines(keepends=True)[:7]))
    end = {"line - 1": line - 1, "line": line, "line + 1": line + 1}.get(str(end), end)  # type: ignore[arg-type]
    assert run(*ASKED, "--output-file", "out.jsonl")[0] == 0
    Path("out.jsonl").write_bytes(reference[: int(end)])
    status, _, err = run(*ASKED, "--output-file", "out.jsonl")
    assert status == 0 and Path("out.jsonl").read_bytes() == reference
    if end == line:
        assert "7 of 18 samples are there already" in err


@pytest.mark.parametrize("batch_size", (1, 3, 64))
def test_batch_size_changes_nothing_not_even_when_a_run_goes_on(
    run: Command, reference: bytes, batch_size: int
) -> None:
    assert run(*ASKED, "--output-file", "out.jsonl")[0] == 0
    Path("out.jsonl").write_bytes(reference[: len(reference) // 2])
    assert run(*ASKED, "--output-file", "out.jsonl", "--batch-size", batch_size)[0] == 0
    assert Path("out.jsonl").read_bytes() == reference


def test_processes_share_the_work_and_another_number_of_them_may_go_on(run: Command, reference: bytes) -> None:
    status, _, err = run(*ASKED, "--output-file", "out.jsonl", rank=1, of=3)
    assert status == 0 and "process 1 of 3 is done, 11 samples are left to others" in err
    assert run(*ASKED, "--output-file", "out.jsonl", rank=1, of=2)[0] == 0
    (part,) = Path().glob("out.jsonl.part-*-1-of-3")
    part.write_bytes(part.read_bytes()[:-1])  # a torn line in a part of processes that are no more
    assert run(*ASKED, "--output-file", "out.jsonl", rank=0, of=2)[0] == 0
    assert Path("out.jsonl").read_bytes() == reference and not list(Path().glob("*part*"))


def test_a_seed_that_is_not_given_is_kept_for_the_next_start(run: Command) -> None:
    asked = ("--prefixes-file", "prefixes.txt", "--output-file", "out.jsonl", "--batch-size", 2)
    _, _, err = run(*asked, rank=0, of=2)
    status, _, again = run(*asked)
    assert status == 0
    seeds = [line for line in (err + again).splitlines() if line.startswith("seed ")]
    assert len(seeds) == 2 and len(set(seeds)) == 1
    assert seeds[0] == f"seed {json.loads(Path('out.jsonl').read_text().splitlines()[0])['seed']}"
    assert len(Path("out.jsonl").read_text().splitlines()) == 6


def test_prefixes_of_the_command_line_go_into_a_file_too(run: Command) -> None:
    status, _, _ = run("--prefix", "One", "The", "--seed", 1, "--output-file", "out.jsonl", "--steps", 2)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert status == 0
    assert [(line["prefix_index"], line["prefix"], line["num_forwards"]) for line in lines] == [
        (0, "One", 2),
        (1, "The", 2),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--seed", 6), ("`seed` was 5, now 6",)),
        (("--temperature", 0.5, "--steps", 2), ("`steps` was None, now 2", "`temperature` was 1.0, now 0.5")),
        (("--num-samples", 2), ("`num_return_sequences` was 3, now 2",)),
        (("--banned-words", "laugh"), ("other `constraints`",)),
        (("--prefixes-file", "others.txt"), ("other `prefixes`",)),
        (("--checkpoint", "changed"), ("other `checkpoint`",)),
    ],
)
def test_samples_of_another_command_are_refused(
    run: Command, checkpoint: str, tiny_roberta: RobertaForMaskedLM, reference: bytes, change: Any, words: Any
) -> None:
    Path("others.txt").write_text("\n".join(["Zyz", *PREFIXES[1:]]))
    tiny_roberta.lm_head.bias.data[9] += 1
    tiny_roberta.save_pretrained("changed")
    for path in Path(checkpoint).iterdir():
        if path.name != "model.safetensors":
            Path("changed", path.name).write_bytes(path.read_bytes())
    assert run(*ASKED, "--output-file", "out.jsonl")[0] == 0
    status, out, err = run(*ASKED, "--output-file", "out.jsonl", *change)
    assert (status, out) == (2, "")
    assert_one_sentence(err, "`--output-file`", "out.jsonl", "--overwrite-output", *words)
    assert Path("out.jsonl").read_bytes() == reference
    assert run(*ASKED, "--output-file", "out.jsonl", *change, "--overwrite-output")[0] == 0
    assert Path("out.jsonl").read_bytes() != reference
    assert not list(Path().glob("*part*"))


def test_constraints_hold_for_every_prefix(run: Command) -> None:
    asked = ("--prefixes-file", "prefixes.txt", "--seed", 0, "--allowed-words", "the", "fox")
    status, out, _ = run(*asked, "--output-format", "json")
    assert status == 0
    for line in map(json.loads, out.splitlines()):
        assert set(re.findall(r"\w+", line["completion"])) <= {"the", "fox"}
    assert run(*asked, "--output-file", "out.jsonl")[0] == 0
    assert Path("out.jsonl").read_text() == out


# Onto standard output


def test_standard_output_has_the_order_of_the_file(run: Command, reference: bytes) -> None:
    status, out, _ = run(*ASKED, "--output-format", "json")
    assert status == 0 and out.encode() == reference
    status, out, _ = run(*ASKED)
    assert status == 0 and out == "\n".join(f"{json.loads(line)['text']}\n" for line in reference.splitlines())


def test_interrupt_prints_what_is_complete_in_order(run: Command, checkpoint: str) -> None:
    """The second prefix is the shortest and comes late; what is done behind it is not lost."""
    Path("many.txt").write_text("\n".join(["One day a fox", "One", *["One day", "One day a fox lived"] * 5000]))
    options = ["--prefixes-file", str(Path("many.txt").absolute()), "--batch-size", "2", "--seed", "1"]
    command = [sys.executable, "generate.py", "--checkpoint", checkpoint, "--output-format", "json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    indices = [first["prefix_index"], *(json.loads(line)["prefix_index"] for line in out.splitlines())]
    assert indices[0] == 0 and indices == sorted(indices) and len(indices) > 10
    assert (process.returncode, err) == (130, "diffusion-mlm: interrupted.\n")


# Files of prefixes


def test_every_kind_of_file_is_read_and_rows_without_a_prefix_are_counted(run: Command) -> None:
    rows = [
        {"prefix": "One", "id": 1},
        {"prefix": None, "id": 2},
        {"prefix": " ", "id": 3},
        {"prefix": "The", "id": 4},
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("a.csv").write_text('id,start\n1,One\n2\n3," "\n4,The\n')
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    Path("a.txt").write_text("One\r\n\r\n \r\nThe")
    outputs = []
    for name, *options in (("a.jsonl",), ("a.csv", "--prefix-column", "start"), ("a.parquet",), ("a.txt",)):
        status, out, err = run("--prefixes-file", name, "--seed", 1, "--output-format", "json", *options)
        assert status == 0 and "left out: " in err
        outputs.append(out)
    assert len(set(outputs)) == 1
    assert [json.loads(line)["prefix_index"] for line in outputs[0].splitlines()] == [0, 3]


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--prefixes-file", "missing.txt"], 2, ("missing.txt", "does not exist")),
        (["--prefixes-file", "empty.txt"], 2, ("empty.txt", "empty")),
        (["--prefixes-file", "blank.txt"], 2, ("blank.txt", "0 usable")),
        (["--prefixes-file", "."], 2, ("directory",)),
        (["--prefixes-file", "rows.jsonl"], 2, ("rows.jsonl", "no column `prefix`", "id, text")),
        (["--prefixes-file", "rows.jsonl", "--prefix-column", "id"], 2, ("row 1", "int, not text")),
        (["--prefixes-file", "latin1.txt"], 2, ("latin1.txt, line 2", "--encoding")),
        (["--prefixes-file", "prefixes.txt", "--encoding", "utf-99"], 2, ("`encoding`", "utf-99")),
        (["--prefixes-file", "long.txt"], 2, ("long.txt, line 3: ", "41 tokens", "reads 31", "Shorten")),
        (["--prefixes-file", "prefixes.txt", "--prefix", "One"], 2, ("`--prefix`", "`--prefixes-file`")),
        (["--prefixes-file", "prefixes.txt", "--show-steps"], 2, ("`--show-steps`",)),
        (["--overwrite-output"], 2, ("`--overwrite-output`", "`--output-file`")),
        (["--prefixes-file", "prefixes.txt", "--output-file", "long.txt"], 2, ("'long.txt'", "--overwrite-output")),
        (["--prefixes-file", "prefixes.txt", "--output-file", "directory"], 2, ("'directory'", "no regular file")),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(
    run: Command, argv: list[str], status: int, words: tuple[str, ...]
) -> None:
    Path("empty.txt").write_text("")
    Path("blank.txt").write_text("\n \n")
    Path("rows.jsonl").write_text('{"text": "One", "id": 3}\n')
    Path("latin1.txt").write_text("One\nA naïve fox\n", encoding="latin-1")
    Path("long.txt").write_text("One\n\n" + "One day " * 20 + "\nThe\n")
    Path("directory").mkdir()
    before = sorted(Path().rglob("*"))
    outputs = [] if "--output-file" in argv or "--overwrite-output" in argv else ["--output-file", "out.jsonl"]
    found, out, err = run(*argv, *outputs, "--seed", 0)
    assert (found, out) == (status, "")
    assert_one_sentence(err, *words)
    assert sorted(Path().rglob("*")) == before


def test_several_processes_need_a_file_to_write_to(run: Command) -> None:
    status, out, err = run("--prefixes-file", "prefixes.txt", rank=1, of=2)
    assert (status, out) == (2, "")
    assert_one_sentence(err, "`--output-file` is missing")


# Killed


# Runs a command in one forked process after another, each of which dies at another moment: at every event that
# changes a file, before it, after it and, of a line that is written, half-way. Prints what each ended with.
DRIVER = """
import os, resource, signal, sys
import torch
import diffusion_mlm.generation, diffusion_mlm.cli.batches, diffusion_mlm.cli.fingerprint
from diffusion_mlm.cli import main, sample_file
torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(event, function):
    def wrapped(*args, **kwargs):
        global events
        events += 1
        if events == event:
            die()
        result = function(*args, **kwargs)
        events += 1
        if events == event:
            die()
        return result
    return wrapped

def child(event, argv):
    global events
    events = 0
    if event == "full":  # the disk: no file may grow beyond so many bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1100, resource.RLIM_INFINITY))
    elif event is not None:
        for name in ("link", "replace", "unlink"):
            setattr(os, name, at(event, getattr(os, name)))
        append = sample_file.SampleFile.append
        def half(self, lines):
            if self._part is None:
                self._part = self._open_part()
            text = "".join(line + "\\\\n" for line in lines).encode()
            global events
            events += 1
            if events == event:
                os.write(self._part.fileno(), text[: len(text) * 2 // 3])
                die()
            append(self, lines)
        sample_file.SampleFile.append = at(event, half)
    return main(argv)

def run(event, argv):
    pid = os.fork()
    if pid == 0:
        try:
            status = child(event, argv)
            sys.stdout.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""".replace("\\\\n", "\\n")


def drive(directory: Path, body: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER + body, *argv]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(run: Command, checkpoint: str, reference: bytes) -> None:
    body = """
event, ended = 0, -9
while ended == -9:
    event += 1
    argv = [*sys.argv[1:], "--output-file", f"out-{event}.jsonl"]
    ended = run(event, argv)
    assert event > 1 or ended == -9
    print(event, ended, run(None, argv))
"""
    asked = [*map(str, ASKED), "--batch-size", "9", "--checkpoint", checkpoint]
    done = drive(Path(), body, ["generate", *asked])
    assert done.returncode == 0, done.stderr
    endings = [line.split() for line in done.stdout.splitlines()]
    # Twice each: a link and an unlink for the state, two batches (and half-way), the file into its place, its parts.
    assert len(endings) >= 15 and endings[-1][1:] == ["0", "0"]
    assert all(ending[1:] == ["-9", "0"] for ending in endings[:-1])
    for event in range(1, len(endings) + 1):
        assert Path(f"out-{event}.jsonl").read_bytes() == reference, event
    assert not list(Path().glob("*part*")) and not list(Path().glob("*new*"))


def test_a_full_disk_loses_nothing(run: Command, checkpoint: str, reference: bytes) -> None:
    """1100 bytes hold some lines and the state, not all."""
    argv = ["generate", *map(str, ASKED), "--checkpoint", checkpoint, "--output-file", "out.jsonl"]
    done = drive(Path(), "sys.exit(run('full', sys.argv[1:]))", argv)
    assert done.returncode == 74
    assert_one_sentence(done.stderr, "File too large")
    assert not Path("out.jsonl").exists()
    (part,) = Path().glob("out.jsonl.part-*")
    assert part.stat().st_size == 1100
    status, _, err = run(*ASKED, "--output-file", "out.jsonl")
    assert status == 0 and "samples are there already" in err
    assert Path("out.jsonl").read_bytes() == reference


def test_a_process_that_dies_is_started_again_and_goes_on(run: Command, checkpoint: str, reference: bytes) -> None:
    """Under torchrun, process 1 of 2 is killed at its work, and torchrun starts both again."""
    argv = ["generate", *map(str, ASKED), "--checkpoint", checkpoint, "--output-file", "out.jsonl"]
    first = "os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'"
    Path("driver.py").write_text(f"{DRIVER}\nsys.exit(child(5 if {first} else None, {argv}))\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, "driver.py"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Signal 9" in done.stderr or "exitcode: -9" in done.stderr
    assert Path("out.jsonl").read_bytes() == reference
    assert not list(Path().glob("out.jsonl.part*"))
