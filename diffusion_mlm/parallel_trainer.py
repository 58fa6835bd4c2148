"""The Trainer's side of several processes: how rows and weights are divided among them."""

import logging
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import has_length

from .data_sampler import WholeBatchSampler
from .data_stream import has_shards_for_all, loader_of_own_shards
from .sharding import fsdp_was_asked_for, require_sharding, shard_model

logger = logging.getLogger(__name__)


class ParallelTrainer(Trainer):
    """A `Trainer` whose steps are whole global batches, whatever the number of processes.

    * Each epoch is cut to whole global batches, others each time. Streams are divided by shards where there are enough
      (`data_stream`); in evaluation each row counts once, of streams too.
    * With FSDP2 the layers of the model are divided (`sharding`).
    """

    _streamed_eval: tuple[Any, list[Any]] = (None, [])

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if fsdp_was_asked_for(self.args):
            state = self.accelerator.state
            require_sharding(getattr(state, "fsdp_plugin", None), state.distributed_type.value)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            shard_model(self.model, self.accelerator.state.fsdp_plugin)  # before the optimizer takes its parameters
        return super()._prepare_for_training(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if not has_length(dataset) or strategy not in ("random", "sequential"):
            return super()._get_train_sampler(train_dataset)
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = WholeBatchSampler(len(dataset), rows_per_step, seed, shuffle=strategy == "random")
        if sampler.num_left_out:
            logger.info(
                "Each epoch leaves out %d of %d rows, others each time, so that it is made of whole batches of %d.",
                sampler.num_left_out,
                len(dataset),
                rows_per_step,
            )
        return sampler

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's, but for a stream with shards for every process: see `data_stream`."""
        if self.train_dataset is not None and has_shards_for_all(self.train_dataset, self.accelerator.num_processes):
            return loader_of_own_shards(self.train_dataset, self.data_collator, self.args, self.accelerator)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The Trainer's; of a stream, the rows are kept, so that each is counted once."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        if chosen is None or has_length(chosen):
            return super().get_eval_dataloader(eval_dataset)
        if chosen is not self._streamed_eval[0]:
            self._streamed_eval = (chosen, list(chosen))
        return super().get_eval_dataloader(self._streamed_eval[1])

    def _require_rows(self, here: bool, device: torch.device) -> None:
        """Stops all processes if one has nothing to read in a stream, where the others would wait for it."""
        if self.accelerator.num_processes == 1 or has_length(self.train_dataset):
            return
        without = int(self.accelerator.reduce(torch.tensor(int(not here), device=device), reduction="sum"))
        if without:
            raise ValueError(
                f"`train_dataset` is a stream that {without} of {self.accelerator.num_processes} processes get no row "
                f"of: give it shards (files) that are not empty, or start fewer processes."
            )
