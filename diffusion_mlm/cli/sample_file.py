"""A file of samples, one JSON object a line, that several processes write and any interruption leaves resumable."""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputDirectoryError
from .process import Process

# (prefix_index, sample_index), as in every line
Key = tuple[int, int]
# Where a line stands: path, offset and length in bytes
_Place = tuple[Path, int, int]

_SECONDS_TO_WAIT = 600.0  # for rank 0 to put other samples aside


class SampleFile:
    """The file OUT and, beside it, what it is made from until it is whole.

    * `OUT.state.json` says what decides the samples. It stays, so that the same command finds its work done and
      another one is refused.
    * `OUT.part-HASH-0-of-2` holds the lines that process 0 of 2 has made, in the order in which they were made, HASH
      being that of the state. A line that is torn, or is none of the samples, counts as not written.
    * OUT comes at the end: the process that finds all samples there puts them in order beside it, renames that, and
      removes the parts. So nobody waits for anybody, and a process that dies leaves nothing but its samples to make.

    Each process locks its part while it writes (`lockf`, which the kernel releases however the process ends).

    Args:
        path (`str`): OUT.
        process (`Process`): this one.
    """

    def __init__(self, path: str, process: Process) -> None:
        if "\0" in path or not Path(path).name:
            raise ValueError(f"`--output-file` is {path!r}, which is no name of a file.")
        self.name, self.process = path, process
        self.path = Path(path)
        self.state_path = self._beside("state.json")
        self._hash = ""
        self._part: BinaryIO | None = None

    def require_usable(self, overwrite: bool) -> None:
        """Refuses a path at once that cannot be written, or holds what is not ours; writes nothing.

        Raises:
            ValueError: it is no regular file, or a file that was not made here and `overwrite` is not set.
            OSError: the directory cannot be written to.
        """
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"`--output-file` is {self.name!r}, which is no regular file. Name a file.")
        parent = self.path.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise ValueError(f"`--output-file` is {self.name!r}, but {parent} is no directory. Name another file.")
        if not os.access(parent, os.W_OK):
            raise PermissionError(f"`--output-file` is {self.name!r}, but {parent} cannot be written to.")
        if self.path.exists() and not self.state_path.exists() and not overwrite:
            raise ValueError(
                f"`--output-file` is {self.name!r}, which is there and was not written by this command. Name another "
                f"file, or replace it with `--overwrite-output true`."
            )

    def claim(self, settings: Mapping[str, Any], *, any_seed: bool, overwrite: bool) -> int:
        """Makes OUT the file of samples with these settings, unless it is that already.

        Args:
            settings: what decides the samples, as JSON; `seed` is one of them.
            any_seed (`bool`): whether the seed of the samples that are there will do as well.
            overwrite (`bool`): replaces samples of other settings. Those of the same settings stay: made again, they
                would be the same. Process 0 does it, and the others wait for it, ten minutes at most.

        Returns:
            `int`: the seed.

        Raises:
            ValueError: samples of other settings are there.
            OutputDirectoryError: another run is writing the file.
            OSError: the directory cannot be written to.
        """
        settings = json.loads(json.dumps(settings))  # as it will be read: lists for tuples
        deadline = time.monotonic() + _SECONDS_TO_WAIT
        while True:
            there = self._read_state()
            if there is None and not self.path.exists():
                self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
                self._write_state(settings, over=False)
                continue
            differing = differences(there, settings, any_seed)
            if there is not None and not differing:
                break
            if not overwrite:
                raise ValueError(
                    f"`--output-file` is {self.name!r}, which holds other samples: {'; '.join(differing[:4])}. "
                    f"Start it as before, name another file, or replace it with `--overwrite-output true`."
                )
            if self.process.rank == 0:
                self._require_idle()
                self._remove_all("part-", "new-")
                self.path.unlink(missing_ok=True)
                if there is not None:
                    self._write_state(settings, over=True)
            elif time.monotonic() > deadline:
                raise TimeoutError(
                    f"`--output-file` {self.name!r} holds other samples, and process 0 has not replaced them."
                )
            else:
                time.sleep(0.1)
        self._hash = hashlib.blake2b(json.dumps(there, sort_keys=True).encode(), digest_size=4).hexdigest()
        self._require_idle()
        return int(there["seed"])

    def find(self, expected: Mapping[Key, tuple[str, int]]) -> set[Key]:
        """Which of these samples, given by their prefix and seed, are there. Not to be asked after `append`."""
        return set(self._places(expected))

    def append(self, lines: Sequence[str]) -> None:
        """Adds finished lines to the part of this process.

        Raises:
            OutputDirectoryError: another process with this number is writing.
            OSError: writing fails.
        """
        if self._part is None:
            self._part = self._open_part()
        self._part.write("".join(f"{line}\n" for line in lines).encode())
        self._part.flush()

    def close(self) -> None:
        """Lets go of the part of this process."""
        part, self._part = self._part, None
        if part is not None:
            part.close()

    def assemble(self, expected: Mapping[Key, tuple[str, int]]) -> int:
        """Writes OUT if all samples are there, in the order of `expected`.

        Returns:
            `int`: how many samples are missing.

        Raises:
            OSError: writing fails; the parts stay as they are.
        """
        self.close()
        while True:
            places = self._places(expected)
            if len(places) < len(expected):
                return len(expected) - len(places)
            try:
                if not self._is_whole(expected, places):
                    self._write_in_order([places[key] for key in expected])
            except FileNotFoundError:  # another process was quicker, and has removed the parts
                continue
            self._remove_all("part-", "new-")
            return 0

    # What lies beside OUT

    def _beside(self, end: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{end}")

    def _all_beside(self, *starts: str) -> list[Path]:
        names = tuple(f"{self.path.name}.{start}" for start in starts)
        return sorted(path for path in self.path.absolute().parent.glob("*") if path.name.startswith(names))

    def _remove_all(self, *starts: str) -> None:
        for path in self._all_beside(*starts):
            path.unlink(missing_ok=True)

    @property
    def _part_path(self) -> Path:
        return self._beside(f"part-{self._hash}-{self.process.rank}-of-{self.process.num_processes}")

    def _require_idle(self) -> None:
        """Raises OutputDirectoryError if a process is writing that is none of those beside this one."""
        mine, start, end = self._part_path.name, f"part-{self._hash}-", f"-of-{self.process.num_processes}"
        for path in self._all_beside("part-"):
            if path.name != mine and start in path.name and path.name.endswith(end):
                continue
            try:
                with path.open("rb") as part:
                    fcntl.lockf(part, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                raise self._locked() from None

    def _locked(self) -> OutputDirectoryError:
        return OutputDirectoryError(
            f"`--output-file` is {self.name!r}, which another run is writing at this moment. Wait for it, or name "
            f"another file."
        )

    def _open_part(self) -> BinaryIO:
        """The part of this process, locked, without the torn line that it may end with."""
        part = os.fdopen(os.open(self._part_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.lockf(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            part.close()
            raise self._locked() from None
        whole = sum(len(line) for line in part if line.endswith(b"\n"))
        part.truncate(whole)
        part.seek(whole)
        return part

    # Lines

    def _places(self, expected: Mapping[Key, tuple[str, int]]) -> dict[Key, _Place]:
        """Where each sample stands: in a part, or in OUT, which is read last, since it comes before the parts go."""
        places: dict[Key, _Place] = {}
        for path in [*self._all_beside(f"part-{self._hash}-"), self.path]:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            offset = 0
            with file:
                for line in file:
                    key = _key_of(line)
                    if key is not None and expected.get(key[0]) == key[1]:
                        places[key[0]] = (path, offset, len(line))
                    offset += len(line)
        return places

    def _is_whole(self, expected: Mapping[Key, tuple[str, int]], places: Mapping[Key, _Place]) -> bool:
        """Whether OUT holds all samples in order, and nothing else."""
        end = 0
        for key in expected:
            path, offset, length = places[key]
            if path != self.path or offset != end:
                return False
            end += length
        return self.path.stat().st_size == end

    def _write_in_order(self, places: Sequence[_Place]) -> None:
        fresh = self._beside(f"new-{self.process.rank}-{os.getpid()}")
        try:
            with ExitStack() as stack:
                sources = {path: stack.enter_context(path.open("rb")) for path in {path for path, _, _ in places}}
                target = stack.enter_context(fresh.open("wb"))
                for path, offset, length in places:
                    sources[path].seek(offset)
                    target.write(sources[path].read(length))
                target.flush()
                os.fsync(target.fileno())
            os.replace(fresh, self.path)
        finally:
            fresh.unlink(missing_ok=True)

    # The state

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            if isinstance(state, dict) and isinstance(state.get("seed"), int):
                return state
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        raise ValueError(f"{self.state_path} is damaged: remove it and {self.path}, and start again.")

    def _write_state(self, settings: Mapping[str, Any], over: bool) -> None:
        """Writes the state at once or not at all; unless it goes `over` another one, only where there is none."""
        fresh = self._beside(f"new-{self.process.rank}-{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                file.write(json.dumps(settings, indent=1, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if over:
                os.replace(fresh, self.state_path)
            else:
                os.link(fresh, self.state_path)  # fails if it is there
        except FileExistsError:
            pass
        except OSError as error:
            if over or error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            os.replace(fresh, self.state_path)  # some file systems have no links; there seeds had better be given
        finally:
            fresh.unlink(missing_ok=True)


def _key_of(line: bytes) -> tuple[Key, tuple[str, int]] | None:
    """The key, prefix and seed of a whole line."""
    if not line.endswith(b"\n"):
        return None
    try:
        sample = json.loads(line)
        key, content = (sample["prefix_index"], sample["sample_index"]), (sample["prefix"], sample["seed"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (key, content) if all(isinstance(index, int) for index in key) else None


def differences(there: Mapping[str, Any] | None, settings: Mapping[str, Any], any_seed: bool) -> list[str]:
    """What differs between two settings, in words; long values are not shown."""
    if there is None:
        return ["nothing says what they are"]
    found = []
    for name in dict.fromkeys([*settings, *there]):
        old, new = there.get(name), settings.get(name)
        if old == new or (name == "seed" and any_seed):
            continue
        short = all(len(str(value)) <= 30 for value in (old, new))
        found.append(f"`{name}` was {old!r}, now {new!r}" if short else f"other `{name}`")
    return found
