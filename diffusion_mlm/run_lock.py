"""One run per directory: a lock that the system takes back when its owner dies, however it dies."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputDirectoryError

logger = logging.getLogger(__name__)

LOCK_FILE = ".run-lock"
# POSIX drops a lock when its process closes the file, through whatever handle: so one that is held is never opened
# again, and a second use within the process joins the first.
_held: set[Path] = set()


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Holds a directory for this process; it must exist. Nested uses are one.

    `lockf`, not `flock`: a worker that outlives a killed run would keep the latter. Where the file system knows no
    locks, a warning is all.

    Raises:
        OutputDirectoryError: another process holds it, with its number and machine.
    """
    path = directory.resolve() / LOCK_FILE
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    if path in _held:
        yield
        return
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("`output_dir` %s cannot be locked (%s): start no second run there.", directory, error)
                yield
                return
            file.seek(0)
            raise OutputDirectoryError(_refusal(directory, file.read())) from None
        _held.add(path)
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            _held.discard(path)


def require_unlocked(directory: Path) -> None:
    """Refuses a directory that another process holds; writes nothing.

    Raises:
        OutputDirectoryError: as `run_lock`.
    """
    if (directory / LOCK_FILE).is_file():
        with run_lock(directory):
            pass


def _refusal(directory: Path, owner: str) -> str:
    return (
        f"`output_dir` {str(directory)!r} is in use by another run (process {owner or 'unknown'}): wait until it "
        f"ends, or name another directory."
    )
