"""Whether a run that is killed again and again ends with the weights of a run that never was.

    OMP_NUM_THREADS=1 python experiments/kill_training.py --output results/kill_training.json

A process that has imported everything forks a child for each attempt. The child trains a tiny model on the built-in
stories, from the newest complete checkpoint on, and is killed (SIGKILL) at a random moment; then the next one goes on.
The digest of all weights at the end is compared with that of a run left alone. The saving of the stock Trainer is put
through the same as a control: it must get stuck, or the kills would not hit what they should.
"""

import functools
import gc
import hashlib
import json
import logging
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PrinterCallback, RobertaConfig, Trainer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.modeling import build_model

TOKENIZER = story_language.tokenizer()


@dataclass
class KillTrainingArguments:
    """How often to kill."""

    kills: int = field(default=20, metadata={"help": "Kills per setting."})
    kills_of_stock: int = field(default=10, metadata={"help": "Kills of the stock Trainer, or until it is stuck."})
    kills_per_run: int = field(default=7, metadata={"help": "Kills after which a run is left to end."})
    steps: int = field(default=30, metadata={"help": "Optimizer steps of a run."})
    seed: int = field(default=0, metadata={"help": "Of the moments."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    workers: int = 0
    stream: bool = False
    steps: int = 40
    save_every: int = 2
    rows: int = 75


class StockSavingTrainer(DiffusionTrainer):
    """The control: saves, rotates and resumes as the Trainer of transformers does."""

    _save_checkpoint = Trainer._save_checkpoint
    save_model = Trainer.save_model

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        output = str(self.args.output_dir)
        last = get_last_checkpoint(output) if Path(output).is_dir() else None
        return Trainer.train(self, last, *args, **kwargs)


def tiny_model() -> nn.Module:
    """A RoBERTa of 1 layer and width 16, with dropout."""
    config = RobertaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        type_vocab_size=1,
        attention_probs_dropout_prob=0.0,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return build_model(config, seed=0)


def make_trainer(
    directory: Path, setting: Setting, trainer_class: type[DiffusionTrainer] = DiffusionTrainer, **changes: Any
) -> DiffusionTrainer:
    """A trainer of 8 rows a step in 2 micro-batches, so that 75 rows are 9 steps."""
    rows: Any = make_rows(setting.rows)
    if setting.stream:
        shards = [rows[::2], rows[1::2]]
        rows = datasets.IterableDataset.from_generator(_rows_of_shards, gen_kwargs={"shards": shards})
        rows = rows.shuffle(seed=1, buffer_size=10)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": setting.workers,
        "max_steps": setting.steps,
        "save_steps": setting.save_every,
        "save_total_limit": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **changes,
    }
    args = DiffusionTrainingArguments(output_dir=str(directory), **settings)
    trainer = trainer_class(tiny_model(), args, processing_class=TOKENIZER, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


@functools.cache
def make_rows(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": row[:24]} for row in story_language.sample_ids(count, seed=3).tolist()]


def _rows_of_shards(shards: list[list[dict[str, Any]]]) -> Any:
    for shard in shards:
        yield from shard


def digest(model: nn.Module) -> str:
    """SHA-256 over all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


# A child


@functools.cache
def warm_up() -> None:
    """Does once, in the parent, what every child would have to do again."""
    make_rows(Setting.rows)
    with tempfile.TemporaryDirectory() as folder:
        tiny_model().save_pretrained(folder)


def fork(action: Callable[[], None], log: Path, kill_after: float | None = None) -> int:
    """Runs an action in a child and returns its exit status: -9 if it was killed, after `kill_after` seconds of work.

    Warnings of the package and the traceback of an error are added to `log`.
    """
    warm_up()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gc.freeze()  # what the parent made need not be gone through again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where workers tell that they lost their parent
            handler = logging.FileHandler(log)
            logging.getLogger("diffusion_mlm").handlers = [handler]
            torch.set_num_threads(1)
            action()
            status = 0
        except BaseException:
            with log.open("a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(status)  # the parent's exit handlers are not ours to run
    while kill_after is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.clock_gettime(_cpu_clock(child)) > kill_after:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _cpu_clock(process: int) -> int:
    """The clock of the time that a process has computed, whatever else the machine does; of Linux."""
    return ~process << 3 | 2


def train_to_the_end(directory: Path, setting: Setting, trainer_class: type[DiffusionTrainer]) -> None:
    """Trains, from the newest complete checkpoint on, and writes the digest of the weights beside the directory."""
    torch.manual_seed(os.getpid())  # what the process did before must not matter
    trainer = make_trainer(directory, setting, trainer_class)
    trainer.train(resume_from_checkpoint="auto")
    path = digest_path(directory)
    path.with_suffix(".tmp").write_text(digest(trainer.model))
    os.replace(path.with_suffix(".tmp"), path)


def digest_path(directory: Path) -> Path:
    return directory.with_name(directory.name + ".digest")


def log_path(directory: Path) -> Path:
    return directory.with_name(directory.name + ".log")


# Runs


@dataclass
class Outcome:
    """What the kills of one setting did."""

    kills: int = 0
    runs: int = 0
    torn_set_aside: int = 0
    divergent: int = 0
    stuck: int = 0
    seconds: float = 0.0
    reason_stuck: str | None = None


def kill_runs(
    folder: Path,
    setting: Setting,
    kills: int,
    kills_per_run: int,
    seed: int,
    trainer_class: type[DiffusionTrainer] = DiffusionTrainer,
) -> Outcome:
    """Runs that are killed at random moments and go on, until there were as many kills, or one is stuck."""
    outcome, moments, begin = Outcome(), random.Random(seed), time.monotonic()
    left_alone = folder / "left-alone"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if fork(lambda: train_to_the_end(left_alone, setting, trainer_class), log_path(left_alone)):
        raise RuntimeError(log_path(left_alone).read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    duration = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    expected = digest_path(left_alone).read_text()
    while outcome.kills < kills and not outcome.stuck:
        directory = folder / f"run-{outcome.runs}"
        outcome.runs += 1
        kills_here = 0
        while not digest_path(directory).exists():
            may_die = kills_here < kills_per_run and outcome.kills < kills
            moment = moments.uniform(0.02, 0.6 * duration) if may_die else None
            status = fork(lambda: train_to_the_end(directory, setting, trainer_class), log_path(directory), moment)  # noqa: B023
            if status == -signal.SIGKILL:
                kills_here += 1
                outcome.kills += 1
            elif status:  # nothing but a new try could help, and that finds the same files
                outcome.stuck += 1
                outcome.reason_stuck = log_path(directory).read_text().strip().splitlines()[-1].split("/")[0]
                break
        else:
            outcome.divergent += digest_path(directory).read_text() != expected
        if log_path(directory).exists():
            outcome.torn_set_aside += log_path(directory).read_text().count("is not used: ")
        shutil.rmtree(directory, ignore_errors=True)
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def run(argv: list[str]) -> int:
    (args,) = parse([KillTrainingArguments], argv, "kill_training")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    found: list[dict[str, Any]] = []
    cases = [(DiffusionTrainer, workers, stream) for stream in (False, True) for workers in (0, 2)]
    for trainer_class, workers, stream in [*cases, (StockSavingTrainer, 0, False)]:
        setting = Setting(workers, stream, args.steps)
        kills = args.kills if trainer_class is DiffusionTrainer else args.kills_of_stock
        with tempfile.TemporaryDirectory() as folder:
            outcome = kill_runs(Path(folder), setting, kills, args.kills_per_run, args.seed, trainer_class)
        saving = "sealed" if trainer_class is DiffusionTrainer else "stock"
        found.append({"saving": saving, **asdict(setting), **asdict(outcome)})
        print(json.dumps(found[-1]), flush=True)
    packages = ("torch", "transformers", "accelerate", "datasets")
    result = {
        "settings": found,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, 1 thread",
        "arguments": {name: value for name, value in asdict(args).items() if name != "output"},
    }
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
