"""Runs that are killed while they write, and go on: the weights at the end are those of a run left alone."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffusion_mlm import DiffusionTrainer
from diffusion_mlm.sealed_checkpoints import newest_complete
from experiments.kill_training import (
    Setting,
    StockSavingTrainer,
    digest_path,
    fork,
    kill_runs,
    log_path,
    train_to_the_end,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked, and killed by their clock")

# 27 rows are 3 steps a pass: 6 steps reach into the second. The stock Trainer resumes a stream in the first only.
MAP, MAP_WORKERS = Setting(0, False, steps=6, rows=27), Setting(2, False, steps=6, rows=27)
STREAM, STREAM_WORKERS = Setting(0, True, steps=6, rows=27), Setting(2, True, steps=6, rows=27)


def on_write(directory: Path, happens: Callable[[str, Path], None]) -> None:
    """Calls `happens` before each change below a directory: Python's own, and those of torch and safetensors."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if not (isinstance(path, str) and (set(mode or "") & set("wax+") or (flags or 0) & os.O_CREAT)):
                return
        elif event not in ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree"):
            return
        path = args[1] if event == "os.rename" else args[0]
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(directory)):
            happens(event, Path(path))

    def save(function: Callable[..., Any], path_at: int, *args: Any, **kwargs: Any) -> Any:
        happens(function.__name__, Path(str(args[path_at])))
        return function(*args, **kwargs)

    sys.addaudithook(hook)
    torch.save = partial(save, torch.save, 1)  # type: ignore[assignment]  # in a child, which ends soon
    import transformers.modeling_utils

    transformers.modeling_utils.safe_save_file = partial(save, safetensors.torch.save_file, 1)


def train_and_die(directory: Path, setting: Setting, trainer_class: type[DiffusionTrainer], moment: str) -> None:
    """Trains until a save comes to a path: to be killed before that is written, or with "/2" when half of it is."""
    name, half = moment.removesuffix("/2"), moment.endswith("/2")
    begun: list[Path] = []

    def happens(event: str, path: Path) -> None:
        there = str(path).endswith(f"/{name}")
        if half and begun and begun[0].is_file():
            os.truncate(begun[0], begun[0].stat().st_size // 2)
        if there and half and not begun:
            begun.append(path)
        elif begun or there:
            os.kill(os.getpid(), signal.SIGKILL)

    on_write(directory, happens)
    train_to_the_end(directory, setting, trainer_class)


def attempt(directory: Path, setting: Setting, moment: str | None = None, trainer_class=DiffusionTrainer) -> int:
    train = partial(train_and_die, moment=moment) if moment else train_to_the_end
    return fork(lambda: train(directory, setting, trainer_class), log_path(directory))


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[Setting, str]:
    """The digests of the weights of runs that nothing disturbs. Workers change no order but that of a stream."""
    digests = {}
    for setting in (MAP, STREAM, STREAM_WORKERS):
        directory = tmp_path_factory.mktemp("left-alone") / "run"
        assert attempt(directory, setting) == 0, log_path(directory).read_text()
        digests[setting] = digest_path(directory).read_text()
    assert len(set(digests.values())) == 3
    return {**digests, MAP_WORKERS: digests[MAP]}


MOMENTS = [  # one after the other
    "checkpoint-2/model.safetensors",
    "checkpoint-4/optimizer.pt/2",
    "checkpoint-4/_COMPLETE.json/2",  # sealed, and then half of the manifest is lost
    "checkpoint-6/trainer_state.json/2",
    "checkpoint-2/2",  # removed by the rotation that follows step 6
]


@pytest.mark.parametrize(
    "setting, moments",
    [
        (MAP, MOMENTS),
        (MAP_WORKERS, ["checkpoint-4/scheduler.pt"]),
        (STREAM, ["checkpoint-4", "checkpoint-6"]),  # resumed inside the first pass and in the second
        (STREAM_WORKERS, ["checkpoint-6"]),
    ],
    ids=["map", "map-2-workers", "stream", "stream-2-workers"],
)
def test_killed_while_it_writes_it_ends_with_the_same_weights(
    tmp_path: Path, left_alone: dict[Setting, str], setting: Setting, moments: list[str]
) -> None:
    directory = tmp_path / "run"
    for moment in moments:
        assert attempt(directory, setting, moment) == -signal.SIGKILL, moment
    assert attempt(directory, setting) == 0, log_path(directory).read_text()
    assert digest_path(directory).read_text() == left_alone[setting]
    assert newest_complete(directory) == directory / "checkpoint-6"


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    outcome = kill_runs(tmp_path, MAP, kills=2, kills_per_run=2, seed=1)
    assert (outcome.kills >= 2, outcome.divergent, outcome.stuck) == (True, 0, 0), outcome


def test_the_stock_trainer_fails_the_same_harness(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert attempt(directory, MAP, "checkpoint-4/trainer_state.json", StockSavingTrainer) == -signal.SIGKILL
    assert attempt(directory, MAP, None, StockSavingTrainer) == 1
    assert "FileNotFoundError" in log_path(directory).read_text()


def test_a_file_that_is_gone_changes_the_weights_under_the_stock_trainer_and_is_refused_here(
    tmp_path: Path, left_alone: dict[Setting, str]
) -> None:
    directory = tmp_path / "run"
    assert attempt(directory, MAP, "checkpoint-6") == -signal.SIGKILL
    shutil.rmtree(directory / "checkpoint-2")
    (directory / "checkpoint-4" / "optimizer.pt").unlink()
    shutil.copytree(directory, tmp_path / "stock")
    assert attempt(tmp_path / "stock", MAP, None, StockSavingTrainer) == 0
    assert digest_path(tmp_path / "stock").read_text() != left_alone[MAP]
    assert attempt(directory, MAP) == 1
    assert "(checkpoint-4: optimizer.pt is missing)" in log_path(directory).read_text()
