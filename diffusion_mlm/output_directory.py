"""Whether a directory can take what a run will write, asked before the run."""

import os
import shutil
from pathlib import Path

from torch import nn

from .errors import OutputDirectoryError, SaveError
from .sealed_checkpoints import checkpoints_in, flush_directory

_BYTES_OF_WEIGHT, _BYTES_OF_ADAM = 4, 8


def require_writable(directory: Path) -> None:
    """Makes the directory and writes, flushes, renames and removes a file in it.

    Raises:
        OutputDirectoryError: one of that fails.
    """
    probe = directory / ".write-probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        os.replace(probe, probe.with_suffix(".renamed"))
        probe.with_suffix(".renamed").unlink()
        flush_directory(directory)
    except OSError as error:
        raise OutputDirectoryError(
            f"`--output-dir` {str(directory)!r} cannot be written to: {error.strerror}."
        ) from error


def require_space(directory: Path, model: nn.Module, limit: int | None) -> None:
    """Refuses a disk without room for the checkpoints that are to come.

    Before the oldest is removed there is one more than `limit` (no limit: at least 2). Each takes the weights and, of
    those that are trained, the two averages of Adam in float32; 10 % are added.

    Raises:
        SaveError: there is less room than that.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = _BYTES_OF_WEIGHT * sum(parameter.numel() for parameter in model.parameters()) + _BYTES_OF_ADAM * trained
    missing = max((limit if limit and limit > 0 else 1) + 1 - len(checkpoints_in(directory)), 1)
    needed, free = round(1.1 * missing * size), shutil.disk_usage(directory).free
    if free < needed:
        raise SaveError(
            f"`output_dir` {str(directory)!r} has room for {free / 1e9:.2f} GB, and {missing} checkpoints may take "
            f"{needed / 1e9:.2f} GB. Free some, name another directory, or lower `save_total_limit` (now {limit})."
        )
