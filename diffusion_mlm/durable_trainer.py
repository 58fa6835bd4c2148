"""`DurableTrainer`: the Trainer of transformers, for runs that are killed, stopped, out of disk or out of memory."""

import contextlib
import copy
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, has_length

from .endless_stream import EndlessStream
from .errors import CheckpointError, SaveError, TrainingInterruptedError, TrainingMemoryError
from .interruption import Interruption, keep_worker_through_signals
from .memory_split import memory_advice, smaller_split
from .modeling import unwrap
from .output_directory import require_space, require_writable
from .run_facts import differences, run_facts
from .run_lock import run_lock
from .sealed_checkpoints import (
    UnsealedError,
    abandon_save,
    begin_save,
    checkpoints_in,
    newest_complete,
    read_facts,
    replace_directory,
    rotate,
    seal,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
# What a manifest holds beside the facts: it tells what a run has been through, and decides nothing.
_INEXACT, _SECONDS = "resumed inexactly", "train seconds"
_SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


class DurableTrainer(Trainer):
    """`Trainer` with checkpoints that are complete or absent, and runs that can end at any moment.

    What differs:

    * Each checkpoint is sealed by a manifest, written last (`sealed_checkpoints`). Rotation goes by step number and
      never removes the newest or the best. A save that fails is removed, and the error names the last good one.
    * `train(resume_from_checkpoint=True)` takes the newest complete checkpoint and sets damaged ones aside; `"auto"`
      does so too, and begins anew where there is none. A path is used as it is or refused. Either is refused if
      the run differs in anything that decides the weights (`run_facts`), unless `args.allow_inexact_resume`.
    * SIGTERM and Ctrl-C save at the end of the step; `train` then raises `TrainingInterruptedError`.
    * One run at a time uses `output_dir`.
    * A stream is read pass after pass without a seam, so that resuming is exact in every pass.
    * A step that does not fit into memory raises `TrainingMemoryError`, which names the settings that would;
      `auto_find_batch_size` takes them, so that the global batch stays, where the stock one shrinks it.
    * `save_model` to a new directory: the directory appears when it is complete.

    Attributes:
        inexact_resumes (`list[str]`): what differed whenever this run was resumed inexactly.
        train_seconds (`float`): how long the training that led to the model took, over all parts of a resumed run;
            evaluation and saving included, steps that were lost and made again once.
    """

    # Set by the Trainer, whose types are not read.
    control: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` must be False, not True: signals are saved for already, with the step "
                "complete, which that callback does not wait for."
            )
        self._makes_optimizer = self.optimizer is None
        self._limit = self.args.save_total_limit
        self._facts: dict[str, Any] | None = None
        self.inexact_resumes: list[str] = []
        self.train_seconds = self._seconds_before = 0.0
        self._began = time.monotonic()
        self._last_sealed: Path | None = None
        self._interruption = Interruption()
        self.add_callback(self._interruption)

    # Several processes

    def _any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process; all of them ask at the same place."""
        if self.args.world_size == 1:
            return flag
        count = self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device), reduction="sum")
        return bool(count > 0)

    def _once(self, action: Callable[[], T]) -> T | None:
        """Does something in the process that saves; if it fails there, it fails in all."""
        result, error = None, None
        if self.args.should_save:
            try:
                result = action()
            except Exception as caught:
                error = caught
        if self._any(error is not None):
            raise error or SaveError("Another process could not go on; its message says why.")
        return result

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, from the newest complete checkpoint (True), from it or anew ("auto"), or from a path.

        Raises:
            CheckpointError: there is nothing to resume from, or it is damaged or of another run.
            OutputDirectoryError: another run uses `output_dir`, or it cannot be written to.
            SaveError: there is no room for checkpoints, or one could not be written.
            TrainingInterruptedError: a signal came; a checkpoint was saved.
            TrainingMemoryError: a step does not fit into memory.
        """
        self._facts, self._last_sealed, self.inexact_resumes = None, None, []
        self._began, self._seconds_before = time.monotonic(), 0.0
        if self.args.auto_find_batch_size and self.args.world_size > 1:
            raise ValueError(
                "`auto_find_batch_size` must be False with several processes: one that runs out of memory leaves the "
                "others waiting. Set `per_device_train_batch_size` and `gradient_accumulation_steps`."
            )
        if self.args.auto_find_batch_size and self.is_fsdp_enabled:
            raise ValueError(
                "`auto_find_batch_size` must be False with `fsdp`: weights that are sharded cannot begin again. Set "
                "`per_device_train_batch_size` and `gradient_accumulation_steps`."
            )
        output = Path(str(self.args.output_dir))
        with contextlib.ExitStack() as stack:
            self._once(lambda: self._take_directory(output, stack))
            checkpoint = self._checkpoint_to_resume(output, resume_from_checkpoint)
            stack.enter_context(self._interruption)
            stack.enter_context(self._without_stock_rotation())
            result = self._train_within_memory(checkpoint, *args, **kwargs)
            if self._interruption.came(wait=True) and not self._interruption.acted:
                self._save_checkpoint(self.model, trial=None)  # the signal came after the last step
                self._interruption.acted = True
        self.train_seconds = self._seconds()
        if self._interruption.acted:
            raise self._interrupted()
        return result

    def _take_directory(self, output: Path, stack: contextlib.ExitStack) -> None:
        require_writable(output)
        stack.enter_context(run_lock(output))
        if self.args.save_strategy != "no":
            require_space(output, self.model, self.args.save_total_limit)

    @contextlib.contextmanager
    def _without_stock_rotation(self) -> Iterator[None]:
        """Hides the limit from the Trainer, whose rotation goes by the clock and takes any `checkpoint-*`."""
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = self._limit

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _interrupted(self) -> TrainingInterruptedError:
        signum = int(self._interruption.signum or 0)
        return TrainingInterruptedError(
            f"stopped by a signal after step {self.state.global_step}, which is saved in {self._last_sealed}. Go on "
            f"with `--resume-from-checkpoint true`.",
            signum,
        )

    def _train_within_memory(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> TrainOutput:
        automatic, self.args.auto_find_batch_size = self.args.auto_find_batch_size, False
        start = None
        if automatic and self._makes_optimizer:  # another's optimizer cannot be made anew
            start = (copy.deepcopy(self.model.state_dict()), torch.get_rng_state())
        try:
            while True:
                try:
                    return super().train(checkpoint, *args, **kwargs)
                except RuntimeError as error:
                    if not should_reduce_batch_size(error):
                        raise
                    advice = memory_advice(self.args, self.state.global_step + 1)
                    if start is None or smaller_split(self.args) is None:
                        raise TrainingMemoryError(advice) from error
                checkpoint = self._begin_again(start, checkpoint)
        finally:
            self.args.auto_find_batch_size = automatic

    def _begin_again(self, start: tuple[dict[str, Any], torch.Tensor], checkpoint: str | None) -> str | None:
        """Takes smaller pieces of the same global batch; returns the checkpoint to go on from."""
        rows, steps = smaller_split(self.args) or (1, 1)
        self._split_batch(rows, steps)
        logger.warning(
            "Out of memory at step %d. Goes on with %s %d and %s %d: the same global batch.",
            self.state.global_step + 1,
            *(_SPLIT[0], rows, _SPLIT[1], steps),
        )
        self.model.load_state_dict(start[0])
        torch.set_rng_state(start[1])
        self.model.zero_grad(set_to_none=True)
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None
        return str(self._last_sealed) if self._last_sealed else checkpoint

    def _split_batch(self, rows: int, steps: int) -> None:
        self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps = rows, steps
        self._train_batch_size = self.args.train_batch_size
        self._facts = None

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        if kwargs.get("is_training") and isinstance(dataset, IterableDataset) and not has_length(dataset):
            dataset = EndlessStream(dataset)
        loader = super()._get_dataloader(dataset, *args, **kwargs)
        inner = getattr(loader, "base_dataloader", loader)
        if inner.num_workers:
            inner.worker_init_fn = partial(keep_worker_through_signals, initialize=inner.worker_init_fn)
        return loader

    # Resuming

    def run_facts(self) -> dict[str, Any]:
        """What decides the weights of this run, as JSON; a checkpoint of other facts is refused."""
        return run_facts(self.args, self.model, self.processing_class, self.train_dataset)

    def _own_facts(self) -> dict[str, Any]:
        if self._facts is None:
            self._facts = self.run_facts()
        return self._facts

    def _checkpoint_to_resume(self, output: Path, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None

        def choose() -> tuple[str | None, dict[str, Any]]:
            if wanted is not True and wanted != "auto":
                return str(wanted), self._facts_to_go_on(Path(str(wanted)))
            found = newest_complete(output)
            if found is None and wanted is True:
                raise CheckpointError(
                    f"`resume_from_checkpoint` found no complete checkpoint in {str(output)!r}. Leave it out to begin."
                )
            return (str(found), self._facts_to_go_on(found)) if found else (None, {})

        chosen = [self._once(choose)]
        if self.args.world_size > 1:
            broadcast_object_list(chosen)
        path, facts = chosen[0] or (None, {})
        if path is None:
            logger.info("No checkpoint in %s: begins anew.", output)
            return None
        self.inexact_resumes, self._seconds_before = facts.get(_INEXACT, []), facts.get(_SECONDS, 0.0)
        if self._may_take_split(facts):
            self._split_batch(*(facts[name] for name in _SPLIT))
        logger.info("Resumes from %s.", path)
        return path

    def _facts_to_go_on(self, checkpoint: Path) -> dict[str, Any]:
        """The facts of a checkpoint that this run may go on from.

        Raises:
            CheckpointError: it is damaged or of another run, and `allow_inexact_resume` does not help.
        """
        allowed = getattr(self.args, "allow_inexact_resume", False)
        if not checkpoint.is_dir():
            raise CheckpointError(f"`resume_from_checkpoint` is {str(checkpoint)!r}, and there is no such directory.")
        try:
            facts = read_facts(checkpoint)
        except CheckpointError as error:
            unsealed = isinstance(error, UnsealedError)
            if not (allowed and unsealed):
                remedy = "Add `allow_inexact_resume` to use it unchecked" if unsealed else "Name another one"
                raise CheckpointError(
                    f"`resume_from_checkpoint` {str(checkpoint)!r} cannot be used: {error}. {remedy}, or True for the "
                    f"newest complete one."
                ) from None
            facts, found = {}, [f"{checkpoint.name} has no manifest and was not checked"]
        else:
            before = {name: value for name, value in facts.items() if name not in (_INEXACT, _SECONDS)}
            found = self._missing_files(checkpoint) + differences(before, self._expected(facts))
        if found and not allowed:
            raise CheckpointError(
                f"`resume_from_checkpoint` {str(checkpoint)!r} is of another run: {'; '.join(found)}. Use its "
                f"settings, or add `allow_inexact_resume` to go on to weights that no unbroken run would end with."
            )
        if found:
            logger.warning("Resumes inexactly from %s: %s.", checkpoint, "; ".join(found))
            facts = {**facts, _INEXACT: [*facts.get(_INEXACT, []), *found]}
        return facts

    def _expected(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of this run, with the split of its global batch that a checkpoint has, if it may take that."""
        own = dict(self._own_facts())
        if self._may_take_split(facts):
            own.update((name, facts[name]) for name in _SPLIT)
        return own

    def _may_take_split(self, facts: dict[str, Any]) -> bool:
        own = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return self.args.auto_find_batch_size and own == facts.get(_SPLIT[0], 0) * facts.get(_SPLIT[1], 0)

    def _missing_files(self, checkpoint: Path) -> list[str]:
        """What an exact run needs and a checkpoint with `save_only_model` lacks; the stock Trainer does without."""
        names = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*")]
        size = self.args.world_size
        states = [f"rng_state_{rank}.pth" for rank in range(size)] if size > 1 else ["rng_state.pth"]
        needed = {name: name in names for name in ("trainer_state.json", "scheduler.pt", *states)}
        needed["optimizer.pt"] = any("optim" in name for name in names)
        return [f"it holds no {name}" for name, there in needed.items() if not there]

    # Saving

    def save_extras(self, directory: Path) -> None:
        """For subclasses: writes files of their own into a checkpoint before it is sealed."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        error: Exception | None = None
        try:
            self._once(lambda: begin_save(directory))
            super()._save_checkpoint(model, trial)
            self.save_extras(directory)
        except Exception as caught:
            error = caught
        if not self._any(error is not None):
            try:
                history = {_INEXACT: self.inexact_resumes, _SECONDS: round(self._seconds(), 3)}
                self._once(lambda: seal(directory, {**self._own_facts(), **history}))
            except Exception as caught:
                error = caught
        if self._any(error is not None):
            if self.args.should_save:
                abandon_save(directory)
            raise self._explained(error, directory)
        self._last_sealed = directory
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(directory))
        limit = self.args.save_total_limit if self.args.save_total_limit is not None else self._limit
        self._once(lambda: rotate(directory.parent, limit, self.state.best_global_step))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing where the Trainer wants it: a push waits for the files of all processes, and for the seal."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Weights that are one with others are stored once, and not missing."""
        tied = getattr(unwrap(self.model), "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Also True after a signal: with `save_strategy="best"` only then is anything saved."""
        return super()._determine_best_metric(*args, **kwargs) or self._interruption.acted

    def _explained(self, error: Exception | None, directory: Path) -> Exception:
        """What a failed save is reported as: torch and safetensors say of a full disk only where they noticed."""
        if isinstance(error, SaveError) or not isinstance(error, (OSError, RuntimeError, SafetensorError, type(None))):
            return error
        last = next((str(path) for _, path in checkpoints_in(directory.parent)), None)
        good = f"{last} is complete: make room, then resume from it" if last else "No checkpoint was saved before"
        reason = " ".join(str(error or "another process failed").split())
        explained = SaveError(f"{directory} could not be saved ({reason}); what was written is removed. {good}.")
        explained.__cause__ = error
        return explained

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`; a directory that is not there yet appears complete or not at all."""
        target = Path(str(output_dir or self.args.output_dir))
        if not _internal_call and not self.args.push_to_hub and not target.exists():
            fresh = target.with_name(f"{target.name}.tmp-{os.getpid()}")
            try:
                super().save_model(str(fresh), _internal_call=True)
                self._once(lambda: replace_directory(fresh, target))
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            return
        error: Exception | None = None
        try:
            super().save_model(output_dir, _internal_call)
        except Exception as caught:
            error = caught
        # Here, since the Trainer has a barrier right after, at which the others would wait for ever.
        if self._any(error is not None):
            raise error or SaveError("another process failed")
