"""Denoising: the reverse process, from a canvas with masks to text, one `DenoisingStep` at a time.

The loop knows ids and a callable that returns logits, and nothing of tokenizers or models: text, a live view, an
animation and an evaluation all iterate the same generator.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .randomness import fold_in, gumbel, uniform
from .sampling import Sampling, forbid, log_probabilities
from .schedules import Schedule, get_schedule, unmask_counts, unmask_counts_with_remasking
from .unmasking import (
    ORDERS,
    ORDERS_BEFORE_LOGITS,
    REMASKS,
    position_scores,
    scores_before_logits,
    select_remasked,
    take_highest,
)

# (canvas (B, L) int64, needed (B, L) bool) -> logits (needed.sum(), V), in the row-major order of `needed`
PredictLogits = Callable[[Tensor, Tensor], Tensor]
# (canvas (N, L) of each row of logits, logits (N, V)) -> logits (N, V): what a LogitsProcessorList is, which declares
# its arguments as the narrower LongTensor and FloatTensor, so the arguments are left open here
EditLogits = Callable[..., Tensor]

# Every use of chance inside a step has a stream of its own, so that switching one on does not move the others.
_TOKEN, _ORDER, _NOISE, _REMASK = range(4)


@dataclass(frozen=True)
class DenoisingStep:
    """What one step did. Tensors are `(batch, length)` and belong to whoever receives them.

    Args:
        index (`int`): 0-based number of the step.
        canvas (`torch.Tensor`, int64): token ids after the step.
        revealed (`torch.Tensor`, bool): positions that this step unmasked.
        remasked (`torch.Tensor`, bool): positions that this step sent back to mask.
        confidence (`torch.Tensor`, float32): probability that the model, untempered and untruncated, gave the token
            standing there when it was revealed; NaN where none was.
        is_masked (`torch.Tensor`, bool): positions still to be revealed after the step.
        num_forwards (`torch.Tensor` of shape `(batch,)`, int64): forwards of the model so far on each row.
    """

    index: int
    canvas: Tensor
    revealed: Tensor
    remasked: Tensor
    confidence: Tensor
    is_masked: Tensor
    num_forwards: Tensor


def denoise(
    predict_logits: PredictLogits,
    canvas: Tensor,
    to_fill: Tensor,
    *,
    mask_id: int,
    keys: Tensor,
    forbidden_ids: Tensor,
    sampling: Sampling,
    steps: int | None = None,
    schedule: str | Schedule = "linear",
    order: str = "confidence",
    order_noise: float = 0.0,
    order_from: Literal["distribution", "sample"] = "distribution",
    remask: str = "none",
    edit_logits: EditLogits | None = None,
) -> Iterator[DenoisingStep]:
    """Fill the positions `to_fill` of each row, step by step.

    Every row has its own plan and its own randomness, so it comes out the same whatever the other rows are. A row
    makes min(`steps`, its masks) forwards, or exactly `steps` with remasking, and is not sent to the model when done.

    Args:
        predict_logits (`Callable`): the model, see `PredictLogits`. It sees the rows not yet done, and only the logits
            of the positions `needed` are asked for. `needed` may be empty in some or all rows: with more remasking
            steps than positions, a step may have nothing to reveal.
        canvas (`torch.Tensor` of shape `(batch, length)`, int64): token ids; it is copied, and what is not to be
            filled never changes.
        to_fill (`torch.Tensor` of shape `(batch, length)`, bool): positions to generate. Not "where the canvas holds
            `mask_id`": a prefix may hold that id as text.
        mask_id (`int`): id of the mask token.
        keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row; equal keys give equal text.
        forbidden_ids (`torch.Tensor` of shape `(n,)`, int64): ids never generated. `mask_id` always is one of them.
        sampling (`Sampling`): how a token is chosen.
        steps (`int`, *optional*): planned steps; by default one per masked token.
        schedule (`str` or `Schedule`): how the masked share falls over the steps.
        order (`str`): which positions go first, one of `ORDERS`.
        order_noise (`float`): scale of the Gumbel noise added to the scores of the order, falling linearly over the
            steps (MaskGIT). It keeps text varied; no effect on the orders `random` and `left_to_right`.
        order_from (`str`): `"distribution"` ranks positions before tokens are drawn. `"sample"` draws a token
            everywhere and keeps the most probable ones, as LLaDA and MaskGIT do: a hidden, strong low temperature.
        remask (`str`): which revealed positions are masked again, one of `REMASKS`.
        edit_logits (`Callable`, *optional*): changes the logits before confidence, temperature and truncation, see
            `EditLogits`. It cannot bring a forbidden id back.

    Yields:
        `DenoisingStep`, one per step; after the last nothing is masked. Nothing at all if there is nothing to fill.

    Raises:
        ValueError: at the call, for an impossible argument; in a step, if the logits have the wrong shape.
        NonFiniteLogitsError: in a step, if the logits that are needed hold NaN or +inf, or forbid every token.

    A model of three words and a mask that expects every word to be the one after its left neighbour:

    >>> def predict_logits(canvas, needed):
    ...     expected = (canvas.roll(1, dims=1) + 1) % 3
    ...     return 9.0 * torch.nn.functional.one_hot(expected, 4)[needed]
    >>> mask = 3
    >>> canvas = torch.tensor([[0, mask, mask, mask]])
    >>> steps = denoise(predict_logits, canvas, to_fill=canvas.eq(mask), mask_id=mask, forbidden_ids=torch.tensor([3]),
    ...                 keys=torch.tensor([0]), sampling=Sampling("greedy"), order="left_to_right")
    >>> for step in steps:
    ...     print(step.index, step.canvas.tolist(), step.num_forwards.tolist())
    0 [[0, 1, 3, 3]] [1]
    1 [[0, 1, 2, 3]] [2]
    2 [[0, 1, 2, 0]] [3]
    >>> step.confidence
    tensor([[   nan, 0.9998, 0.9998, 0.9998]])
    """
    _require_rows(canvas, to_fill, keys)
    _require_choice("order", order, ORDERS)
    _require_choice("remask", remask, REMASKS)
    _require_choice("order_from", order_from, ("distribution", "sample"))
    if order_from == "sample" and order != "confidence":
        raise ValueError(
            f"`order_from='sample'` needs `order='confidence'`, the only one with a token, got {order!r}."
        )
    if not 0 <= order_noise < math.inf:
        raise ValueError(f"`order_noise` must be a finite number of at least 0, got {order_noise!r}.")
    planned_visible, num_steps = _plan(to_fill, steps, get_schedule(schedule), remask)
    to_fill, keys = to_fill.clone(), keys.to(canvas.device)
    start = canvas.masked_fill(to_fill, mask_id)
    never = torch.cat([forbidden_ids.to(canvas.device), torch.tensor([mask_id], device=canvas.device)])
    length = canvas.shape[1]

    def logits_where(needed: Tensor, canvas: Tensor) -> Tensor:
        logits = predict_logits(canvas, needed)
        if logits.dim() != 2 or len(logits) != int(needed.sum()):
            expected = f"({int(needed.sum())}, vocabulary)"
            raise ValueError(f"`predict_logits` must return logits of shape {expected}, got {tuple(logits.shape)}.")
        logits = forbid(logits.float(), never)
        if edit_logits is not None and len(logits) > 0:  # with remasking a step may reveal nothing
            logits = forbid(edit_logits(canvas[needed.nonzero()[:, 0]], logits).float(), never)
        return logits

    @torch.no_grad()
    def run() -> Iterator[DenoisingStep]:
        canvas, is_masked = start, to_fill
        confidence = torch.full(canvas.shape, math.nan, device=canvas.device)
        for index in range(planned_visible.shape[1]):
            rows = (index < num_steps).nonzero().squeeze(-1)  # the rows not yet done: A of them
            fill, masked = to_fill[rows], is_masked[rows]  # (A, L)
            step_keys = fold_in(keys[rows], index)  # (A,)

            # 1. Which visible positions return to mask, and how many masked ones come out to keep to the plan.
            num_visible = planned_visible[rows, index]
            remasked = select_remasked(remask, fill, masked, num_visible, fold_in(step_keys, _REMASK))
            counts = num_visible - (fill & ~masked & ~remasked).sum(-1)  # (A,)

            # 2. Predict: everything masked, or only what is revealed if the order can tell without the logits.
            needed = masked & (counts > 0).unsqueeze(-1)
            if order in ORDERS_BEFORE_LOGITS:
                scores = scores_before_logits(order, fold_in(step_keys, _ORDER), length)
                needed = take_highest(scores, needed, counts)
            logits = logits_where(needed, canvas[rows])  # (N, V), N = needed.sum()
            log_probs = log_probabilities(logits)  # neither tempered nor truncated; raises if not finite
            u = uniform(fold_in(step_keys, _TOKEN), length)  # (A, L): a position's number, whether used or not

            # 3. Choose the positions, before any token is drawn unless asked otherwise.
            reveal = needed
            if order not in ORDERS_BEFORE_LOGITS:
                if order_from == "distribution":
                    score = position_scores(order, log_probs)
                else:
                    score = log_probs.gather(-1, sampling.choose(logits, u[needed]).unsqueeze(-1)).squeeze(-1)
                scores = torch.zeros(needed.shape, dtype=torch.float64, device=canvas.device)
                scores[needed] = score.double()
                if order_noise > 0:
                    scale = order_noise * (1 - index / num_steps[rows].double())  # (A,)
                    scores += scale.unsqueeze(-1) * gumbel(fold_in(step_keys, _NOISE), length)
                reveal = take_highest(scores, needed, counts)

            # 4. Draw the tokens there.
            chosen = reveal[needed]  # (N,): the rows of logits that belong to revealed positions
            tokens = sampling.choose(logits[chosen], u[reveal])
            log_prob = log_probs[chosen].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

            # 5. Write both changes down.
            after, sure = canvas[rows], confidence[rows]  # copies
            after[reveal], sure[reveal] = tokens, log_prob.double().exp().float()
            after[remasked], sure[remasked] = mask_id, math.nan
            canvas, confidence = canvas.index_copy(0, rows, after), confidence.index_copy(0, rows, sure)
            is_masked = is_masked.index_copy(0, rows, (masked & ~reveal) | remasked)
            nowhere = torch.zeros_like(to_fill)
            yield DenoisingStep(
                index=index,
                canvas=canvas.clone(),
                revealed=nowhere.index_copy(0, rows, reveal),
                remasked=nowhere.index_copy(0, rows, remasked),
                confidence=confidence.clone(),
                is_masked=is_masked.clone(),
                num_forwards=num_steps.clamp(max=index + 1),
            )

    return run()


def _plan(to_fill: Tensor, steps: int | None, schedule: Schedule, remask: str) -> tuple[Tensor, Tensor]:
    """How many generated positions of each row are visible after each step, (B, K), and each row's steps, (B,).

    Rows with fewer steps than the longest are padded with 0, which is never read.
    """
    counts_of = unmask_counts if remask == "none" else unmask_counts_with_remasking
    if steps is not None:
        counts_of(schedule, 1, steps)  # an impossible `steps` is an error even where nothing is to be filled
    lengths = to_fill.sum(-1).tolist()
    counts = {n: counts_of(schedule, n, n if steps is None else steps) if n else [] for n in set(lengths)}
    num_steps = torch.tensor([len(counts[n]) for n in lengths], dtype=torch.int64, device=to_fill.device)
    planned_visible = torch.zeros(len(lengths), max(map(len, counts.values()), default=0), dtype=torch.int64)
    for row, n in enumerate(lengths):
        planned_visible[row, : len(counts[n])] = torch.tensor(counts[n], dtype=torch.int64).cumsum(0)
    return planned_visible.to(to_fill.device), num_steps


def _require_rows(canvas: Tensor, to_fill: Tensor, keys: Tensor) -> None:
    if canvas.dim() != 2 or canvas.dtype != torch.int64:
        raise ValueError(f"`canvas` must be int64 of shape (batch, length), got {canvas.dtype} {tuple(canvas.shape)}.")
    if to_fill.shape != canvas.shape or to_fill.dtype != torch.bool:
        raise ValueError(
            f"`to_fill` must be bool and shaped like the canvas {tuple(canvas.shape)}, "
            f"got {to_fill.dtype} {tuple(to_fill.shape)}."
        )
    if keys.shape != canvas.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(f"`keys` must be int64, one per row ({len(canvas)}), got {keys.dtype} {tuple(keys.shape)}.")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
