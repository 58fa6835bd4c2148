"""The Trainer's side of `ema_decay`, and what a run remembers in its checkpoints beside weights and optimizer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from .modeling import unwrap
from .run_state import load_run_state, save_run_state
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class AveragingTrainer(Trainer):
    """A `Trainer` that with `ema_decay` evaluates, and leaves in the model, a running mean of the weights.

    Checkpoints hold the weights themselves as `model.safetensors`, so that training goes on from them, and the mean
    beside them. Where `allow_inexact_resume` lets a run go on from one without a mean, it begins with the next step.

    Raises:
        ValueError: weights are sharded over processes, which leaves nobody the whole of them; or a checkpoint lacks
            what this run remembers.
    """

    _average: WeightAverage | None = None

    def _run_state(self) -> dict[str, Any]:
        """What goes into every checkpoint, by the name of the setting it belongs to; called on every process."""
        return {} if self._average is None else {"ema_decay": self._average}

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.args.ema_decay:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    f"`ema_decay` is {self.args.ema_decay:g}, but the weights are sharded (FSDP, DeepSpeed) and no "
                    f"process has them all: set it to 0, or train without sharding."
                )
            if self._average is not None:
                self.remove_callback(self._average)
            self._average = WeightAverage(unwrap(self.model), self.args.ema_decay)
            self.add_callback(self._average)
        if resume_from_checkpoint is not None:
            self._resume_run_state(resume_from_checkpoint)
        return prepared

    def _resume_run_state(self, checkpoint: str) -> None:
        absent = ", ".join(f"`{name}`" for name in load_run_state(checkpoint, self._run_state()))
        if absent and not getattr(self.args, "allow_inexact_resume", False):
            raise ValueError(
                f"The checkpoint {checkpoint} was saved without {absent}: go on with the settings it began with, "
                f"start a new run, or add `allow_inexact_resume` to begin with a fresh state."
            )
        if absent:
            logger.warning("The checkpoint %s was saved without %s, which begins anew here.", checkpoint, absent)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self._run_state()
        if self.args.should_save:
            save_run_state(output_dir, state)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            absent = load_run_state(str(self.state.best_model_checkpoint), {"ema_decay": self._average})
            best = Path(str(self.state.best_model_checkpoint))
            if absent and best.is_dir():  # saved before an inexact resume: its weights themselves were the best
                self._average.restart()

    @contextmanager
    def _weights_to_push(self) -> Iterator[bool]:
        """As in `PushingTrainer`: the mean, if there is one, since that is what was evaluated."""
        if self._average is None or self._average.averaged.n_averaged == 0:
            yield False
            return
        with self._average.within(unwrap(self.model)):
            yield True

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; the mean of the weights, if there is one, takes their place at the end."""
        output = super().train(*args, **kwargs)
        if self._average is not None:
            self._average.copy_to(unwrap(self.model))
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """`Trainer.evaluate`, of the mean of the weights if there is one, callbacks included."""
        if self._average is None or self._average.averaged.n_averaged == 0:
            return super().evaluate(*args, **kwargs)
        with self._average.within(unwrap(self.model)):
            return super().evaluate(*args, **kwargs)
