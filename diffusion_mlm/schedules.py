"""Schedules: the share of the maskable tokens that is masked at diffusion time t, and how many each step reveals.

Time runs from 0 (clean text) to 1 (fully masked). Every schedule is exactly 0 at t = 0, exactly 1 at t = 1 and
strictly increasing, and every formula below is written in the form that loses no digits near the ends.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

COSINE_OFFSET = 0.008  # the s of Nichol and Dhariwal 2021


@dataclass(frozen=True)
class Schedule:
    """A map from diffusion time to mask rate.

    Args:
        name (`str`): what users type.
        formula (`Callable`): the mask rate at time t.
        slope (`Callable`): its derivative in t.

    >>> cosine = get_schedule("cosine")
    >>> cosine.mask_rate(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    tensor([0.0000, 0.1530, 0.5062, 0.8557, 1.0000])
    """

    name: str
    formula: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def mask_rate(self, t: Tensor) -> Tensor:
        """Share of the maskable tokens that is masked at time `t`, in [0, 1].

        Args:
            t (`torch.Tensor`, floating point, any shape): time in [0, 1]; 0 is clean text, 1 is all `<mask>`.

        Returns:
            `torch.Tensor` of the same shape, dtype and device.

        Raises:
            ValueError: if `t` is not floating point, or any of it lies outside [0, 1] or is NaN.
        """
        _require_time(t)
        # Rounding may leave the formula one unit short of 1 (or above it) where 1 is meant.
        return self.formula(t).clamp(0, 1).where(t < 1, 1)

    def derivative(self, t: Tensor) -> Tensor:
        """d mask_rate / dt at time `t`: never negative, same shape, dtype and device as `t`."""
        _require_time(t)
        return self.slope(t)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """Weight of the summed masked cross-entropy in the likelihood bound: derivative / mask_rate, inf at t = 0.

        It belongs to masks that hide every token independently with probability mask_rate(t), t uniform on [0, 1].
        Source: Sahoo et al. 2024 (MDLM, arXiv:2406.07524), Shi et al. 2024 (MD4, arXiv:2406.04329).
        """
        return self.derivative(t) / self.mask_rate(t)


def _require_time(t: Tensor) -> None:
    if not t.is_floating_point():
        raise ValueError(f"`t` must be a floating point tensor, got {t.dtype}. Convert it with `t.float()`.")
    # On an accelerator the look at the values would stall every training step, so it is for the CPU only.
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
        outside = float(t[~((t >= 0) & (t <= 1))][0])
        raise ValueError(f"`t` must lie in [0, 1], got {outside}; 0 is clean text and 1 is fully masked.")


# linear: mask_rate(t) = t. LLaDA, MDLM's log-linear noise.


def _linear(t: Tensor) -> Tensor:
    return t.clone()


def _linear_slope(t: Tensor) -> Tensor:
    return torch.ones_like(t)


# cosine: mask_rate(t) = 1 - cos^2(a(t)) / cos^2(a(0)) with a(t) = (pi / 2) (t + s) / (1 + s), the squared cosine of
# Nichol and Dhariwal 2021 (arXiv:2102.09672, equation 17), as a product: cos^2 A - cos^2 B = sin(B - A) sin(B + A).


def _cosine(t: Tensor, s: float = COSINE_OFFSET) -> Tensor:
    quarter = math.pi / (2 * (1 + s))
    return torch.sin(quarter * t) * torch.sin(quarter * (t + 2 * s)) / math.cos(quarter * s) ** 2


def _cosine_slope(t: Tensor, s: float = COSINE_OFFSET) -> Tensor:
    # sin(pi (t + s) / (1 + s)) is sin(pi (1 - t) / (1 + s)), which is exactly 0 at t = 1.
    quarter = math.pi / (2 * (1 + s))
    return quarter * torch.sin(2 * quarter * (1 - t)) / math.cos(quarter * s) ** 2


# exponential: e^{-3 (1 - t)}, rescaled so that it starts at exactly 0: (e^{-3 (1 - t)} - e^{-3}) / (1 - e^{-3}).


def _exponential(t: Tensor) -> Tensor:
    return torch.expm1(3 * t) / math.expm1(3)


def _exponential_slope(t: Tensor) -> Tensor:
    return 3 * torch.exp(3 * t) / math.expm1(3)


# maskgit: the quarter cosine of Chang et al. 2022 (arXiv:2202.04200), which MD4 and others call "cosine".


def _maskgit(t: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * t)


def _maskgit_slope(t: Tensor) -> Tensor:
    return math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


# survival: a token survives with probability cos(pi t / 2), what MDLM (arXiv:2406.07524) calls "cosine". Its mean mask
# rate is 1 - 2 / pi, the lowest of all; as a product, 1 - cos A = 2 sin^2(A / 2).


def _survival(t: Tensor) -> Tensor:
    return 2 * torch.sin(math.pi / 4 * t) ** 2


def _survival_slope(t: Tensor) -> Tensor:
    return math.pi / 2 * torch.sin(math.pi / 2 * t)


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("linear", _linear, _linear_slope),
        Schedule("cosine", _cosine, _cosine_slope),
        Schedule("exponential", _exponential, _exponential_slope),
        Schedule("maskgit", _maskgit, _maskgit_slope),
        Schedule("survival", _survival, _survival_slope),
    )
}


def get_schedule(name: str | Schedule) -> Schedule:
    """The schedule called `name`; a `Schedule` is returned as it is.

    Raises:
        ValueError: if there is no such schedule; the message names near ones.
    """
    if isinstance(name, Schedule):
        return name
    if name in SCHEDULES:
        return SCHEDULES[name]
    near = difflib.get_close_matches(str(name).lower(), SCHEDULES, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {name!r}.{guess}")


def unmask_counts(schedule: str | Schedule, num_masked: int, steps: int) -> list[int]:
    """How many masked tokens each denoising step reveals: K = min(steps, num_masked) counts of at least 1.

    With n_k tokens visible after step k of K, and L = `num_masked`,

        n_k = min(max(round(L (1 - mask_rate(1 - k / K))), n_{k-1} + 1), L - (K - k)),    n_0 = 0,

    so every forward reveals something and the counts sum to L.

    Args:
        schedule (`str` or `Schedule`): how the mask rate falls.
        num_masked (`int`): masked tokens at the start, L >= 0.
        steps (`int`): planned number of steps, at least 1; more than L changes nothing.

    Raises:
        ValueError: if `num_masked` is negative or `steps` is not positive, or either is not whole.

    >>> unmask_counts("linear", 32, 8), unmask_counts("cosine", 32, 8)
    ([4, 4, 4, 4, 4, 4, 4, 4], [1, 4, 5, 6, 6, 5, 4, 1])
    """
    _require_whole("num_masked", num_masked, least=0)
    _require_whole("steps", steps, least=1)
    if num_masked == 0:
        return []
    steps = min(steps, num_masked)
    # n_k - k never falls and is capped by the constant L - K, so the recursion is a running maximum.
    k = torch.arange(1, steps + 1)
    ahead = (_planned_visible(schedule, num_masked, steps) - k).cummax(0).values.clamp(0, num_masked - steps)
    return torch.diff(ahead + k, prepend=torch.zeros(1, dtype=torch.int64)).tolist()


def unmask_counts_with_remasking(schedule: str | Schedule, num_masked: int, steps: int) -> list[int]:
    """By how much the number of visible tokens grows in each of exactly `steps` steps, when tokens are remasked.

    Up to `num_masked` steps these are the counts of `unmask_counts`. Beyond, n_k = round(L (1 - mask_rate(1 - k / K)))
    without clamps, so that a step may add nothing: it still replaces what it remasks. The counts sum to `num_masked`.

    >>> unmask_counts_with_remasking("linear", 2, 4)
    [0, 1, 1, 0]
    """
    _require_whole("num_masked", num_masked, least=0)
    _require_whole("steps", steps, least=1)
    if steps <= num_masked:
        return unmask_counts(schedule, num_masked, steps)
    visible = _planned_visible(schedule, num_masked, steps)
    return torch.diff(visible, prepend=torch.zeros(1, dtype=torch.int64)).tolist()


def _planned_visible(schedule: str | Schedule, num_masked: int, steps: int) -> Tensor:
    """round(L (1 - mask_rate(1 - k / K))) for k = 1..K: int64 of shape `(steps,)`, rising to exactly `num_masked`."""
    time_left = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / steps
    return torch.round(num_masked * (1 - get_schedule(schedule).mask_rate(time_left))).long()


def _require_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
