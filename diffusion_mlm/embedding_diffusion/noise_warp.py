"""A noise schedule that follows what the model knows: training spends its time where context is being learnt."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..binned_means import BinnedMeans
from .noise import knots_by_nats

_AT_AN_END = 1e-6  # as a share of the range


class NoiseWarp:
    """The running mean of the cross-entropy at each noise level, and the schedule whose time goes by it.

    The share of the training tokens that a range of log-SNRs gets is the share of the nats that become known within it
    (time warping: CDCD, arXiv:2211.15089), but for a fifth that goes evenly. A model with context knows a
    text under noise in which the lookup is lost: of the schedule that is made for the lookup more than half lies where
    such a model is right already.

    With stagger the context of a place grows while its own noise goes, and what that tells counts as well: such a
    schedule gives more time to the noisiest levels than the noise alone would have it.

    The loss of a step is `collect`ed as it comes and counts from the next `update` on, see `BinnedMeans`.

    Args:
        knots (`torch.Tensor` of shape `(K,)`): the schedule before anything is learnt; its ends stay.
    """

    NUM_BINS, MEMORY, WARM_UP, EVEN_SHARE = 48, 10_000, 500, 0.2  # memory and warm-up in tokens of a bin

    def __init__(self, knots: Tensor) -> None:
        self.ends = knots.detach().double().cpu()[[-1, 0]]
        self._nats = BinnedMeans(self.NUM_BINS, self.MEMORY)

    def collect(self, log_snr: Tensor, nats: Tensor) -> None:
        """Notes tokens: their log-SNR and cross-entropy, `torch.Tensor` of shape `(N,)`.

        Those at an end count not: with stagger most are there, waiting, or clear, among fewer or more clear ones than
        when their own noise goes.
        """
        low, high = self.ends.tolist()
        share = (log_snr - low) / (high - low)
        place = (share * self.NUM_BINS).long().clamp(0, self.NUM_BINS - 1)
        self._nats.collect(place, nats, (share > _AT_AN_END) & (share < 1 - _AT_AN_END))

    def update(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda local: local) -> None:
        """Learns from what was collected since the last call."""
        self._nats.update(sum_over_processes)

    def knots(self) -> Tensor | None:
        """The schedule that follows from what was learnt, float64; None before every bin has seen 500 tokens."""
        if (self._nats.num_seen < self.WARM_UP).any():
            return None
        nats = self._nats.mean
        at_edges = torch.cat([nats[:1], (nats[:-1] + nats[1:]) / 2, nats[-1:]])
        low, high = self.ends.tolist()
        edges = torch.linspace(low, high, self.NUM_BINS + 1, dtype=torch.float64)
        return knots_by_nats(edges, at_edges, self.EVEN_SHARE)

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept to go on as if never stopped; call `update` before."""
        return {"ends": self.ends.clone(), "mean": self._nats.mean.clone(), "num_seen": self._nats.num_seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.ends = state["ends"].clone()
        self._nats.restore(state["mean"], state["num_seen"])
