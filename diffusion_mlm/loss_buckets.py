"""The loss by mask rate: what a training run collects between two logs, and the names that logs have for it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .evaluation.likelihood import NUM_BUCKETS, bucket_of

BY_MASK_RATE = "loss_mask_rate_"


class LossBuckets:
    """Sums of the mean losses of rows, by the bucket of their mask rate.

    Args:
        name (`str`): what logs call them.
    """

    def __init__(self, name: str = BY_MASK_RATE) -> None:
        self._name = name
        self._sums = torch.zeros(2, NUM_BUCKETS, dtype=torch.float64)  # nats, rows

    def add(self, mask_rate: Tensor, nats: Tensor) -> None:
        """Collects rows; nothing waits for the device.

        Args:
            mask_rate (`torch.Tensor` of shape `(B,)`, in (0, 1]), nats (`torch.Tensor` of shape `(B,)`, float64).
        """
        self._sums = self._sums.to(nats.device)
        self._sums.index_add_(1, bucket_of(mask_rate), torch.stack([nats, torch.ones_like(nats)]))

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The logs of all processes since the last call; `reduce` sums a tensor over them."""
        nats, counts = reduce(self._sums)
        self._sums = torch.zeros_like(self._sums)
        return bucket_logs("", nats, counts, self._name)


def bucket_logs(prefix: str, nats: Tensor, counts: Tensor, name: str = BY_MASK_RATE) -> dict[str, float]:
    """`{"loss_mask_rate_0.1": ...}` with the upper end of each bucket of mask rates that was seen."""
    width = 1 / NUM_BUCKETS
    return {
        f"{prefix}{name}{(index + 1) * width:.1f}": float(nats[index] / counts[index])
        for index in range(NUM_BUCKETS)
        if counts[index] > 0
    }


def loss_by_mask_rate(metrics: Mapping[str, float]) -> list[list[float]]:
    """Pairs of upper end and nats of the buckets in the metrics of an evaluation.

    >>> loss_by_mask_rate({"eval_loss": 2.0, "eval_loss_mask_rate_0.1": 1.5, "eval_loss_mask_rate_1.0": 3.0})
    [[0.1, 1.5], [1.0, 3.0]]
    """
    prefix = f"eval_{BY_MASK_RATE}"
    return [[float(name.removeprefix(prefix)), nats] for name, nats in metrics.items() if name.startswith(prefix)]
