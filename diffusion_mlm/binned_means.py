"""Running means of what training has shown, one for each bin of a mask rate or a noise level."""

from collections.abc import Callable

import torch
from torch import Tensor


class BinnedMeans:
    """Means in each of `num_bins` bins: of all values at first, later of about the last `memory` of a bin.

    A step's values are `collect`ed as they come and count from the next `update` on. Every process calls that with a
    sum over processes, so that all know the same.

    Args:
        num_bins (`int`).
        memory (`int`): values of a bin that its mean looks back on.
    """

    def __init__(self, num_bins: int, memory: int) -> None:
        self.memory = memory
        self.mean = torch.zeros(num_bins, dtype=torch.float64)
        self.num_seen = torch.zeros(num_bins, dtype=torch.float64)
        self._pending = torch.zeros(2, num_bins, dtype=torch.float64)

    def collect(self, place: Tensor, value: Tensor, counts: Tensor | None = None) -> None:
        """Notes values: `place`, `value` (`torch.Tensor` of shape `(N,)`), the bin of each and what it is.

        `counts` (`torch.BoolTensor` of shape `(N,)`, *optional*) leaves out the others.
        """
        one = torch.ones_like(value, dtype=torch.float64) if counts is None else counts.double()
        both = torch.stack([value.detach().double() * one, one])
        self._pending = self._pending.to(place.device).index_add(1, place, both)

    def update(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda local: local) -> None:
        """Learns from what was collected since the last call."""
        total, count = sum_over_processes(self._pending).cpu()
        self._pending = torch.zeros_like(self._pending)
        new = count > 0
        self.num_seen += count
        # It forgets at the same pace however values come in batches.
        pace = torch.maximum(1 - (1 - 1 / self.memory) ** count, count / self.num_seen.clamp(min=1))
        self.mean[new] = torch.lerp(self.mean, total / count, pace)[new]

    def restore(self, mean: Tensor, num_seen: Tensor) -> None:
        """Goes on from an `update` of before."""
        self.mean, self.num_seen = mean.clone(), num_seen.clone()
        self._pending = torch.zeros_like(self._pending)
