"""The plan: counts of every row by itself, blocks in turn, and no step too many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.remasking import Remasking
from diffusion_mlm.reveal_plan import ancestral_plan, make_plan
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


# --- ancestral -------------------------------------------------------------------------------------------------------


def test_an_ancestral_step_reveals_each_mask_with_probability_1_minus_s_over_t():
    """Counts are binomial in what is masked: mean and variance of each step, given the one before."""
    rows, length, steps = 20_000, 12, 4
    plan = ancestral_plan(
        torch.ones(rows, length, dtype=torch.bool), torch.arange(rows), steps=steps, schedule="linear"
    )
    before = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), plan.num_visible[:, :-1]], 1)
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        chance, masked = 1 - s / t, (length - before[:, k]).double()
        revealed = (plan.num_visible[:, k] - before[:, k]).double()
        variance = masked.mean() * chance * (1 - chance)
        assert abs((revealed - chance * masked).mean()) < 5 * (variance / rows).sqrt() + 1e-12
        assert ((revealed - chance * masked) ** 2).mean() == pytest.approx(float(variance), rel=0.05, abs=1e-9)
    assert (plan.num_visible[:, -1] == length).all()


@pytest.mark.parametrize("steps", (None, 1, 5))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ancestral_plan_of_a_row_is_its_own_and_ends_with_everything_visible(schedule, steps):
    fills, keys = torch.tensor([0, 3, 12, 7]), torch.tensor([5, 6, 7, 8])
    to_fill = torch.arange(12) < fills[:, None]
    plan = ancestral_plan(to_fill, keys, steps=steps, schedule=schedule)
    assert plan.num_steps.tolist() == [0, *([steps] * 3 if steps else [3, 12, 7])]
    for row in range(1, 4):
        number = int(plan.num_steps[row])
        assert int(plan.num_visible[row, number - 1]) == fills[row]
        assert (plan.num_visible[row].diff() >= 0).all()
        alone = ancestral_plan(to_fill[row : row + 1], keys[row : row + 1], steps=steps, schedule=schedule)
        assert torch.equal(alone.num_visible[0, :number], plan.num_visible[row, :number])
