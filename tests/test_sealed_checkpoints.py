"""Checkpoints are complete or absent: what is sealed is found, and nothing else is."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from diffusion_mlm.errors import CheckpointError
from diffusion_mlm.sealed_checkpoints import (
    MANIFEST,
    InterruptedSaveError,
    UnsealedError,
    abandon_save,
    begin_save,
    newest_complete,
    read_facts,
    replace_directory,
    rotate,
    seal,
)

FILES = {"model.safetensors": b"w" * 1000, "optimizer.pt": b"o" * 2000, "states/rank0.pt": b"s" * 10}
FACTS = {"seed": 1, "learning_rate": 0.001, "levels": [1.0, 0.5]}


def write(directory: Path) -> Path:
    begin_save(directory)
    for name, contents in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(contents)
    return directory


def save(directory: Path) -> Path:
    seal(write(directory), FACTS)
    return directory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


def test_what_is_sealed_has_its_facts_and_files_that_all_may_read(tmp_path: Path) -> None:
    directory = write(tmp_path / "checkpoint-3")
    (directory / "model.safetensors").chmod(0o600)
    tmp_path.chmod(0o755)
    directory.chmod(0o755)
    seal(directory, FACTS)
    assert read_facts(directory) == FACTS
    assert names(directory) == [MANIFEST, "model.safetensors", "optimizer.pt", "states"]
    assert (directory / "model.safetensors").stat().st_mode & 0o777 == 0o644
    (directory / "notes.txt").write_text("mine")  # what was added later is not its concern
    assert read_facts(directory) == FACTS


DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "bit flip": flip_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_checkpoint_is_named_with_the_reason_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    older, newer = save(tmp_path / "checkpoint-9"), save(tmp_path / "checkpoint-10")
    assert newest_complete(tmp_path) == newer  # the control: untouched, and 10 is more than 9
    DAMAGES[damage](newer / name)
    with pytest.raises(CheckpointError, match=name) as error:
        read_facts(newer)
    assert isinstance(error.value, UnsealedError) == ((name, damage) == (MANIFEST, "missing"))
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path) == older
    assert names(tmp_path) == ["_torn-checkpoint-10", "checkpoint-9"]
    assert "checkpoint-10 is not used" in caplog.text and name in caplog.text


def test_sizes_alone_are_compared_where_contents_are_not_asked_for(tmp_path: Path) -> None:
    directory = save(tmp_path / "checkpoint-1")
    flip_bit(directory / "optimizer.pt")
    assert read_facts(directory, contents=False) == FACTS
    os.truncate(directory / "optimizer.pt", 7)
    with pytest.raises(CheckpointError, match="optimizer.pt has 7 bytes instead of 2,000"):
        read_facts(directory, contents=False)


@pytest.mark.parametrize("alter", [lambda text: text.replace('"seed": 1', '"seed": 2'), lambda text: "[]"])
def test_facts_that_were_altered_are_not_believed(tmp_path: Path, alter) -> None:
    directory = save(tmp_path / "checkpoint-1")
    manifest = directory / MANIFEST
    manifest.write_text(alter(manifest.read_text()))
    with pytest.raises(CheckpointError, match="_COMPLETE.json is damaged"):
        read_facts(directory)


def test_when_none_is_complete_the_reasons_are_told_and_all_stay(tmp_path: Path) -> None:
    flip_bit(save(tmp_path / "checkpoint-1") / "optimizer.pt")
    write(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    before = names(tmp_path)
    with pytest.raises(CheckpointError) as error:
        newest_complete(tmp_path)
    for words in (
        "checkpoint-1: optimizer.pt has other contents",
        "checkpoint-2: its save was interrupted",
        "checkpoint-3: it has no _COMPLETE.json: another program or an older version wrote it",
    ):
        assert words in str(error.value)
    assert names(tmp_path) == before


def test_saves_that_were_interrupted_hold_nothing_and_are_set_aside(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nowhere") is None
    write(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-4").mkdir()  # killed after its first event
    for step in (2, 4):
        with pytest.raises(InterruptedSaveError):
            read_facts(tmp_path / f"checkpoint-{step}")
    assert newest_complete(tmp_path) is None
    assert names(tmp_path) == ["_torn-checkpoint-2", "_torn-checkpoint-4"]


@pytest.mark.parametrize(
    "limit, best, kept",
    [
        (None, None, [2, 9, 10, 11]),
        (0, None, [2, 9, 10, 11]),
        (9, None, [2, 9, 10, 11]),
        (3, None, [9, 10, 11]),
        (1, None, [11]),
        (2, 2, [2, 11]),
        (1, 2, [2, 11]),  # the best and the newest, whatever the limit
        (2, 11, [10, 11]),
        (1, 7, [11]),  # a best one that is gone
    ],
)
def test_rotation_goes_by_step_and_leaves_the_newest_the_best_and_what_is_not_ours(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    for step in (11, 2, 10, 9):  # not in the order of time
        (tmp_path / f"checkpoint-{step}").mkdir()
    others = ["_torn-checkpoint-1", "checkpoint-best", "checkpoint-1-mine", "my-checkpoint-1"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-1").write_text("a file")
    rotate(tmp_path, limit, best)
    assert names(tmp_path) == sorted([*others, "checkpoint-1", *(f"checkpoint-{step}" for step in kept)])


def test_checkpoints_of_later_steps_step_aside_before_a_save(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        save(tmp_path / f"checkpoint-{step}")
    save(tmp_path / "checkpoint-10")
    assert names(tmp_path) == ["_stale-checkpoint-20", "checkpoint-10", "checkpoint-5"]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_that_is_replaced_stays_until_the_new_one_is_sealed(tmp_path: Path) -> None:
    older = save(tmp_path / "checkpoint-10")
    (older / "mark").touch()
    write(older)  # and killed
    assert newest_complete(tmp_path) == older and (older / "mark").exists()
    write(older)
    abandon_save(older)
    assert names(tmp_path) == ["checkpoint-10"] and (older / "mark").exists()
    save(older)
    assert names(tmp_path) == ["checkpoint-10"] and not (older / "mark").exists()
    # Sealed, and killed before the older one was removed.
    shutil.copytree(older, tmp_path / "_replaced-checkpoint-10")
    assert newest_complete(tmp_path) == older
    assert names(tmp_path) == ["checkpoint-10"]


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    for number in (1, 2):
        fresh = tmp_path / "model.tmp"
        fresh.mkdir()
        (fresh / f"file-{number}").touch(mode=0o600)
        replace_directory(fresh, tmp_path / "model")
        assert names(tmp_path) == ["model"] and names(tmp_path / "model") == [f"file-{number}"]
