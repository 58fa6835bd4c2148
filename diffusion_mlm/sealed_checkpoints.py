"""Checkpoints that are complete or absent: the last file of each is a manifest of all others.

A save may be killed at any moment. So `begin_save` marks a directory as unfinished, and `seal` writes the manifest
(sizes, SHA-256, what the run was) after all files are on the disk; the name of the manifest appears at once. What has
no valid manifest is never resumed from. Order is that of step numbers: clocks jump.

    checkpoint-12            sealed, or a save that was interrupted
    _replaced-checkpoint-12  an older one of the same step, while the new one is written
    _torn-checkpoint-12      incomplete or damaged, set aside
    _stale-checkpoint-12     of a later step than the run that now saves has reached: of another run
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from .errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "_COMPLETE.json"
_UNFINISHED = MANIFEST + ".tmp"
_NAME = re.compile(r"checkpoint-(\d+)")
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems that cannot flush a directory


class InterruptedSaveError(CheckpointError):
    """A checkpoint whose save did not end: there is nothing in it to be missed."""


class UnsealedError(CheckpointError):
    """A checkpoint without manifest that no save of ours has left: whether it is complete cannot be known."""


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every `checkpoint-N`, the newest first; other names are not ours to touch."""
    if not folder.is_dir():
        return []
    found = [(int(name[1]), path) for path in folder.iterdir() if (name := _NAME.fullmatch(path.name))]
    return sorted(((step, path) for step, path in found if path.is_dir()), reverse=True)


# Writing


def begin_save(directory: Path) -> None:
    """Makes an empty directory that is marked as unfinished.

    An older checkpoint of the same step steps aside until the new one is sealed, and those of later steps for good:
    they belong to another run, and would be taken for the newest of this one.
    """
    this = int(directory.name.split("-")[-1])
    for step, path in checkpoints_in(directory.parent):
        if step > this:
            logger.warning("%s is of a run before: it is now %s.", path, set_aside(path, "stale").name)
    if directory.exists():
        set_aside(directory, "replaced")
    directory.mkdir(parents=True)
    (directory / _UNFINISHED).touch()


def seal(directory: Path, facts: dict[str, Any]) -> None:
    """Flushes all files to the disk, then writes the manifest under its name in one step.

    Args:
        directory: as `begin_save` made it, now with its files.
        facts: what decides the run, see `run_facts`; JSON values.
    """
    readable = directory.stat().st_mode & 0o444  # safetensors come out readable by the owner alone
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            flush_directory(path)
        elif path.name not in (MANIFEST, _UNFINISHED):
            path.chmod(path.stat().st_mode | readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(directory).as_posix()] = [path.stat().st_size, digest]
    write_flushed(directory / _UNFINISHED, manifest_text(files, facts))
    os.replace(directory / _UNFINISHED, directory / MANIFEST)
    flush_directory(directory)
    flush_directory(directory.parent)
    shutil.rmtree(directory.with_name(f"_replaced-{directory.name}"), ignore_errors=True)


def manifest_text(files: dict[str, list[Any]], facts: dict[str, Any]) -> str:
    """The manifest of `files` (name -> size in bytes and SHA-256), itself sealed by a digest."""
    body = {"files": files, "facts": facts}
    return json.dumps({**body, "sha256": _digest(body)}, indent=1)


def abandon_save(directory: Path) -> None:
    """Removes what a failed save has written, and puts back what stepped aside for it."""
    shutil.rmtree(directory, ignore_errors=True)
    replaced = directory.with_name(f"_replaced-{directory.name}")
    if replaced.is_dir() and not directory.exists():
        replaced.rename(directory)


def rotate(folder: Path, limit: int | None, best: int | None) -> None:
    """Removes all but the `limit` newest checkpoints; the newest and the step `best` always stay."""
    found = dict(checkpoints_in(folder))
    if not limit or limit < 0 or len(found) <= limit:
        return
    kept = {max(found), best} & found.keys()
    kept.update(sorted(found.keys() - kept, reverse=True)[: max(limit - len(kept), 0)])
    for step in found.keys() - kept:
        shutil.rmtree(found[step])


def set_aside(path: Path, reason: str) -> Path:
    """Renames a checkpoint out of the reach of resuming, rotation and pushes; returns its new path."""
    target = path.with_name(f"_{reason}-{path.name}")
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)


# Reading


def read_facts(directory: Path, contents: bool = True) -> dict[str, Any]:
    """The facts of a checkpoint whose manifest says the truth about all its files.

    Args:
        directory: the checkpoint.
        contents (`bool`): False compares sizes only, and reads no file but the manifest.

    Raises:
        CheckpointError: a file is missing, cut or altered, or there is no manifest (`InterruptedSaveError` if a save
            of ours did not end, else `UnsealedError`).
    """
    if not (directory / MANIFEST).is_file():
        if (directory / _UNFINISHED).exists() or not any(directory.iterdir()):
            raise InterruptedSaveError("its save was interrupted")
        raise UnsealedError(f"it has no {MANIFEST}: another program or an older version wrote it")
    try:
        body = json.loads((directory / MANIFEST).read_bytes())
        sealed = body.pop("sha256")
        files, facts = body["files"], body["facts"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{MANIFEST} is damaged") from None
    if sealed != _digest(body):
        raise CheckpointError(f"{MANIFEST} is damaged")
    for name, (size, digest) in files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{name} has {path.stat().st_size:,} bytes instead of {size:,}")
        if contents:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise CheckpointError(f"{name} has other contents than were saved")
    return facts


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that is complete; newer ones are set aside, each with a warning that says why.

    Returns:
        The checkpoint, or None if there is none at all or only saves that were interrupted, which hold nothing.

    Raises:
        CheckpointError: there are others, and none is complete. They stay where they are.
    """
    _put_back(folder)
    faults: list[tuple[Path, CheckpointError]] = []
    complete = None
    for _, path in checkpoints_in(folder):
        try:
            read_facts(path)
        except CheckpointError as error:
            faults.append((path, error))
        else:
            complete = path
            break
    if complete is None and not all(isinstance(error, InterruptedSaveError) for _, error in faults):
        reasons = "; ".join(f"{path.name}: {error}" for path, error in faults)
        raise CheckpointError(
            f"No checkpoint in {str(folder)!r} is complete ({reasons}). Begin anew in another `output_dir`, or name "
            f"one of them in `resume_from_checkpoint` with `allow_inexact_resume` to use it as it is."
        )
    for path, fault in faults:
        logger.warning("%s is not used: %s. It is now %s.", path, fault, set_aside(path, "torn").name)
    return complete


def _put_back(folder: Path) -> None:
    """Ends what a killed `begin_save` began: an older checkpoint returns unless the new one was sealed."""
    for replaced in folder.glob("_replaced-checkpoint-*"):
        directory = replaced.with_name(replaced.name.removeprefix("_replaced-"))
        if (directory / MANIFEST).is_file():
            shutil.rmtree(replaced)
        else:
            if directory.exists():
                shutil.rmtree(directory)
            replaced.rename(directory)


# Files


def write_flushed(path: Path, text: str) -> None:
    """Writes a text and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk."""
    if os.name == "nt":  # Windows opens no directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def replace_directory(fresh: Path, target: Path) -> None:
    """Puts a directory that is written in the place of another: the files are flushed, then two names change.

    A kill between the two renames leaves the older directory as `.old` beside the place.
    """
    readable = fresh.stat().st_mode & 0o444
    for path in fresh.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_directory(fresh)
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    fresh.rename(target)
    flush_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
