"""The plan of a generation: how many positions are visible after each step, block by block."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import fold_in, uniform
from .remasking import Remasking
from .schedules import Schedule, get_schedule, unmask_counts

_ANCESTRAL_STREAM = -1  # of a row's key; those of its steps are numbered from 0


@dataclass(frozen=True)
class RevealPlan:
    """What each of at most K steps does to each of B rows. A row with fewer steps is padded with what is never read.

    Attributes:
        block_of (`torch.Tensor` of shape `(B, L)`, int64): the block of each position, -1 where nothing is generated.
        block (`torch.Tensor` of shape `(B, K)`, int64): the block that the step works on.
        num_visible (`torch.Tensor` of shape `(B, K)`, int64): visible positions of that block after the step.
        t (`torch.Tensor` of shape `(B, K)`, float64): time after the step within the block, from almost 1 to 0.
        num_steps (`torch.Tensor` of shape `(B,)`, int64).
    """

    block_of: Tensor
    block: Tensor
    num_visible: Tensor
    t: Tensor
    num_steps: Tensor


def make_plan(
    to_fill: Tensor,
    *,
    steps: int | None,
    schedule: str | Schedule,
    remasking: Remasking,
    reveal_counts: Sequence[int] | None = None,
    block_length: int | None = None,
    steps_per_token: float = 1.0,
) -> RevealPlan:
    """Plans each row by its own number of positions, so that it does not depend on the others.

    Args:
        to_fill (`torch.Tensor` of shape `(B, L)`, bool): positions to generate.
        steps (`int`, *optional*): planned steps, shared out among the blocks by length; by default `steps_per_token`
            (`float`) for each position, and at least one.
        schedule (`str` or `Schedule`): how the masked share of a block falls.
        remasking (`Remasking`): decides whether there may be more steps than positions.
        reveal_counts (sequence of `int`, *optional*): the counts themselves instead of `schedule` and `steps`.
        block_length (`int`, *optional*): a block is so many consecutive positions to generate; it is finished before
            the next one begins (semi-autoregressive, as in LLaDA, arXiv:2502.09992). By default all are one block.

    Raises:
        ValueError: a value is impossible, or there are fewer steps than blocks.
    """
    require_block_length(block_length)
    if reveal_counts is not None and (block_length is not None or remasking.revises or steps is not None):
        raise ValueError("`reveal_counts` is a whole plan: leave out `steps`, `block_length` and `remask`.")
    if steps is not None:
        remasking.counts(schedule, 1, steps)  # an impossible `steps` is an error even where nothing is to be filled
    rank = to_fill.cumsum(-1) - 1
    size = block_length or max(to_fill.shape[-1], 1)
    block_of = torch.where(to_fill, rank // size, -1)
    rows = {
        n: _plan_row(n, size, steps, steps_per_token, schedule, remasking, reveal_counts)
        for n in set(to_fill.sum(-1).tolist())
    }
    plans = [rows[n] for n in to_fill.sum(-1).tolist()]
    width = max(map(len, plans), default=0)
    padded = torch.zeros(len(plans), width, 3, dtype=torch.float64)
    for row, plan in enumerate(plans):
        padded[row, : len(plan)] = torch.tensor(plan, dtype=torch.float64).view(-1, 3)
    block, num_visible, t = padded.to(to_fill.device).unbind(-1)
    num_steps = torch.tensor([len(plan) for plan in plans], dtype=torch.int64, device=to_fill.device)
    return RevealPlan(block_of, block.long(), num_visible.long(), t, num_steps)


def ancestral_plan(
    to_fill: Tensor, keys: Tensor, *, steps: int | None, schedule: str | Schedule, steps_per_token: float = 1.0
) -> RevealPlan:
    """Leaves to chance how many positions a step reveals: each masked one with probability 1 - rate(s) / rate(t).

    From time t to the next s the mask rate falls from rate(t) to rate(s), and every position that is still masked is
    revealed with the same chance, independently of the others; for `linear` the chance is 1 - s / t. That is to say
    that each position has a number uniform in [0, 1) of its own and is visible as soon as the mask rate is not above
    it. A step may reveal nothing, and then makes no forward.

    Args:
        to_fill (`torch.Tensor` of shape `(B, L)`, bool), keys (`torch.Tensor` of shape `(B,)`, int64).
        steps, schedule, steps_per_token: as in `make_plan`.

    Source: Sahoo et al. 2024 (MDLM, arXiv:2406.07524), equation 7; Nie et al. 2025 (LLaDA), algorithm 4.
    """
    schedule, totals = get_schedule(schedule), to_fill.sum(-1)
    unmask_counts(schedule, 1, 1 if steps is None else steps)  # refuses what is impossible
    own = (totals * steps_per_token).round().long().clamp(min=1) if steps is None else torch.full_like(totals, steps)
    num_steps = torch.where(totals > 0, own, 0)
    step = torch.arange(1, int(num_steps.max()) + 1 if len(num_steps) else 1, device=to_fill.device)
    t = (1 - step / own.double()[:, None]).clamp(0, 1)  # (B, K)
    number = uniform(fold_in(keys, _ANCESTRAL_STREAM), to_fill.shape[-1])  # (B, L)
    is_visible = to_fill[:, None, :] & (number[:, None, :] >= schedule.mask_rate(t)[:, :, None])  # (B, K, L)
    block_of = torch.where(to_fill, 0, -1)
    return RevealPlan(block_of, torch.zeros_like(t, dtype=torch.int64), is_visible.sum(-1), t, num_steps)


def require_block_length(block_length: int | None) -> None:
    """Raises ValueError unless it is None or a whole number of at least 1."""
    whole = isinstance(block_length, int) and not isinstance(block_length, bool)
    if block_length is not None and not (whole and block_length >= 1):
        raise ValueError(f"`block_length` must be a whole number of at least 1, got {block_length!r}.")


def require_steps_for_blocks(steps: int | None, total: int, block_length: int | None) -> None:
    """Raises ValueError if `total` tokens are in more blocks than there are steps, each of which is in one block."""
    if steps is not None and block_length is not None and steps * block_length < total:
        raise ValueError(
            f"`steps` is {steps}, but {total} tokens in blocks of {block_length} need at least "
            f"{-(-total // block_length)}. Raise `steps` or `block_length`."
        )


def _plan_row(
    total: int,
    block_length: int,
    steps: int | None,
    steps_per_token: float,
    schedule: str | Schedule,
    remasking: Remasking,
    reveal_counts: Sequence[int] | None,
) -> list[tuple[int, int, float]]:
    """(block, visible after the step, time after the step) for each step of a row with `total` positions."""
    if reveal_counts is not None:
        counts = _checked_counts(reveal_counts, total) if total else []
        return [(0, seen, 1 - (k + 1) / len(counts)) for k, seen in enumerate(itertools.accumulate(counts))]
    sizes = [min(block_length, total - start) for start in range(0, total, block_length)]
    require_steps_for_blocks(steps, total, block_length)
    plan: list[tuple[int, int, float]] = []
    ends = list(itertools.accumulate(sizes))
    used = 0
    for block, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        if steps is None:
            own = max(round(size * steps_per_token), 1)
        else:  # a share by length, and at least one step for this block and each one after it
            own = min(max(round(steps * end / total) - used, 1), steps - used - (len(sizes) - 1 - block))
            used += own
        counts = remasking.counts(schedule, size, own)
        plan += [(block, seen, 1 - (k + 1) / len(counts)) for k, seen in enumerate(itertools.accumulate(counts))]
    return plan


def _checked_counts(counts: Sequence[int], total: int) -> list[int]:
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts):
        raise ValueError(f"`reveal_counts` must be whole numbers of at least 1, got {list(counts)!r}.")
    if sum(counts) != total:
        raise ValueError(
            f"`reveal_counts` sum to {sum(counts)}, but {total} tokens are to be generated. Make them equal, or use a "
            f"schedule."
        )
    return list(counts)
