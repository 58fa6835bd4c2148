"""Laws of the mask rate in training other than the uniform one, and the weights that keep the bound unbiased.

With l(u) the mean cross-entropy of a masked token when a share u of the tokens is masked, the bound is the integral of
l over (0, 1]. If u is drawn with density p, `l(u) / p(u)` estimates it without bias wherever p covers (0, 1]: the law
is then importance sampling and a matter of variance alone. Where p covers less, `l(u) / p(u)` over the length of the
support estimates the *mean of l over the support*, which is no bound.

Every law here is a histogram, so that its quantiles and the weight 1 / p are exact, whatever it was made from: times
spread evenly over a batch become rates spread evenly over the law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .binned_means import BinnedMeans

RATE_DISTRIBUTIONS = ("uniform", "clipped", "beta", "importance")
Density: TypeAlias = Callable[[Tensor], Tensor]

# A tenth of the rows keeps a uniform rate under `beta` and `importance`, so that no weight exceeds 10: the defensive
# mixture of Hesterberg 1995 (Technometrics 37, 185-194). Without it a density of 0 at an end has infinite variance.
UNIFORM_SHARE = 0.1
_DENSITY_BINS, _POINTS_PER_BIN = 256, 16


@dataclass(frozen=True)
class RateHistogram:
    """A law of the mask rate whose density is constant in each of K bins.

    Args:
        edges (`torch.Tensor` of shape `(K + 1,)`, float64): rising, in [0, 1].
        masses (`torch.Tensor` of shape `(K,)`, float64): probabilities of the bins up to a common factor.

    Raises:
        ValueError: a mass is negative or not finite, or all are 0.
    """

    edges: Tensor
    masses: Tensor

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.masses).all() and (self.masses >= 0).all() and self.masses.sum() > 0):
            raise ValueError(
                f"`masses` must be finite numbers >= 0 and not all 0, not {self.masses.tolist()}. Check the density."
            )

    @property
    def support(self) -> float:
        """Length of what the law covers; 1 means that the bound is estimated, less that a mean over a part is."""
        return float(self.edges.diff()[self.masses > 0].sum())

    def rate_and_weight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The `t`-quantile of the law, and 1 / density there, divided by the length of the support.

        Args:
            t (`torch.Tensor` of shape `(B,)`, float64): uniform in (0, 1].

        Returns:
            Two `torch.Tensor` of shape `(B,)`: mask rates in (0, 1], and weights whose mean over rates is 1.
        """
        edges, masses = self.edges.to(t.device), self.masses.to(t.device)
        below = torch.nn.functional.pad((masses / masses.sum()).cumsum(0), (1, 0))
        below[-1] = 1
        place = (torch.searchsorted(below, t) - 1).clamp(0, len(masses) - 1)
        share, width = below.diff()[place], edges.diff()[place]
        inside = ((t - below[place]) / share).clamp(0, 1)
        rate = torch.lerp(edges[place], edges[place + 1], inside)  # exactly the upper edge at 1
        return rate, width / share / self.support


def clipped(low: float, high: float) -> RateHistogram:
    """Rates uniform on [low, high]: less variance, and nothing learnt of the rest (BD3-LMs, arXiv:2503.09573).

    Raises:
        ValueError: not `0 <= low < high <= 1`.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"`rate_parameters` of 'clipped' must be 0 <= low < high <= 1, not {[low, high]!r}.")
    return RateHistogram(torch.tensor([low, high], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def beta(a: float, b: float) -> RateHistogram:
    """The Beta(a, b) law in 256 bins, mixed with a tenth of the uniform one: the whole range is covered.

    Raises:
        ValueError: `a` or `b` is not a finite number above 0.
    """
    if not (0 < a < float("inf") and 0 < b < float("inf")):
        raise ValueError(f"`rate_parameters` of 'beta' must be two finite numbers above 0, not {[a, b]!r}.")
    log_factor = torch.lgamma(torch.tensor(a + b)) - torch.lgamma(torch.tensor(a)) - torch.lgamma(torch.tensor(b))

    def density(rate: Tensor) -> Tensor:
        return torch.exp(log_factor.double() + (a - 1) * rate.log() + (b - 1) * torch.log1p(-rate))

    return with_uniform_share(from_density(density))


def from_density(density: Density, bins: int = _DENSITY_BINS) -> RateHistogram:
    """The law of a density on (0, 1), known up to a factor, averaged within each of `bins` equal bins.

    Args:
        density (`Callable`): rates, float64 of shape `(N,)`, to numbers >= 0 of the same shape.
        bins (`int`).

    Raises:
        ValueError: the density gives other shapes, negative numbers, NaN, or 0 everywhere.
    """
    size = bins * _POINTS_PER_BIN
    points = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    values = torch.as_tensor(density(points))
    if values.shape != points.shape:
        raise ValueError(
            f"`rate_distribution` must map rates of shape {tuple(points.shape)} to as many densities, not to "
            f"{tuple(values.shape)}."
        )
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    return RateHistogram(edges, values.double().reshape(bins, _POINTS_PER_BIN).mean(1))


def with_uniform_share(law: RateHistogram, share: float = UNIFORM_SHARE) -> RateHistogram:
    """The mixture of `law`, whose bins must cover [0, 1], with the share `share` of the uniform law."""
    masses = law.masses / law.masses.sum()
    return RateHistogram(law.edges, (1 - share) * masses + share * law.edges.diff())


class ImportanceRates:
    """Rates drawn where the loss is large: density proportional to the root of the mean squared loss at a rate.

    Among independent draws that density has the least variance (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 18,
    who draw diffusion times so). What is squared is the mean cross-entropy of a row's masked tokens; a running mean of
    it is kept for each of 32 bins of the mask rate. Rates are uniform until every bin has seen 10 rows, and the law
    does not change within a global batch, so that `l / p` has the right mean given all that went before.

    The loss of a step is `collect`ed as it comes and counts from the next `update` on, see `BinnedMeans`.
    """

    NUM_BINS, MEMORY, WARM_UP = 32, 50, 10  # rows per bin that the running mean looks back on, and that it waits for

    def __init__(self) -> None:
        self._squares = BinnedMeans(self.NUM_BINS, self.MEMORY)
        self._law = self._make_law()

    def rate_and_weight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """As in `RateHistogram`, for the law that was learnt so far."""
        return self._law.rate_and_weight(t)

    def collect(self, rate: Tensor, loss: Tensor) -> None:
        """Notes rows: `rate`, `loss` (`torch.Tensor` of shape `(B,)`), mask rate and mean cross-entropy in nats."""
        place = (torch.ceil(rate * self.NUM_BINS).long() - 1).clamp(0, self.NUM_BINS - 1)
        self._squares.collect(place, loss.detach().double().square())

    def update(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda local: local) -> None:
        """Learns from what was collected since the last call."""
        self._squares.update(sum_over_processes)
        self._law = self._make_law()

    def _make_law(self) -> RateHistogram:
        edges = torch.arange(self.NUM_BINS + 1, dtype=torch.float64) / self.NUM_BINS
        root = self._squares.mean.sqrt()
        if (self._squares.num_seen < self.WARM_UP).any() or root.sum() == 0:
            root = torch.ones_like(root)
        return with_uniform_share(RateHistogram(edges, root))

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept to go on as if never stopped; call `update` before."""
        return {"mean_square": self._squares.mean.clone(), "rows_seen": self._squares.num_seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._squares.restore(state["mean_square"], state["rows_seen"])
        self._law = self._make_law()


def get_rates(distribution: str | Density, parameters: Sequence[float] = ()) -> RateHistogram | ImportanceRates | None:
    """The law called `distribution`, or that of a density; None for the uniform one.

    Args:
        distribution (`str` or `Callable`): one of `RATE_DISTRIBUTIONS`, or as `from_density` takes it.
        parameters (`Sequence[float]`): low and high of `clipped`, a and b of `beta`; the others have none.

    Raises:
        ValueError: the name is unknown, or the parameters do not belong to it.
    """
    if not callable(distribution) and distribution not in RATE_DISTRIBUTIONS:
        raise ValueError(f"`rate_distribution` must be one of {', '.join(RATE_DISTRIBUTIONS)}, not {distribution!r}.")
    wanted = 2 if distribution in ("clipped", "beta") else 0
    if len(parameters) != wanted:
        raise ValueError(
            f"`rate_parameters` must be {wanted or 'no'} numbers for the rate distribution {distribution!r}, not "
            f"{list(parameters)!r}."
        )
    if callable(distribution):
        return from_density(distribution)
    if distribution == "importance":
        return ImportanceRates()
    if distribution == "uniform":
        return None
    return clipped(*parameters) if distribution == "clipped" else beta(*parameters)
