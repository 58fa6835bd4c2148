"""The order of rows in training: shuffled by (seed, epoch) alone, cut to whole global batches."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from .randomness import make_key


class WholeBatchSampler(Sampler[int]):
    """Shuffles `num_rows` rows anew in every epoch and yields as many as fill whole global batches.

    An epoch whose last global batch is short would make training depend on the number of processes, since each pads or
    drops in its own way. The few rows left out differ from epoch to epoch.

    Args:
        num_rows (`int`): rows of the data set.
        global_batch (`int`): rows per optimizer step, over all processes and accumulation steps.
        seed (`int`): the order is a function of (`seed`, epoch).
        shuffle (`bool`): False keeps the order of the data set.

    Raises:
        ValueError: there are fewer rows than one global batch.
    """

    def __init__(self, num_rows: int, global_batch: int, seed: int, shuffle: bool = True) -> None:
        if num_rows < global_batch:
            raise ValueError(
                f"The training set has {num_rows} rows, fewer than one global batch of {global_batch} (batch size x "
                f"accumulation steps x processes). Use more text, shorter rows or a smaller "
                f"`per_device_train_batch_size`."
            )
        self.num_rows, self.global_batch, self.seed, self.shuffle = num_rows, global_batch, seed, shuffle
        self.num_left_out = num_rows % global_batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows - self.num_left_out

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(self.num_rows)
        if self.shuffle:
            generator = torch.Generator().manual_seed(make_key("epoch", self.seed, self.epoch) & (2**63 - 1))
            order = torch.randperm(self.num_rows, generator=generator)
        return iter(order[: len(self)].tolist())
