"""Confidence intervals: of a figure per token, which is a ratio of two sums over texts, and of a share of texts."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor


@dataclass(frozen=True)
class RatioEstimate:
    """A sum of nats divided by a sum of tokens, over n texts.

    Attributes:
        value (`float`): nats per token.
        standard_error (`float`, *optional*): of `value`; None for a single text.
        interval (pair of `float`, *optional*): the confidence interval; None for a single text.
    """

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None


def ratio_estimate(nats: Tensor, tokens: Tensor, confidence: float = 0.95) -> RatioEstimate:
    """`sum(nats) / sum(tokens)` with an interval that takes texts as draws from a population of texts.

    The standard error is that of a ratio estimator, from the residuals `nats - value * tokens` of the texts (Cochran,
    Sampling Techniques, 1977, chapter 6), so that long and short texts may differ; masks drawn anew for every text add
    their noise to it. The interval is Student's with n - 1 degrees of freedom.

    Args:
        nats (`torch.Tensor` of shape `(n,)`), tokens (`torch.Tensor` of shape `(n,)`): of each text.
        confidence (`float`): in (0, 1).

    Raises:
        ValueError: `confidence` lies outside (0, 1), or there is no token.
    """
    _require_confidence(confidence)
    nats, tokens = nats.double().cpu(), tokens.double().cpu()
    n, total = len(nats), float(tokens.sum())
    if total <= 0:
        raise ValueError(f"`tokens` sums to {total:g} over {n} texts: there is nothing to take a mean of.")
    value = float(nats.sum()) / total
    if n < 2:
        return RatioEstimate(value, None, None)
    residuals = nats - value * tokens
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total
    reach = student_quantile((1 + confidence) / 2, n - 1) * error
    return RatioEstimate(value, error, (value - reach, value + reach))


def share_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share of which `count` of `total` independent draws are: in [0, 1], and never a point.

    Wilson's interval, which holds near 0 and 1 too, where the usual one has no width. Source: Wilson 1927, Journal of
    the American Statistical Association 22, 209-212.

    Raises:
        ValueError: `confidence` lies outside (0, 1), or the counts do not satisfy 0 <= count <= total, 1 <= total.

    >>> [round(bound, 3) for bound in share_interval(10, 10)]
    [0.722, 1.0]
    """
    _require_confidence(confidence)
    if not (0 <= count <= total and total >= 1):
        raise ValueError(f"`count` and `total` must satisfy 0 <= count <= total >= 1, not {count!r} of {total!r}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = count / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    reach = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the formula is exactly 0 and 1, and rounding is not.
    return (0.0 if count == 0 else centre - reach), (1.0 if count == total else centre + reach)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's distribution, to 1 % from 3 degrees of freedom on; exact for 1 and 2.

    Source: Abramowitz and Stegun 1964, 26.7.5 (an expansion in 1 / degrees).

    >>> round(student_quantile(0.975, 1), 3), round(student_quantile(0.975, 10), 3)
    (12.706, 2.228)
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        a = 2 * probability - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def group_standard_error(groups: Tensor) -> Tensor:
    """Standard error of the mean over G independent estimates, `(..., G)` to `(...)`."""
    return groups.std(-1) / math.sqrt(groups.size(-1))


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), not {confidence!r}; 0.95 is usual.")
