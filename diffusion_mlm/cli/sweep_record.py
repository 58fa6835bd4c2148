"""The directory of a sweep: what it tries, and a line for each setting that is done, whatever interrupts it."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputDirectoryError
from .sample_file import differences


class SweepRecord:
    """A directory with `sweep.json`, which says what decides the figures, and `settings.jsonl`, their lines.

    Lines come in the order of the settings, each written and synced before the next setting begins. A sweep that was
    killed goes on behind the last whole line; a torn one counts as not written. The process locks the lines while it
    works (`lockf`, which the kernel releases however the process ends).

    Args:
        directory (`str`)
    """

    def __init__(self, directory: str) -> None:
        if "\0" in directory or not directory:
            raise ValueError(f"`--output-dir` is {directory!r}, which is no name of a directory.")
        self.name, self.path = directory, Path(directory)
        self.state_path, self.lines_path = self.path / "sweep.json", self.path / "settings.jsonl"
        self._lines: BinaryIO | None = None

    def require_usable(self, overwrite: bool) -> None:
        """Refuses a place at once that cannot be written, or holds what is not ours; writes nothing.

        Raises:
            ValueError: it is no directory, or holds lines of which nothing says what they are, and `overwrite` is not
                set.
            OSError: it cannot be written to.
        """
        parent = self.path.absolute()
        while not os.path.lexists(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise ValueError(f"`--output-dir` is {self.name!r}, but {parent} is no directory. Name another one.")
        if not os.access(parent, os.W_OK):
            raise PermissionError(f"`--output-dir` is {self.name!r}, but {parent} cannot be written to.")
        if self.lines_path.exists() and not self.state_path.exists() and not overwrite:
            raise ValueError(
                f"`--output-dir` is {self.name!r}, whose settings.jsonl is of no sweep. Name another directory, or "
                f"replace it with `--overwrite-output true`."
            )

    def require_same(self, known: Mapping[str, Any], overwrite: bool) -> None:
        """Refuses a directory that holds another sweep, as far as `known` tells, before anything heavy is loaded.

        Raises:
            ValueError: names what differs; not if `overwrite` is set.
        """
        there = self._read_state()
        if there is not None and not overwrite:
            self._require_no_differences({name: there.get(name) for name in known}, known)

    def claim(self, state: Mapping[str, Any], overwrite: bool) -> None:
        """Makes the directory that of the sweep with this state, unless it is already, and locks it.

        Args:
            state: what decides the figures, as JSON.
            overwrite (`bool`): replaces another sweep. The lines of the same one stay.

        Raises:
            ValueError: another sweep is there.
            OutputDirectoryError: another run is writing there.
            OSError: the directory cannot be written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lines = self._open_lines()
        there = self._read_state()
        if there is not None and not overwrite:
            self._require_no_differences(there, state)
        if there != _as_read(state):
            self._lines.truncate(0)
            replace_file(self.state_path, json.dumps(state, indent=1, allow_nan=False) + "\n")

    def finished(self, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The lines that are there, those of the first settings; cuts off what is none of them."""
        if self._lines is None:
            raise ValueError("The directory of a sweep is claimed before it is read.")
        self._lines.seek(0)
        found: list[dict[str, Any]] = []
        end = 0
        for line, expected in zip(self._lines, settings, strict=False):
            read = _parsed(line)
            if read is None or read.get("settings") != _as_read(expected):
                break
            found.append(read)
            end += len(line)
        self._lines.truncate(end)
        self._lines.seek(end)
        return found

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds the line of a setting; it is on the disk when this returns.

        Raises:
            OSError: writing fails.
        """
        if self._lines is None:
            raise ValueError("The directory of a sweep is claimed before it is written.")
        self._lines.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Lets go of the directory."""
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()

    def _open_lines(self) -> BinaryIO:
        lines = os.fdopen(os.open(self.lines_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.lockf(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lines.close()
            raise OutputDirectoryError(
                f"`--output-dir` is {self.name!r}, which another run is writing at this moment. Wait for it, or name "
                f"another directory."
            ) from None
        return lines

    def _require_no_differences(self, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = differences(there, _as_read(now), any_seed=False)
        if differing:
            raise ValueError(
                f"`--output-dir` is {self.name!r}, which holds another sweep: {'; '.join(differing[:4])}. Start it as "
                f"before, name another directory, or replace it with `--overwrite-output true`."
            )

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            if isinstance(state, dict):
                return state
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        raise ValueError(f"{self.state_path} is damaged: remove it and {self.lines_path}, and start again.")


def replace_file(path: Path, text: str) -> None:
    """Writes a file at once or not at all.

    Raises:
        OSError: writing fails; the file is as it was.
    """
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _as_read(state: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(state))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line; None if it is torn or no object."""
    try:
        read = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None
