"""The forward process: which tokens of clean text are replaced by `<mask>`.

A row loses a share of its maskable tokens. The share comes from a diffusion time `t` in (0, 1] and a schedule; which
tokens go is decided by random numbers keyed by row, so that a mask is a pure function of its key: batch size, workers,
processes and padding change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .randomness import fold_in, make_key, uniform
from .rate_distributions import Density, ImportanceRates, RateHistogram, get_rates
from .schedules import Schedule, get_schedule

MASKINGS = ("exact", "bernoulli", "levels")
GUIDE_LEVELS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)

# One stream of random numbers per purpose, so that none disturbs another.
_POSITION_STREAM, _PREFIX_STREAM, _SPAN_START_STREAM, _TIME_STREAM = 1, 2, 3, 4


@dataclass(frozen=True)
class CorruptedBatch:
    """Clean rows after the forward process. B rows of L tokens.

    Attributes:
        input_ids (`torch.Tensor` of shape `(B, L)`): the tokens with `<mask>` at the masked positions.
        targets (`torch.Tensor` of shape `(B, L)`): the clean tokens.
        is_masked (`torch.BoolTensor` of shape `(B, L)`): what was masked.
        maskable (`torch.BoolTensor` of shape `(B, L)`): what could have been masked (prefix excluded).
        mask_rate (`torch.Tensor` of shape `(B,)`): the rate that was asked for, in (0, 1].
        weight (`torch.Tensor` of shape `(B,)`): what the mean cross-entropy of a row's masked tokens is multiplied by
            to estimate the negative ELBO per maskable token (see `objectives`).
    """

    input_ids: Tensor
    targets: Tensor
    is_masked: Tensor
    maskable: Tensor
    mask_rate: Tensor
    weight: Tensor

    @property
    def labels(self) -> Tensor:
        """The clean tokens at masked positions and -100, which every loss of the platform ignores, elsewhere."""
        return self.targets.masked_fill(~self.is_masked, -100)


def stratified_times(key: int, rows: Tensor, size: int) -> Tensor:
    """Diffusion times in (0, 1], one per row, spread evenly over the global batch.

    `t = 1 - frac(u0 + i / size)` with one offset `u0` for the whole batch and `i` a random permutation of its rows, so
    that every batch of `size` rows covers all rates and each single time is uniform (low-discrepancy sampling of
    Variational Diffusion Models, arXiv:2107.00630, appendix I.1).

    Args:
        key (`int`): key of the batch, for example `make_key(seed, "train", step)`.
        rows (`torch.Tensor` of shape `(B,)`, int64): places of these rows in the global batch, in [0, size).
        size (`int`): rows in the global batch, over all accumulation steps and processes.

    Returns:
        `torch.Tensor` of shape `(B,)`, float64.
    """
    streams = fold_in(torch.tensor(key, device=rows.device), torch.arange(2, device=rows.device))
    offset = uniform(streams[0], 1)
    place = uniform(streams[1], size).argsort()
    return 1 - torch.frac(offset + place[rows] / size)


def exact_count_mask(maskable: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """Masks `ceil(rate * n)` of the n maskable positions of each row: those of least noise.

    With a uniform rate in (0, 1] the count is uniform on {1, ..., n}, which makes the mean cross-entropy of the masked
    tokens an unbiased estimate of the negative ELBO per token (LLaDA, arXiv:2502.09992, eq. 14). A higher rate masks a
    superset of what a lower one masks.

    Args:
        maskable (`torch.BoolTensor` of shape `(B, L)`), rate (`torch.Tensor` of shape `(B,)`, in [0, 1]),
        noise (`torch.Tensor` of shape `(B, L)`, finite).
    """
    total = maskable.sum(-1)
    # The subtraction undoes rounding: 0.1 * 10 may come out a hair above 1 and must not ask for 2 tokens.
    count = torch.ceil(rate.double() * total - 1e-9).long().clamp(min=0)
    rank = noise.masked_fill(~maskable, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
    return (rank < count[:, None]) & maskable


def bernoulli_mask(maskable: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """Masks each maskable position independently with probability `rate`; the least noisy one is always masked.

    The floor of one token keeps 0/0 out of every mean; at rates that matter it is never reached. Shapes as in
    `exact_count_mask`.
    """
    return (maskable & (noise < rate[:, None])) | exact_count_mask(maskable, torch.full_like(rate, 1e-6), noise)


def prefix_lengths(prefix_length: int | str, maskable: Tensor, keys: Tensor, no_prefix_share: float = 0.3) -> Tensor:
    """How many leading maskable tokens of each row are given and never masked.

    Args:
        prefix_length (`int` or `"random"`): a fixed number, or for each row 0 with probability `no_prefix_share` and
            otherwise uniform on {1, ..., n // 2} for n maskable tokens.
        maskable (`torch.BoolTensor` of shape `(B, L)`), keys (`torch.Tensor` of shape `(B,)`, int64).

    Returns:
        `torch.Tensor` of shape `(B,)`, int64. A random prefix always leaves something to mask; a fixed one need not.
    """
    total = maskable.sum(-1)
    if prefix_length != "random":
        return torch.full_like(total, int(prefix_length))
    u = uniform(fold_in(keys, _PREFIX_STREAM), 2)
    length = 1 + (u[:, 1] * (total // 2)).long()
    return torch.where((u[:, 0] < no_prefix_share) | (total < 2), torch.zeros_like(total), length)


def span_noise(noise: Tensor, keys: Tensor, span_length: float) -> Tensor:
    """Gives the positions of a span one noise value, so that whole spans are masked together.

    A new span starts at a position with probability `1 / span_length`, hence geometric lengths of that mean
    (SpanBERT, arXiv:1907.10529, section 3.1). `span_length` 1 returns the noise unchanged.
    """
    if span_length == 1:
        return noise
    starts = uniform(fold_in(keys, _SPAN_START_STREAM), noise.size(-1)) < 1 / span_length
    return noise.gather(-1, starts.long().cumsum(-1).clamp(max=noise.size(-1) - 1))


def weighted_noise(noise: Tensor, weights: Tensor) -> Tensor:
    """Noise of which the k least are k positions drawn without replacement with chances in proportion to `weights`.

    `-log(1 - noise) / weight` is exponential with the rate `weight`, so each next least one is a draw by weight among
    those left: the keys of Efraimidis and Spirakis 2006 (Information Processing Letters 97, 181-185), which are those
    of Gumbel top-k. Equal weights leave the order of the noise as it is.

    Args:
        noise (`torch.Tensor` of shape `(B, L)`, in [0, 1)), weights (`torch.Tensor` of shape `(B, L)`, above 0).
    """
    return -torch.log1p(-noise) / weights


@dataclass(frozen=True)
class ForwardProcess:
    """The forward process with all its settings: clean rows and keys go in, a `CorruptedBatch` comes out.

    Args:
        mask_id (`int`): id of the mask token.
        schedule (`str` or `Schedule`): maps time to mask rate. Under the `elbo` objective every schedule estimates the
            same bound, with another variance.
        masking (`"exact"`, `"bernoulli"` or `"levels"`): exact counts, independent tokens, or one of `levels`.
        levels (`tuple[float, ...]`): the mask rates of `masking="levels"`, by default 1.0, 0.9, ..., 0.1.
        levels_per (`"row"` or `"batch"`): whether rows draw their own level or the batch has one.
        prefix_length (`int` or `"random"`): see `prefix_lengths`.
        no_prefix_share (`float`): share of the rows without a prefix when `prefix_length` is `"random"`.
        span_length (`float`): mean length of the spans that are masked together; 1 masks single tokens.
        rate_distribution (`str` or `Callable`): the law of the mask rate, see `rate_distributions`. `uniform` is that
            of the schedule at uniform times; any other takes the place of the schedule, which must be `linear`. Under
            `elbo` a law that covers all rates leaves the estimate unbiased; `clipped` estimates the mean of l(u) over
            its range. Under `simple` and `full` a law weighs the rates.
        rate_parameters (`tuple[float, ...]`): low and high of `clipped`, a and b of `beta`.
        max_mask_rate (`float`): rates above it become it, such as the 0.999 to which Nichol and Dhariwal 2021
            (arXiv:2102.09672, section 3.2) clip. The bound then leaves out what lies above, and nothing is learnt of a
            row that is masked all over, where generation starts.
        stratified_times (`bool`): False draws the times of the rows independently, as most small systems do; the
            gradient then has a larger variance and the same mean.
        token_weights (`torch.Tensor` of shape `(V,)` or `Callable`, *optional*): which tokens are masked more often
            than others: weights above 0 by vocabulary id, or a function from ids `(B, L)` to weights `(B, L)`. The
            *number* of masked tokens stays as it is; which ones go is drawn by weight, see `weighted_noise`. The loss
            is then no bound: it belongs to an order that depends on the text, in which heavy tokens are masked first
            and so predicted from less. Evaluation never has weights.

    Raises:
        ValueError: a setting is unknown or out of range, or two exclude one another.
    """

    mask_id: int
    schedule: str | Schedule = "linear"
    masking: str = "exact"
    levels: tuple[float, ...] = GUIDE_LEVELS
    levels_per: str = "row"
    prefix_length: int | str = "random"
    no_prefix_share: float = 0.3
    span_length: float = 1.0
    rate_distribution: str | Density = "uniform"
    rate_parameters: tuple[float, ...] = ()
    max_mask_rate: float = 1.0
    stratified_times: bool = True
    token_weights: Tensor | Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    rates: RateHistogram | ImportanceRates | None = field(init=False, repr=False, compare=False)
    _schedule: Schedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_schedule", get_schedule(self.schedule))
        object.__setattr__(self, "rates", get_rates(self.rate_distribution, self.rate_parameters))
        if self.masking not in MASKINGS:
            raise ValueError(f"`masking` must be one of {', '.join(MASKINGS)}, not {self.masking!r}.")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ValueError(f"`levels` must be mask rates in (0, 1], not {self.levels!r}.")
        if self.levels_per not in ("row", "batch"):
            raise ValueError(f"`levels_per` must be 'row' or 'batch', not {self.levels_per!r}.")
        whole = isinstance(self.prefix_length, int) and not isinstance(self.prefix_length, bool)
        if self.prefix_length != "random" and not (whole and int(self.prefix_length) >= 0):
            raise ValueError(f"`prefix_length` must be 'random' or a whole number >= 0, not {self.prefix_length!r}.")
        if not 0 <= self.no_prefix_share <= 1:
            raise ValueError(f"`no_prefix_share` must lie in [0, 1], not {self.no_prefix_share!r}.")
        if not 1 <= self.span_length < float("inf"):
            raise ValueError(f"`span_length` must be a finite number >= 1, not {self.span_length!r}.")
        if not 0 < self.max_mask_rate <= 1:
            raise ValueError(f"`max_mask_rate` must lie in (0, 1], not {self.max_mask_rate!r}.")
        if self.rates is not None and (self.masking == "levels" or self._schedule.name != "linear"):
            raise ValueError(
                f"`rate_distribution` is {self.rate_distribution!r}, which says itself what rates are drawn: leave "
                f"`masking` exact or bernoulli and `schedule` linear, not {self.masking} and {self._schedule.name}."
            )
        if self.token_weights is not None:
            self._require_token_weights()

    def _require_token_weights(self) -> None:
        if self.masking == "bernoulli" or self.span_length != 1:
            raise ValueError(
                f"`token_weights` need exact counts of single tokens: leave `masking` exact or levels and "
                f"`span_length` 1, not {self.masking} and {self.span_length:g}."
            )
        weights = self.token_weights
        if isinstance(weights, Tensor) and not (weights.dim() == 1 and ((weights > 0) & (weights < torch.inf)).all()):
            raise ValueError(
                f"`token_weights` must be finite numbers above 0, one for each token of the vocabulary, not of shape "
                f"{tuple(weights.shape)} with {float(weights.min()):g} as the least."
            )

    def times(self, key: int, rows: Tensor, size: int) -> Tensor:
        """Times of the rows at places `rows` of a global batch of `size`: stratified, or one for the whole batch, or
        independent of one another."""
        if self.masking == "levels" and self.levels_per == "batch":
            return 1 - uniform(torch.tensor(key, device=rows.device), 1).expand(len(rows))
        if not self.stratified_times:
            keys = fold_in(fold_in(torch.tensor(key, device=rows.device), rows), _TIME_STREAM)
            return 1 - uniform(keys, 1)[:, 0]
        return stratified_times(key, rows, size)

    def mask_rate_and_weight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mask rate at `t` and the weight that makes a row's mean cross-entropy an estimate of the bound.

        Exact counts: substituting the rate for t in the integral of the bound leaves `mask_rate'(t)`. Bernoulli masks:
        the sum over masked tokens takes `mask_rate'(t) / mask_rate(t)` (MDLM, arXiv:2406.07524, eq. 10); `objectives`
        turns that sum into the row's mean. Levels are a quadrature of the bound with equal weights. A rate
        distribution is a schedule too, its quantiles at t, whose derivative is 1 / density.
        """
        if self.masking == "levels":
            levels = torch.tensor(sorted(self.levels), dtype=t.dtype, device=t.device)
            place = (torch.ceil(t * len(levels)) - 1).long().clamp(0, len(levels) - 1)
            rate, weight = levels[place], torch.ones_like(t)
        elif self.rates is not None:
            rate, weight = self.rates.rate_and_weight(t)
        else:
            rate, weight = self._schedule.mask_rate(t), self._schedule.derivative(t)
        if self.max_mask_rate < 1:  # where it is flat the clipped schedule has the slope 0
            weight = weight.masked_fill(rate > self.max_mask_rate, 0)
            rate = rate.clamp(max=self.max_mask_rate)
        return rate, weight

    def __call__(self, input_ids: Tensor, maskable: Tensor, keys: Tensor, t: Tensor) -> CorruptedBatch:
        """Masks one batch.

        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`, int64): clean tokens, padded on the right if at all.
            maskable (`torch.BoolTensor` of shape `(B, L)`): True where a token may be masked; the prefix that
                `prefix_length` keeps is taken off here.
            keys (`torch.Tensor` of shape `(B,)`, int64): one key per row.
            t (`torch.Tensor` of shape `(B,)`, float64): diffusion times in (0, 1].
        """
        prefix = prefix_lengths(self.prefix_length, maskable, keys, self.no_prefix_share)
        maskable = maskable & (maskable.cumsum(-1) > prefix[:, None])
        rate, weight = self.mask_rate_and_weight(t)
        noise = span_noise(uniform(fold_in(keys, _POSITION_STREAM), input_ids.size(1)), keys, self.span_length)
        if isinstance(self.token_weights, Tensor):
            noise = weighted_noise(noise, self.token_weights.to(noise)[input_ids])
        elif self.token_weights is not None:
            noise = weighted_noise(noise, self.token_weights(input_ids).to(noise))
        if self.masking == "bernoulli":
            is_masked = bernoulli_mask(maskable, rate, noise)
            # From sum / L * mask_rate' / mask_rate to a multiple of the row's mean over its masked tokens.
            expected = rate * maskable.sum(-1).clamp(min=1)
            weight = weight * is_masked.sum(-1) / expected
        else:
            is_masked = exact_count_mask(maskable, rate, noise)
        return CorruptedBatch(
            input_ids=input_ids.masked_fill(is_masked, self.mask_id),
            targets=input_ids,
            is_masked=is_masked,
            maskable=maskable,
            mask_rate=rate,
            weight=weight,
        )


def batch_key(seed: int, input_ids: Tensor) -> int:
    """Key of a batch by its whole content, for callers that know neither step nor epoch (the plain `Trainer`)."""
    return make_key(seed, "batch", input_ids.cpu().contiguous().numpy().tobytes(), *input_ids.shape)


def content_keys(seed: int, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """One key per row by the row's own content without its padding: the same whatever the batch around it.

    Args:
        seed (`int`), input_ids (`torch.Tensor` of shape `(B, L)`), lengths (`torch.Tensor` of shape `(B,)`).
    """
    rows = input_ids.cpu()
    keys = [
        make_key(seed, "row", row[:length].contiguous().numpy().tobytes())
        for row, length in zip(rows, lengths.tolist(), strict=True)
    ]
    return torch.tensor(keys, dtype=torch.int64, device=input_ids.device)
