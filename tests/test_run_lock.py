"""One run per directory, for as long as its process lives."""

import os
import signal
from pathlib import Path

import pytest

from diffusion_mlm.errors import OutputDirectoryError
from diffusion_mlm.run_lock import LOCK_FILE, require_unlocked, run_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="another process is forked")


def hold(directory: Path) -> tuple[int, int]:
    """A process that holds the directory and has a child of its own, as a run has workers; their two numbers."""
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            with run_lock(directory):
                child = os.fork()
                if child:
                    os.write(writer, str(child).encode())
                signal.pause()
        finally:
            os._exit(1)
    return owner, int(os.read(reader, 20))


def test_a_second_run_is_refused_until_the_first_is_gone_even_if_its_workers_are_not(tmp_path: Path) -> None:
    owner, worker = hold(tmp_path)
    try:
        for refuse in (require_unlocked, lambda path: run_lock(path).__enter__()):
            with pytest.raises(OutputDirectoryError, match=f"in use by another run \\(process {owner} on "):
                refuse(tmp_path)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        require_unlocked(tmp_path)
        with run_lock(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
    finally:
        os.kill(worker, signal.SIGKILL)


def test_within_a_process_uses_are_nested_and_the_outer_one_keeps_the_hold(tmp_path: Path) -> None:
    def is_free() -> bool:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                import diffusion_mlm.run_lock as fresh

                fresh._held.clear()  # the child of a fork holds nothing
                require_unlocked(tmp_path)
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0

    with run_lock(tmp_path):
        with run_lock(tmp_path):
            pass
        require_unlocked(tmp_path)
        assert not is_free()
    assert is_free()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    require_unlocked(tmp_path)
    require_unlocked(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
