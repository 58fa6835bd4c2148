"""Training for `from_scratch.py` and `from_scratch_study.py`: text, rows, and the library's trainer on them."""

import copy
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from scratch_recipes import Arm
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback

from diffusion_mlm import DiffusionGenerationConfig, DiffusionTrainer, story_language
from diffusion_mlm.callbacks import LogLineCallback
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.cli.train import make_rows, save_final, show_progress, training_facts
from diffusion_mlm.cli.train_arguments import DataArguments, ModelArguments, TrainCommandArguments
from diffusion_mlm.cli.train_model import make_model
from diffusion_mlm.tokenization import boundary_token_ids, encode_text

HELD_OUT_SHARE = 0.1
_STORY_SEED, _HELD_OUT_SEED, _HELD_OUT_STORIES = 1, 2, 512  # as in `diffusion-mlm train`
_PROBED_STEPS, _PROBED_AFTER = 16, 6


@dataclass(frozen=True)
class Text:
    """What is trained on and what is held out.

    Attributes:
        name (`str`): of the file, or `stories`.
        train, held_out (`list[str]`): a file is one text, cut in two.
    """

    name: str
    train: list[str]
    held_out: list[str]

    @property
    def is_stories(self) -> bool:
        return self.name == "stories"

    @classmethod
    def of_file(cls, name: str) -> "Text":
        """A file or an address; its last tenth, by characters, is held out.

        Raises:
            OSError: it cannot be read.
        """
        if name.startswith(("http://", "https://")):
            with urllib.request.urlopen(name, timeout=30) as answer:
                text = answer.read().decode("utf-8")
        else:
            text = Path(name).read_bytes().decode("utf-8")
        cut = round(len(text) * (1 - HELD_OUT_SHARE))
        return cls(name.rstrip("/").rpartition("/")[2], [text[:cut]], [text[cut:]])

    @classmethod
    def of_stories(cls, number: int, separate: bool) -> "Text":
        """Built-in stories, each a text, or all of them one text with a story on each line."""
        found = [story_language.sample(number, _STORY_SEED), story_language.sample(_HELD_OUT_STORIES, _HELD_OUT_SEED)]
        train, held_out = found if separate else [["\n".join(stories)] for stories in found]
        return cls("stories", train, held_out)


class Windows(torch.utils.data.Dataset):
    """A row from every place of a text, so that an order without replacement reads random windows."""

    def __init__(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.ids, self.size = torch.tensor(ids), max_length - 2
        start, end = boundary_token_ids(tokenizer)
        self.start, self.end = torch.tensor([start]), torch.tensor([end])
        if len(ids) < self.size:
            raise ValueError(f"The training text has {len(ids)} tokens and does not fill a row of {max_length}.")

    def __len__(self) -> int:
        return len(self.ids) - self.size + 1

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": torch.cat([self.start, self.ids[place : place + self.size], self.end])}


@dataclass
class Training:
    """One arm, ready to be trained: `prepare` makes it, `run` trains it.

    Attributes:
        packing (`dict`): how held-out text is cut, as `evaluate_texts` takes it.
        tokens_per_pass (`int`): tokens of the training text, ends that fill rows included.
    """

    arm: Arm
    text: Text
    directory: Path
    seed: int
    report_to: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: TrainCommandArguments
    rows: Any
    max_length: int
    packing: dict[str, Any]
    tokens_per_pass: int

    @classmethod
    def prepare(cls, arm: Arm, text: Text, directory: Path, seed: int, report_to: str = "none") -> "Training":
        """Model, tokenizer and rows.

        Raises:
            ValueError: an option is impossible.
        """
        model_args, data_args, args = _parse(arm, seed, report_to, directory)
        separate = text.is_stories and model_args.preset is None
        lines = text.train if separate else text.train[0].splitlines(keepends=True)
        model, tokenizer, max_length = make_model(model_args, data_args, Dataset.from_dict({"text": lines}), seed)
        if separate:
            rows = make_rows(Dataset.from_dict({"text": text.train}), tokenizer, data_args, max_length)
            tokens, packing = len(rows) * (max_length - 1), {"packing": "one_per_row"}
        else:
            ids = encode_text(tokenizer, text.train[0])
            rows, tokens = Windows(ids, tokenizer, max_length), len(ids)
            packing = {"packing": "packed", "separate_texts": False}
        args.mask_end_token = separate
        model.config.diffusion = training_facts(args, max_length)
        packing["max_length"] = max_length
        return cls(arm, text, directory, seed, report_to, model, tokenizer, args, rows, max_length, packing, tokens)

    @property
    def tokens_per_step(self) -> int:
        return self.args.per_device_train_batch_size * (self.max_length - (1 if self.args.mask_end_token else 2))

    @property
    def steps_asked(self) -> int:
        """`max_steps` of the recipe, or what its epochs make."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return max(round(self.args.num_train_epochs * self.tokens_per_pass / self.tokens_per_step), 1)

    def seconds_per_step(self) -> float:
        """Measured on a copy of the model, which is thrown away; of the longer part, at all mask rates."""
        clock = _Clock(exact=True)
        trainer = self._trainer(copy.deepcopy(self.model), self._arguments(_PROBED_STEPS), [clock])
        trainer.train()
        return (clock.times[-1] - clock.times[_PROBED_AFTER]) / (len(clock.times) - 1 - _PROBED_AFTER)

    def run(self, steps: int, stop_after: float | None = None) -> dict[str, Any]:
        """Trains for so many steps, low mask rates first if the arm says so, and saves the model.

        Args:
            stop_after (`float`, *optional*): seconds after which training ends wherever it is.

        Returns:
            What was done: steps, tokens, seconds, and the losses that were logged.
        """
        wall, done, losses = time.perf_counter(), 0, []
        parts = self._parts(steps)
        for number, (part_steps, changes) in enumerate(parts):
            left = None if stop_after is None else stop_after - (time.perf_counter() - wall)
            args = self._arguments(part_steps, seed=self.seed + number, **changes)  # other rows and masks in each part
            trainer = self._trainer(self.model, args, [LogLineCallback, _Clock(left)])
            trainer.train()
            losses += [[done + log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log]
            done += trainer.state.global_step
        self.model.eval()
        generation = DiffusionGenerationConfig(**next(iter(self.arm.generation.values())))
        self.directory.mkdir(parents=True, exist_ok=True)
        save_final(trainer, self.tokenizer, generation, self.directory / "final-model")
        return {
            "steps": done,
            "steps_planned": steps,
            "steps_asked": self.steps_asked,
            "tokens": done * self.tokens_per_step,
            "passes": done * self.tokens_per_step / self.tokens_per_pass,
            "seconds": time.perf_counter() - wall,
            "losses": losses,
        }

    def _parts(self, steps: int) -> list[tuple[int, dict[str, Any]]]:
        low = self.arm.low_rates
        if low is None or steps < 2:
            return [(steps, {})]
        first = min(max(round(low["share"] * steps), 1), steps - 1)
        of_low = {
            "masking": "levels",
            "mask_levels": low["levels"],
            "objective": "simple",
            "lr_scheduler_type": "constant_with_warmup",  # what it learnt is not to settle yet
            "ema_decay": None,
        }
        return [(first, of_low), (steps - first, {})]

    def _arguments(self, steps: int, seed: int | None = None, **changes: Any) -> TrainCommandArguments:
        changes |= {"max_steps": steps}
        seed = self.seed if seed is None else seed
        *_, args = _parse(self.arm, seed, self.report_to, self.directory, **changes)
        args.mask_end_token = self.args.mask_end_token
        return args

    def _trainer(self, model: PreTrainedModel, args: TrainCommandArguments, callbacks: list[Any]) -> DiffusionTrainer:
        trainer = DiffusionTrainer(model, args, processing_class=self.tokenizer, train_dataset=self.rows)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer


def _parse(
    arm: Arm, seed: int, report_to: str, directory: Path, **changes: Any
) -> tuple[ModelArguments, DataArguments, TrainCommandArguments]:
    """The options of an arm through the parser of `train.py`; nothing is saved or evaluated on the way."""
    common = {
        "output_dir": directory / "run",
        "seed": seed,
        "report_to": report_to,
        "run_name": directory.name,
        "bf16": torch.cuda.is_available(),
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 0.02,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    model_args, data_args, args = parse(
        [ModelArguments, DataArguments, TrainCommandArguments], arm.arguments(**common, **changes), "from_scratch"
    )
    show_progress(args)
    return model_args, data_args, args


class _Clock(TrainerCallback):
    """Notes when each step ended, and ends training when its time is over."""

    def __init__(self, stop_after: float | None = None, exact: bool = False) -> None:
        self.begun, self.stop_after, self.exact = time.perf_counter(), stop_after, exact
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()  # a step that is only queued took no time yet
        self.times.append(time.perf_counter())
        if self.stop_after is not None and self.times[-1] - self.begun > self.stop_after:
            control.should_training_stop = True
