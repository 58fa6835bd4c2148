"""Denoising: the reverse process, from a canvas with masks to text, one `DenoisingStep` at a time.

The loop knows ids and a callable that returns logits, and nothing of tokenizers or models: text, a live view, an
animation and an evaluation all iterate the same generator. What a step does is decided on independent axes:

* how many positions it reveals: `reveal_plan` (schedules, blocks, a list), or `unmasking.AdaptiveCount`;
* which ones: the order of `unmasking`, spread by `min_gap`;
* which token goes there: `sampling`;
* which revealed positions go back to mask: `remasking`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .denoising_loop import DenoisingLoop
from .denoising_step import Constraint, EditLogits, GuideLogits, OnStep, PredictLogits
from .denoising_step import DenoisingStep as DenoisingStep
from .remasking import Remasking
from .repetition import Repetition
from .reveal_plan import ancestral_plan, make_plan
from .sampling import Sampling
from .schedules import Schedule, get_schedule
from .unmasking import ORDERS, AdaptiveCount

REVEALS = ("planned", "ancestral")


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
    reveal: str = "planned",
    reveal_counts: Sequence[int] | None = None,
    adaptive: AdaptiveCount | None = None,
    block_length: int | None = None,
    steps_per_token: float = 1.0,
    order: str = "confidence",
    order_noise: float = 0.0,
    order_from: Literal["distribution", "sample"] = "distribution",
    min_gap: int = 0,
    remask: str | Remasking = "none",
    final_pass: bool = False,
    end_id: int | None = None,
    may_end: Tensor | None = None,
    defer_end: bool = False,
    guidance_scale: float = 1.0,
    condition: Tensor | None = None,
    repetition: Repetition | None = None,
    edit_logits: EditLogits | None = None,
    guide_logits: GuideLogits | None = None,
    constraint: Constraint | None = None,
    on_step: OnStep | None = None,
) -> Iterator[DenoisingStep]:
    """Fill the positions `to_fill` of each row, step by step.

    Every row has its own plan and its own randomness, so it comes out the same whatever the other rows are. A row
    makes min(`steps`, its masks) forwards, or exactly `steps` with remasking, and is not sent to the model when done.
    It makes fewer if `adaptive` says so, or if the text ends before the row does, and twice as many with guidance.

    Args:
        predict_logits (`Callable`): the model, see `PredictLogits`. It sees the rows not yet done, and only the logits
            of the positions `needed` are asked for. `needed` may be empty in some or all rows: with more remasking
            steps than positions, a step may have nothing to reveal.
        canvas (`torch.Tensor` of shape `(batch, length)`, int64): token ids; it is copied, and what is not to be
            filled never changes. It may lie on the CPU while logits do not; the steps lie where it does.
        to_fill (`torch.Tensor` of shape `(batch, length)`, bool): positions to generate. Not "where the canvas holds
            `mask_id`": a prefix may hold that id as text.
        mask_id (`int`): id of the mask token.
        keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row; equal keys give equal text.
        forbidden_ids (`torch.Tensor` of shape `(n,)`, int64): ids never generated. `mask_id` always is one of them.
        sampling (`Sampling`): how a token is chosen.
        steps, schedule, reveal_counts, block_length, steps_per_token: the plan, see `reveal_plan.make_plan`.
        reveal (`str`): `"planned"`, or `"ancestral"`: each masked position is revealed with the same chance,
            independently of the others, see `reveal_plan.ancestral_plan`. With the order `random` this is the
            ancestral sampling of MDLM (arXiv:2406.07524, eq. 7); with another one, the surest of as many positions
            are revealed.
        adaptive (`AdaptiveCount`, *optional*): reveals as many as the model is sure of; with `steps` at least as many
            as are planned, so that `steps` is the most that a row can take.
        order (`str`): which positions go first, one of `ORDERS`.
        order_noise (`float`): scale of the Gumbel noise added to the scores of the order, falling linearly over the
            plan (MaskGIT). It keeps text varied; no effect on the orders `random` and `left_to_right`.
        order_from (`str`): `"distribution"` ranks positions before tokens are drawn. `"sample"` draws a token
            everywhere and keeps the most probable ones, as LLaDA and MaskGIT do: a hidden, strong low temperature.
        min_gap (`int`): positions revealed in one step lie more than so far apart, if they can.
        remask (`str` or `Remasking`): which revealed positions are masked again.
        final_pass (`bool`): at the end every position to fill but ends is predicted once more, greedily, from the
            finished canvas, with none masked; one forward, which `on_step` is not asked about.
        end_id (`int`, *optional*): the token that ends a text. Where one is revealed, all later masks of the row
            become ends too, without a forward (not with remasking, which may yet take the end away).
        may_end (`torch.Tensor` of shape `(batch, length)`, bool, *optional*): where `end_id` may be generated.
        defer_end (`bool`): leaves `end_id` out of the scores of the order, so that ends are not revealed first only
            because the model is sure that a text is over after its last position.
        guidance_scale (`float`): how much `condition` weighs, 1 as in the model, see `sampling.guide`. Any other value
            takes a second forward a step, of the canvas with the condition masked, in the rows that have a condition.
        condition (`torch.Tensor` of shape `(batch, length)`, bool, *optional*): tokens that stay and are the condition
            of guidance. What is generated never is: once revealed, both forwards see it.
        repetition (`Repetition`, *optional*): what stands on the canvas becomes less likely, or may not come again. If
            n-grams are banned, the tokens of one step are drawn one after another, each knowing those before it, so
            that no step repeats one either. Forbidden ids and ends are no part of an n-gram.
        edit_logits (`Callable`, *optional*): changes the logits before confidence, temperature and truncation, see
            `EditLogits`. It cannot bring a forbidden id back.
        guide_logits (`Callable`, *optional*): changes the logits of positions whose token is about to be drawn. It
            cannot bring back what is ruled out.
        constraint (`Constraint`, *optional*): restricts tokens so that the finished row satisfies it.
        on_step (`Callable`, *optional*): called with every step before it is yielded. It may return another canvas to
            go on with (only positions to fill may differ; `mask_id` there masks them again), or "finish": then one
            more forward reveals all that is left. For rows of their own: a canvas and which rows finish, `(batch,)`
            bool. What is masked again after the last step of a row is revealed by one more forward, and once only.

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
    remasking = remask if isinstance(remask, Remasking) else Remasking(remask)
    _require_rows(canvas, to_fill, keys)
    require_order(order, order_noise, order_from, min_gap, remasking.rule)
    require_guidance_scale(guidance_scale)
    repetition = Repetition() if repetition is None else repetition
    require_repetition(repetition, order_from, remasking.rule)
    require_final_pass(final_pass, repetition)
    require_reveal(reveal, remasking, adaptive, block_length)
    condition = _condition(condition, to_fill, guidance_scale)
    if adaptive is not None:
        require_adaptive(adaptive, remasking, reveal_counts, steps, block_length, min_gap)
    draws_first = order_from == "sample" or remasking.rule == "low_confidence"
    if constraint is not None and draws_first:
        raise ValueError(
            "A `constraint` needs places before tokens: `order_from='distribution'`, no `low_confidence`."
        )
    if constraint is not None and final_pass:
        raise ValueError(
            "`final_pass` would predict every token anew, whatever the `constraint`: leave one of them out."
        )
    of_plan: dict[str, Any] = {"steps": steps, "schedule": get_schedule(schedule), "steps_per_token": steps_per_token}
    if reveal == "ancestral":
        if reveal_counts is not None:
            raise ValueError("`reveal_counts` is a whole plan: leave out `reveal='ancestral'`.")
        plan = ancestral_plan(to_fill, keys.to(to_fill.device), **of_plan)
    else:
        of_plan |= {"remasking": remasking, "reveal_counts": reveal_counts, "block_length": block_length}
        plan = make_plan(to_fill, **of_plan)
    forbidden = torch.cat([forbidden_ids.to(canvas.device), torch.tensor([mask_id], device=canvas.device)])
    loop = DenoisingLoop(
        predict_logits=predict_logits,
        canvas=canvas.masked_fill(to_fill, mask_id),
        to_fill=to_fill.clone(),
        mask_id=mask_id,
        keys=keys.to(canvas.device),
        forbidden=forbidden,
        sampling=sampling,
        plan=plan,
        adaptive=adaptive,
        at_most=steps is not None or steps_per_token < 1,
        order=order,
        order_noise=order_noise,
        draws_first=draws_first,
        min_gap=min_gap,
        remasking=remasking,
        final_pass=final_pass,
        end_id=end_id,
        may_end=may_end,
        defer_end=defer_end,
        guidance_scale=guidance_scale,
        condition=condition,
        repetition=repetition,
        edit_logits=edit_logits,
        guide_logits=guide_logits,
        constraint=constraint,
        on_step=on_step,
    )
    return loop.run()


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


def _condition(condition: Tensor | None, to_fill: Tensor, guidance_scale: float) -> Tensor:
    if condition is None:
        if guidance_scale != 1:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale!r}, but there is no `condition` to guide by: pass it."
            )
        return torch.zeros_like(to_fill)
    if condition.shape != to_fill.shape or condition.dtype != torch.bool or bool((condition & to_fill).any()):
        raise ValueError(
            f"`condition` must be bool, shaped like `to_fill` {tuple(to_fill.shape)}, and False where that is True; "
            f"got {condition.dtype} {tuple(condition.shape)}."
        )
    return condition.clone()


def require_guidance_scale(guidance_scale: float) -> None:
    """Raises ValueError unless it is a finite number of at least 0."""
    number = isinstance(guidance_scale, (int, float)) and not isinstance(guidance_scale, bool)
    if not number or not 0 <= guidance_scale < math.inf:
        raise ValueError(f"`guidance_scale` must be a finite number of at least 0, 1 for off, got {guidance_scale!r}.")


def require_repetition(repetition: Repetition, order_from: str, remask: str) -> None:
    """Raises ValueError if n-grams are banned, but tokens are drawn where they will not stand."""
    if repetition.bans and (order_from == "sample" or remask == "low_confidence"):
        raise ValueError(
            f"`no_repeat_ngram_size` is {repetition.ngram_size}, but `order_from='sample'` and "
            f"`remask='low_confidence'` draw tokens that they do not keep: choose others, or set it to 0."
        )


def require_reveal(
    reveal: str, remasking: Remasking, adaptive: AdaptiveCount | None, block_length: int | None
) -> None:
    """Raises ValueError for an unknown `reveal`, or if something else decides how many positions a step reveals."""
    if reveal not in REVEALS:
        raise ValueError(f"`reveal` must be one of {', '.join(REVEALS)}, got {reveal!r}.")
    others = {"remask": remasking.revises, "adaptive": adaptive is not None, "block_length": block_length is not None}
    for name, given in others.items():
        if reveal == "ancestral" and given:
            raise ValueError(f"`reveal='ancestral'` leaves to chance what a step reveals: leave out `{name}`.")


def require_final_pass(final_pass: bool, repetition: Repetition) -> None:
    """Raises ValueError unless it is True or False, and nothing looks at the tokens that it predicts anew."""
    if not isinstance(final_pass, bool):
        raise ValueError(f"`final_pass` must be True or False, not {final_pass!r}.")
    if final_pass and (repetition.bans or repetition.penalty != 1):
        raise ValueError(
            "`final_pass` reads a text in which every token stands already, its own too: leave out "
            "`repetition_penalty` and `no_repeat_ngram_size`."
        )


def require_adaptive(
    adaptive: AdaptiveCount,
    remasking: Remasking,
    reveal_counts: Sequence[int] | None,
    steps: int | None,
    block_length: int | None,
    min_gap: int,
) -> None:
    """Raises ValueError if something else decides how many, or which, positions a step reveals, too."""
    others = {"remask": remasking.revises, "reveal_counts": reveal_counts is not None}
    others["steps` with `block_length"] = steps is not None and block_length is not None
    for name, given in others.items():
        if given:
            raise ValueError(f"`adaptive` decides how many positions a step reveals: leave out `{name}`.")
    if adaptive.rule == "independent" and min_gap > 0:
        raise ValueError(f"`adaptive='independent'` has a distance of its own: leave out `min_gap` (now {min_gap}).")


def require_order(order: str, order_noise: float, order_from: str, min_gap: int, remask: str) -> None:
    """Refuses settings of the order that are impossible, alone or together.

    Raises:
        ValueError: names the setting.
    """
    if order not in ORDERS:
        raise ValueError(f"`order` must be one of {', '.join(ORDERS)}, got {order!r}.")
    if order_from not in ("distribution", "sample"):
        raise ValueError(f"`order_from` must be one of distribution, sample, got {order_from!r}.")
    if order_from == "sample" and order != "confidence":
        raise ValueError(
            f"`order_from='sample'` needs `order='confidence'`, the only one with a token, got {order!r}."
        )
    number = isinstance(order_noise, (int, float)) and not isinstance(order_noise, bool)
    if not number or not 0 <= order_noise < math.inf:
        raise ValueError(f"`order_noise` must be a finite number of at least 0, got {order_noise!r}.")
    if not isinstance(min_gap, int) or isinstance(min_gap, bool) or min_gap < 0:
        raise ValueError(f"`min_gap` must be a whole number of at least 0, got {min_gap!r}.")
    if remask == "low_confidence" and (order != "confidence" or min_gap > 0):
        raise ValueError(
            "`remask='low_confidence'` keeps the most confident tokens: it needs `order='confidence'` and `min_gap=0`."
        )
