"""How far a model's probabilities can be trusted, by mask rate: calibration error, Brier score, fitted temperature."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import NonFiniteLossError
from .likelihood import NUM_BUCKETS, bound_of_rows
from .row_predictor import make_predictor
from .text_likelihood import rows_to_score
from .text_sums import TextSums

_BINS = 15  # of the confidence in the likeliest token, of equal width, as in Guo et al.
# Temperatures at which the loss and its slope are known; between two of them a cubic goes through the slopes.
_TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(-6, 7))
_STEP = math.log(2) / 2  # from the logarithm of one to that of the next
_NUMBERS_AT_ONCE = 2**24  # logits; bounds memory


@dataclass(frozen=True)
class Calibration:
    """What became of the predictions of masked tokens at mask rates within one tenth.

    Attributes:
        mask_rate (`float`, *optional*): the upper end of the tenth; None: all mask rates together.
        num_tokens (`int`): masked tokens.
        nats (`float`): mean cross-entropy.
        brier (`float`): mean of `sum over tokens v of (p_v - [v is right])^2`, in [0, 2].
        accuracy, confidence (`float`): how often the likeliest token is right, and its mean probability: a model that
            is surer than it is right is overconfident.
        calibration_error (`float`): expected calibration error of the likeliest token: the mean, over tokens, of
            |accuracy - confidence| in each of 15 bins of confidence.
        error_by_chance (`float`): about what a perfectly calibrated model shows on so many tokens, each taken as
            independent of the others. An error that is no larger says nothing.
        temperature (`float`, *optional*): T for which logits / T have the least cross-entropy on these tokens; above 1
            the model is overconfident. None: it lies outside [1/8, 8], or nothing depends on it.
        nats_at_temperature (`float`, *optional*): that cross-entropy.
    """

    mask_rate: float | None
    num_tokens: int
    nats: float
    brier: float
    accuracy: float
    confidence: float
    calibration_error: float
    error_by_chance: float
    temperature: float | None
    nats_at_temperature: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


class CalibrationSums:
    """Adds up predictions of masked tokens; sums over tokens are all that is kept.

    Source: Guo et al. 2017, arXiv:1706.04599 (calibration error with 15 bins, temperature scaling); Brier 1950.
    """

    def __init__(self) -> None:
        size = len(_TEMPERATURES)
        self._tokens = torch.zeros(NUM_BUCKETS, 5 + 3 * size, dtype=torch.float64)
        self._bins = torch.zeros(NUM_BUCKETS, _BINS, 3, dtype=torch.float64)

    def add(self, logits: Tensor, targets: Tensor, mask_rates: Tensor) -> None:
        """Adds N tokens.

        Args:
            logits (`torch.Tensor` of shape `(N, V)`): -inf for what is impossible.
            targets (`torch.Tensor` of shape `(N,)`), mask_rates (`torch.Tensor` of shape `(N,)`, in (0, 1]).
        """
        bucket = (torch.ceil(mask_rates.double() * NUM_BUCKETS - 1e-6).long() - 1).clamp(0, NUM_BUCKETS - 1)
        size = max(_NUMBERS_AT_ONCE // max(logits.size(-1), 1), 1)
        for first in range(0, len(targets), size):
            part = slice(first, first + size)
            self._add(logits[part].float(), targets[part], bucket[part].cpu())

    def _add(self, logits: Tensor, targets: Tensor, bucket: Tensor) -> None:
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        confidence, choice = p.max(-1)
        is_right = choice.eq(targets).double()
        of_target = targets[:, None]
        brier = p.double().square().sum(-1) - 2 * p.double().gather(-1, of_target)[:, 0] + 1
        columns = [torch.ones_like(brier), -log_p.gather(-1, of_target)[:, 0], brier, is_right, confidence]
        tempered = [_at_temperature(logits, of_target, temperature) for temperature in _TEMPERATURES]
        columns += [column for kind in zip(*tempered, strict=True) for column in kind]
        self._tokens.index_add_(0, bucket, torch.stack([column.double() for column in columns], -1).cpu())
        place = (torch.ceil(confidence * _BINS).long() - 1).clamp(0, _BINS - 1).cpu()
        sure = confidence.double()
        of_bins = torch.stack([is_right, sure, sure * (1 - sure)], -1).cpu()
        self._bins.view(-1, 3).index_add_(0, bucket * _BINS + place, of_bins)

    def figures(self) -> list[Calibration]:
        """Those of each tenth with tokens in it, then those of all tokens.

        Raises:
            NonFiniteLossError: the model answers NaN, or gives a token of the texts probability 0.
        """
        found = [
            _calibration((index + 1) / NUM_BUCKETS, self._tokens[index], self._bins[index])
            for index in range(NUM_BUCKETS)
            if self._tokens[index, 0] > 0
        ]
        return [*found, _calibration(None, self._tokens.sum(0), self._bins.sum(0))] if found else []


def _at_temperature(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of `logits / temperature`, and its first two derivatives by the logarithm of the temperature."""
    scaled = logits / temperature
    log_p = scaled.log_softmax(-1)
    p = log_p.exp()
    values = (scaled - scaled.amax(-1, keepdim=True)).clamp(min=-1e4)  # what is impossible has no weight
    mean = (p * values).sum(-1)
    variance = (p * (values - mean[:, None]).square()).sum(-1)
    slope = values.gather(-1, targets)[:, 0] - mean
    return -log_p.gather(-1, targets)[:, 0], slope, variance - slope


def _calibration(mask_rate: float | None, sums: Tensor, bins: Tensor) -> Calibration:
    count = float(sums[0])
    mean = (sums / count).tolist()
    if not all(map(math.isfinite, mean[:5])):
        raise NonFiniteLossError(
            "The model answers NaN, or gives a token of the text probability 0: it has no calibration. Take another "
            "checkpoint."
        )
    right, sure, spread = bins.unbind(-1)
    size = len(_TEMPERATURES)
    temperature, nats = fit_temperature(*(mean[5 + k * size : 5 + (k + 1) * size] for k in range(3)))
    return Calibration(
        mask_rate=mask_rate,
        num_tokens=round(count),
        nats=mean[1],
        brier=mean[2],
        accuracy=mean[3],
        confidence=mean[4],
        calibration_error=float((right - sure).abs().sum()) / count,
        error_by_chance=float((2 / math.pi * spread).sqrt().sum()) / count,  # E|x| of a normal deviate
        temperature=temperature,
        nats_at_temperature=None if nats is None else min(nats, mean[1]),
    )


def fit_temperature(
    nats: Sequence[float], slopes: Sequence[float], curvatures: Sequence[float]
) -> tuple[float | None, float | None]:
    """The temperature of the least loss and that loss, from loss and derivatives at the temperatures of the grid.

    The loss is convex in 1 / temperature, so that its slope changes sign once at most; there, between two points of
    the grid, the cubic through both slopes and curvatures is solved. Temperatures are off by less than 0.1 %.
    """
    for k in range(len(slopes) - 1):
        if slopes[k] < 0 <= slopes[k + 1]:
            low, high = 0.0, 1.0
            ends = (slopes[k], slopes[k + 1], curvatures[k], curvatures[k + 1])
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if _cubic(*ends, middle) < 0 else (low, middle)
            return _TEMPERATURES[k] * math.exp(low * _STEP), _cubic(
                nats[k], nats[k + 1], slopes[k], slopes[k + 1], low
            )
    return None, None


def _cubic(start: float, end: float, slope_at_start: float, slope_at_end: float, x: float) -> float:
    """The cubic with these values and slopes at the ends of a step of the grid, at `x` in [0, 1] of it (Hermite)."""
    a, b = slope_at_start * _STEP, slope_at_end * _STEP
    difference = end - start
    return start + x * (a + x * (3 * difference - 2 * a - b + x * (a + b - 2 * difference)))


def evaluate_calibration(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    packing: str | None = None,
    max_length: int | None = None,
    separate_texts: bool = True,
    draws: int = NUM_BUCKETS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Calibration]:
    """Calibration of a masked diffusion model on texts, by mask rate.

    Rows, masks and arguments are those of `evaluate_texts`; `draws` that are a multiple of 10 put as many masks into
    each tenth of the mask rates.

    Returns:
        `list[Calibration]`: for each tenth, and at last for all masked tokens together.

    Raises:
        ValueError: an argument is impossible, or there is nothing to score.
        NonFiniteLossError: the model answers NaN, or gives a token of the texts probability 0.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be a whole number of at least 1, not {draws!r}.")
    rows, settings = rows_to_score(model, tokenizer, texts, packing, max_length, separate_texts)
    predictor = make_predictor(model, tokenizer, settings["scores_end"])
    predictor.require_masks("draws", draws)
    batches = TextSums(rows, predictor.never_scored, predictor.end_id, predictor.device, batch_size, progress)
    sums, options = CalibrationSums(), {"mask_id": predictor.mask_id, "draws": draws, "seed": seed}

    def of_batch(ids: Tensor, maskable: Tensor) -> Tensor:
        def watched(input_ids: Tensor, is_masked: Tensor) -> Tensor:
            logits = predictor(input_ids, is_masked).index_fill(-1, predictor.forbidden_ids, -torch.inf)
            rates = is_masked.sum(-1) / maskable.sum(-1)
            sums.add(logits, ids[is_masked], rates[is_masked.nonzero()[:, 0]])
            return logits

        found: dict[str, Any] = options
        return bound_of_rows(watched, ids, maskable, **found).nats

    was_training = model.training
    model.eval()
    try:
        batches.prepare(1)
        batches.add(of_batch)
    finally:
        model.train(was_training)
    return sums.figures()
