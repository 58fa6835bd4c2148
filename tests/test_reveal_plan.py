"""The plan: counts of every row by itself, blocks in turn, and no step too many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.remasking import Remasking
from diffusion_mlm.reveal_plan import make_plan
from diffusion_mlm.schedules import SCHEDULES, unmask_counts

NONE = Remasking()


def plan_of(fills: list[int], length: int = 12, **settings):
    """The plan of rows whose first so many positions are generated."""
    to_fill = torch.arange(length) < torch.tensor(fills)[:, None]
    return make_plan(to_fill, **{"steps": None, "schedule": "linear", "remasking": NONE, **settings})


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.none() | st.integers(1, 30),
    st.none() | st.integers(1, 14),
    st.sampled_from(sorted(SCHEDULES)),
    st.sampled_from(["none", "renoise"]),
)
def test_every_position_is_planned_once_and_blocks_come_in_turn(fills, steps, block_length, schedule, remask):
    remasking = Remasking(remask)
    blocks = max(-(-n // (block_length or 12)) for n in fills)
    if steps is not None and steps < blocks:
        with pytest.raises(ValueError, match="`steps` is"):
            plan_of(fills, steps=steps, block_length=block_length, schedule=schedule, remasking=remasking)
        return
    plan = plan_of(fills, steps=steps, block_length=block_length, schedule=schedule, remasking=remasking)
    for row, n in enumerate(fills):
        taken = int(plan.num_steps[row])
        expected = (steps or n) if remasking.revises else min(steps or n, n)
        assert taken == (expected if n else 0)
        block, visible, t = (x[row, :taken].tolist() for x in (plan.block, plan.num_visible, plan.t))
        assert block == sorted(block) and sorted(set(block)) == list(range(len(set(block))))
        for number in set(block):
            own = [seen for seen, b in zip(visible, block, strict=True) if b == number]
            assert own == sorted(own) and own[-1] == int((plan.block_of[row] == number).sum())
            times = [time for time, b in zip(t, block, strict=True) if b == number]
            assert times == sorted(times, reverse=True) and times[-1] == 0 and times[0] < 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_block_has_the_counts_of_the_schedule(schedule):
    plan = plan_of([12, 5], steps=4, schedule=schedule)
    assert plan.num_visible[0].diff(prepend=torch.tensor([0])).tolist() == unmask_counts(schedule, 12, 4)
    assert plan.num_visible[1].diff(prepend=torch.tensor([0])).tolist() == unmask_counts(schedule, 5, 4)


def test_a_row_is_planned_the_same_alone_and_beside_others():
    together = plan_of([3, 12, 7], block_length=5, steps=9)
    for row, n in enumerate([3, 12, 7]):
        alone = plan_of([n], block_length=5, steps=9)
        taken = int(alone.num_steps[0])
        assert taken == together.num_steps[row]
        for name in ("block", "num_visible", "t"):
            assert torch.equal(getattr(alone, name)[0, :taken], getattr(together, name)[row, :taken])


def test_steps_per_token_scales_with_the_row():
    revising = Remasking("remdm_cap")
    assert plan_of([12, 5], steps_per_token=2.0, remasking=revising).num_steps.tolist() == [24, 10]
    assert plan_of([12, 5], steps_per_token=0.5).num_steps.tolist() == [6, 2]
    assert plan_of([12, 1], steps_per_token=0.01).num_steps.tolist() == [1, 1]


def test_counts_may_be_given():
    plan = plan_of([6], reveal_counts=[1, 2, 3])
    assert plan.num_visible.tolist() == [[1, 3, 6]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reveal_counts": [1, 2]}, "`reveal_counts` sum to 3, but 6"),
        ({"reveal_counts": [6, 0]}, "`reveal_counts` must be whole numbers"),
        ({"reveal_counts": [6], "steps": 1}, "`reveal_counts` is a whole plan"),
        ({"reveal_counts": [6], "block_length": 6}, "`reveal_counts` is a whole plan"),
        ({"block_length": 0}, "`block_length`"),
        ({"block_length": 2.0}, "`block_length`"),
        ({"block_length": 2, "steps": 2}, "`steps` is 2, but 6 tokens in blocks of 2 need at least 3"),
    ],
)
def test_impossible_plans_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan_of([6], **settings)
