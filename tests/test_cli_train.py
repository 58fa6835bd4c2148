"""`train` when it is interrupted, resumed, refused or full: exit statuses, one line that says how to go on."""

import errno
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_mlm.callbacks import LogLineCallback
from diffusion_mlm.cli import main, report_error
from diffusion_mlm.errors import CheckpointError, SaveError, TrainingInterruptedError, TrainingMemoryError
from diffusion_mlm.run_lock import run_lock

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str
) -> Command:
    """4 steps on a small text in this process; exit status and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("One day a fox lived in a small house.\n" * 40)
    argv = [
        "train",
        "--model-name",
        checkpoint,
        "--train-file",
        "text.txt",
        "--validation",
        "0",
        "--output-dir",
        "out",
    ]
    argv += ["--max-length", "12", "--batch-size", "4", "--max-steps", "4", "--logging-steps", "1"]
    argv += ["--report-to", "none", "--disable-tqdm", "true", "--use-cpu", "true", "--save-steps", "2"]

    def run(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        logging.getLogger("diffusion_mlm").handlers.clear()  # of a command before, with its standard error
        return main([*argv, *options]), capsys.readouterr().err

    return run


@pytest.fixture
def at_first_log(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is put in here is done once, when the first step is logged."""
    actions: list[Callable[[], None]] = []
    log = LogLineCallback.on_log

    def act_and_log(self: LogLineCallback, *args: object, **kwargs: object) -> None:
        while actions:
            actions.pop()()
        log(self, *args, **kwargs)

    monkeypatch.setattr(LogLineCallback, "on_log", act_and_log)
    return actions


def test_an_interrupted_training_says_how_to_go_on_and_ends_as_if_nothing_had_been(
    train: Command, at_first_log: list[Callable[[], None]]
) -> None:
    at_first_log.append(lambda: signal.raise_signal(signal.SIGTERM))
    status, err = train("--save-strategy", "no")
    assert status == 143
    assert err.endswith(
        "diffusion-mlm: stopped by a signal after step 2, which is saved in out/checkpoint-2. Go on with "
        "`--resume-from-checkpoint true`.\n"
    )
    assert sorted(path.name for path in Path("out").iterdir()) == [".run-lock", "checkpoint-2", "log.jsonl"]
    status, err = train("--save-strategy", "no")
    assert status == 2 and "--resume-from-checkpoint true" in err
    status, err = train("--save-strategy", "no", "--resume-from-checkpoint", "true")
    assert status == 0, err
    resumed = Path("out/final-model/model.safetensors").read_bytes()
    assert train("--save-strategy", "no", "--overwrite-output", "true")[0] == 0
    assert Path("out/final-model/model.safetensors").read_bytes() == resumed
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".run-lock",
        "final-model",
        "log.jsonl",
        "summary.json",
    ]


def test_auto_begins_and_goes_on_and_a_change_of_settings_is_refused(train: Command) -> None:
    assert train("--save-strategy", "steps", "--resume-from-checkpoint", "auto")[0] == 0
    status, err = train("--save-strategy", "steps", "--resume-from-checkpoint", "auto", "--seed", "1")
    assert status == 2 and "`seed` was 42, is 1" in err.splitlines()[-1]
    status, err = train("--save-strategy", "steps", "--resume-from-checkpoint", "auto")
    assert status == 0 and "Resumes from out/checkpoint-4" in err
    os.truncate("out/checkpoint-4/optimizer.pt", 10)
    status, err = train("--save-strategy", "steps", "--resume-from-checkpoint", "out/checkpoint-4")
    assert status == 2 and "optimizer.pt has 10 bytes instead of" in err
    assert len(err.splitlines()) == 1  # before anything is loaded


def test_a_directory_that_another_run_uses_is_refused_and_nothing_is_written(train: Command) -> None:
    Path("out").mkdir()
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            with run_lock(Path("out")):
                os.write(writer, b".")
                signal.pause()
        finally:
            os._exit(1)
    try:
        os.read(reader, 1)
        status, err = train()
        assert status == 73 and f"process {owner} on" in err
        assert [path.name for path in Path("out").iterdir()] == [".run-lock"]
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)


def test_a_disk_that_is_full_at_the_end_leaves_the_model_before(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out/final-model").mkdir(parents=True)
    Path("out/final-model/mine").touch()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffusion_mlm.sealed_checkpoints.flush_directory", full)
    status, err = train("--save-strategy", "no")
    assert status == 74 and "out/final-model could not be saved" in err and "No space left" in err
    assert [path.name for path in Path("out/final-model").iterdir()] == ["mine"]
    assert not list(Path("out").glob("*.tmp*"))


@pytest.mark.parametrize(
    "error, status, text",
    [
        (CheckpointError("a"), 2, "a."),
        (SaveError("a"), 74, "a."),
        (TrainingMemoryError("a"), 1, "a."),
        (TrainingInterruptedError("a.", signal.SIGINT), 130, "a."),
        (TrainingInterruptedError("a.", signal.SIGTERM), 143, "a."),
    ],
)
def test_the_ends_of_training_have_their_exit_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error) == status
    assert capsys.readouterr().err == f"diffusion-mlm: {text}\n"


@pytest.mark.parametrize("every, steps", [("2", [2, 4]), ("3", [3, 4])])
def test_the_model_at_the_end_is_evaluated_once(train: Command, every: str, steps: list[int]) -> None:
    status, err = train(
        "--validation", "4", "--eval-strategy", "steps", "--eval-steps", every, "--save-strategy", "no"
    )
    assert status == 0, err
    lines = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    bounds = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert [line["step"] for line in lines if "eval_loss" in line] == steps
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["nelbo_nats_per_token"] == bounds[4] and summary["train_seconds"] > 0
