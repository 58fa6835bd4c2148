"""A Trainer that pushes: an allow-list instead of its directory, from copies, and no error goes unread."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, TrainOutput

from .generation_config import DiffusionGenerationConfig
from .hub import HubRepository, Published, signed
from .lora import has_lora, merge_lora, merged_size
from .loss_buckets import loss_by_mask_rate
from .model_card import CardFacts, model_card
from .publication import CARD, CONFIG, GENERATION_CONFIG, model_files, training_state_files

logger = logging.getLogger(__name__)

_COPY = "_push-"  # what stands before the name of a directory of copies
_FAILED = "A push failed, and training goes on. %s"


class PushingTrainer(Trainer):
    """`Trainer`, but for what `push_to_hub` sends, and how.

    * The model with its generation settings, its code and a card, from the first push on; never the arguments, which
      hold a token if one was passed. LoRA is merged, and with `ema_decay` it is the mean of the weights, which the
      figures of the card are of. `hub_strategy="checkpoint"` and `"all_checkpoints"` send what a run goes on from
      too, in the same commit and with its manifest: downloaded, the folder is a checkpoint that is resumed exactly.
    * A new repository is private unless `hub_private_repo=False`.
    * What is sent in the background are copies (links where the file system has them), so that the next checkpoint
      changes nothing. A push that fails is reported, and training goes on.

    Attributes:
        card_facts (`dict`): what the card says of the run beside what the Trainer knows, see `CardFacts.summary`.
    """

    card_facts: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed
    _repository: HubRepository | None = None
    _left_over = True  # what a run before may have left has not been removed yet

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, before any training.

        Raises:
            ValueError, NotAllowedError, HubUnavailableError: see `HubRepository`.
        """
        self._pushes: list[Future] = []
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo
        self._repository = HubRepository(name, argument="hub_model_id", token=token)
        self._repository.require_writable()
        self._repository.create(private=private is not False)
        self.hub_model_id = self._repository.id

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, without copies that a run before was killed over, whatever this one pushes."""
        self._remove_left_over()
        return super().train(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "Published | Future[Published] | None":
        """Saves the model to the output directory and pushes it from there; if `blocking`, waits until it is there.

        Raises:
            NotAllowedError, HubUnavailableError: nothing was published; the model is in the output directory.
        """
        if self._repository is None:
            self.init_hf_repo(token=kwargs.get("token"))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero() or self._repository is None:
            return None
        self._finish_current_push()
        made = self._make_model()
        files = self._files_of(str(made or self.args.output_dir), in_progress=False)
        push = partial(self._repository.publish, files, commit_message, revision=revision or self.args.hub_revision)
        if made is not None:
            push = partial(_push_and_remove, push, made)
        return push() if blocking else self._repository.api.run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END or self._repository is None:
            return
        self._report_pushes()
        if self._pushes and not self.args.hub_always_push:
            logger.info("Step %d is not pushed: an earlier push is not done yet.", self.state.global_step)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            files, copies = self._copies_of(checkpoint_folder)
        except (ValueError, OSError, SafetensorError) as error:
            logger.warning(_FAILED, error)
            return
        message = f"Training in progress, step {self.state.global_step}"
        push = partial(self._repository.publish, files, message, revision=self.args.hub_revision)
        self._pushes.append(self._repository.api.run_as_future(_push_and_remove, push, copies))

    def _copies_of(self, checkpoint_folder: str) -> tuple[dict[str, bytes | Path], Path]:
        made = self._make_model()
        files = self._files_of(str(made or checkpoint_folder), in_progress=True)
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            folder = "last-checkpoint" if last else Path(checkpoint_folder).name
            files |= training_state_files(checkpoint_folder, folder)
        copies = made or self._new_directory()
        return {name: _copy(of, copies / str(at)) for at, (name, of) in enumerate(files.items())}, copies

    def _new_directory(self) -> Path:
        self._remove_left_over()
        output = Path(str(self.args.output_dir))
        output.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_COPY, dir=output))

    def _remove_left_over(self) -> None:
        """Removes the copies of a run that was killed, before there are any of this one."""
        if self._left_over and self.is_world_process_zero():
            for left in Path(str(self.args.output_dir)).glob(f"{_COPY}*"):
                shutil.rmtree(left, ignore_errors=True)
        self._left_over = False

    @contextmanager
    def _weights_to_push(self) -> Iterator[bool]:
        """Within it the model has the weights that are pushed; gives whether those are others than a checkpoint's."""
        yield False

    def _make_model(self) -> Path | None:
        """A new directory with the model as it is pushed, or None where checkpoints hold just that."""
        model: Any = self.accelerator.unwrap_model(self.model)
        with self._weights_to_push() as others:
            if not others and not has_lora(model):
                return None
            directory = self._new_directory()
            try:
                merge_lora(model).save_pretrained(directory)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(str(directory))
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
        return directory

    def _finish_current_push(self) -> None:
        for push in getattr(self, "_pushes", []):
            push.exception()  # waits
        self._report_pushes()

    def _report_pushes(self) -> None:
        """Says of every push that is done how it ended, and forgets it."""
        done = [push for push in getattr(self, "_pushes", []) if push.done()]
        for push in done:
            self._pushes.remove(push)
            if (error := push.exception()) is not None:
                logger.warning(_FAILED, " ".join(str(error).split()))

    def _files_of(self, directory: str, in_progress: bool) -> dict[str, bytes | Path]:
        files = model_files(directory, "output_dir")
        settings = getattr(self.accelerator.unwrap_model(self.model), "generation_config", None)
        if isinstance(settings, DiffusionGenerationConfig) and not (Path(directory) / GENERATION_CONFIG).is_file():
            files[GENERATION_CONFIG] = settings.to_json_string(use_diff=False).encode()
        card = Path(directory) / CARD
        files[CARD] = card if card.is_file() and not in_progress else self._card(files[CONFIG], in_progress)
        return files

    def _card(self, config: Any, in_progress: bool) -> bytes:
        evaluation: dict[str, Any] = next((log for log in reversed(self.state.log_history) if "eval_loss" in log), {})
        summary = {
            "steps": self.state.global_step,
            "nelbo_nats_per_token": evaluation.get("eval_loss"),
            "eval_tokens": evaluation.get("eval_num_tokens"),
            "draws": self.args.eval_draws,
            "loss_by_mask_rate": loss_by_mask_rate(evaluation),
            **self.card_facts,
        }
        facts = CardFacts(
            str(self.hub_model_id),
            json.loads(config),
            merged_size(self.model),
            summary,
            in_progress=in_progress,
            mask_token=str(getattr(self.processing_class, "mask_token", "<mask>")),
        )
        return signed(model_card(facts)).encode()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves without the token, which `training_args.bin` would hold in clear."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token


def _push_and_remove(push: Callable[[], Published], copies: Path) -> Published:
    try:
        return push()
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _copy(content: bytes | Path, target: Path) -> bytes | Path:
    if isinstance(content, bytes):
        return content
    try:
        os.link(content, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(content, target)
    return target
