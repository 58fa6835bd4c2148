"""A stream that begins again where it ends, so that a run knows its place by the number of rows alone."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import IterableDataset


class EndlessStream(IterableDataset):
    """Pass after pass over a stream, each with `set_epoch` called, as one pass without end.

    The Trainer takes `max_steps` steps of a stream for one epoch. It can skip to a place in that epoch, and so resume
    exactly, only if the stream does not end before; and a batch may then reach over the end of a pass. What is skipped
    is read again.

    Args:
        dataset (`IterableDataset`): of torch or of the datasets library. It must give the same rows each time that it
            is begun with the same epoch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        dataset = _with_own_epoch(self.dataset)
        for epoch in count():
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            empty = True
            for row in dataset:
                empty = False
                yield row
            if empty:  # nothing there, or more workers than shards
                return


def _with_own_epoch(dataset: Any) -> Any:
    """The same stream with an epoch that no other worker sets: the datasets library shares it between them."""
    if not isinstance(getattr(dataset, "_epoch", None), torch.Tensor):
        return dataset
    own = object.__new__(type(dataset))  # `copy.copy` would share the attributes
    own.__dict__.update(vars(dataset))
    own._epoch = torch.tensor(0)
    return own
