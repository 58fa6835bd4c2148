"""What happens while training goes on: samples after each evaluation, and short log lines."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback

from .generation import generate
from .generation_config import DiffusionGenerationConfig
from .sharding import is_sharded

logger = logging.getLogger(__name__)


class SampleTextCallback(TrainerCallback):
    """Continues some prefixes after each evaluation, with the same seed each time, and logs the texts.

    Args:
        tokenizer: of the model.
        prefixes (`list[str]`): what is continued.
        generation_config (`DiffusionGenerationConfig`, *optional*): how.
        seed (`int`): of the samples; training randomness is not touched.

    Attributes:
        log (`Callable[[dict[str, str]], None]`, *optional*): is given the texts as `eval_sample_1`, ...; set it to
            `trainer.log`, and the history and every tracker of `report_to` have them too.
    """

    log: Callable[[dict[str, Any]], None] | None = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefixes: list[str],
        generation_config: DiffusionGenerationConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.prefixes, self.seed = tokenizer, prefixes, seed
        self.generation_config = generation_config or DiffusionGenerationConfig()

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if model is None or not self.prefixes or not (state.is_world_process_zero or is_sharded(model)):
            return
        was_training = model.training
        try:
            output = generate(model, self.tokenizer, self.prefixes, self.generation_config, seed=self.seed)
        except ValueError as error:  # a prefix too long for the model is no reason to lose a training run
            logger.warning("No sample at step %d: %s", state.global_step, error)
            return
        finally:
            model.train(was_training)
        if not state.is_world_process_zero:  # it only lent its part of the weights
            return
        for text in output.texts:
            logger.info("step %d writes: %s", state.global_step, " ".join(text.split()))
        if self.log is not None:
            self.log({f"eval_sample_{number}": text for number, text in enumerate(output.texts, start=1)})


class LastEvaluationCallback(TrainerCallback):
    """Keeps what the last evaluation in training found, so that the same model need not be evaluated twice."""

    def __init__(self) -> None:
        self._step, self._metrics = -1, dict[str, float]()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        self._step, self._metrics = state.global_step, dict(metrics or {})

    def of_the_end(self, args: Any, state: Any) -> dict[str, float]:
        """The metrics of the model that training ended with, or nothing if that was not the last to be evaluated."""
        went_back = args.load_best_model_at_end and state.best_global_step != state.global_step
        return self._metrics if self._step == state.global_step and not went_back else {}


class LogLineCallback(ProgressCallback):
    """The progress bar of transformers (none with `disable_tqdm`), and each log as one line, no dictionary."""

    SHOWN = ("loss", "eval_loss", "grad_norm", "learning_rate", "tokens_per_second")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        parts = [f"{name} {float(logs[name]):.4g}" for name in self.SHOWN if logs and name in logs]
        if parts and state.is_world_process_zero:
            line = f"step {state.global_step:>6}  {'  '.join(parts)}"
            if self.training_bar is not None:
                self.training_bar.write(line)
            else:
                logger.info(line)


class LogFileCallback(TrainerCallback):
    """Appends each log to a file as it comes, one JSON object a line, so that a run can be watched from elsewhere.

    A run that begins writes the file anew; one that is resumed drops the lines of steps that it will make again.

    Args:
        path: of the file; its directory exists.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        # What follows the last line break was being written when the run before was killed.
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        kept = [line for line in lines if state.global_step and json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
