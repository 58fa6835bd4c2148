"""Schedules: end points, derivatives, ELBO weights and integer counts against their closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_mlm.schedules import (
    COSINE_OFFSET,
    SCHEDULES,
    Schedule,
    get_schedule,
    unmask_counts,
    unmask_counts_with_remasking,
)

NAMES = ("linear", "cosine", "exponential", "maskgit", "survival")
every_schedule = pytest.mark.parametrize("name", NAMES)
both_precisions = pytest.mark.parametrize("dtype", (torch.float32, torch.float64))


def squared_cosine(t: Tensor, s: float) -> Tensor:
    """1 - cos^2((t + s) / (1 + s) pi / 2) / cos^2(s / (1 + s) pi / 2), as it is published."""
    return 1 - torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2


PUBLISHED = {
    "linear": lambda t: t,
    "cosine": lambda t: squared_cosine(t, COSINE_OFFSET),
    "exponential": lambda t: (torch.exp(-3 * (1 - t)) - math.exp(-3)) / (1 - math.exp(-3)),
    "maskgit": lambda t: torch.cos(math.pi / 2 * (1 - t)),
    "survival": lambda t: 1 - torch.cos(math.pi / 2 * t),
}
PUBLISHED_WEIGHT = {
    "linear": lambda t: 1 / t,
    "cosine": lambda t: (
        math.pi
        * torch.sin(math.pi * (t + COSINE_OFFSET) / (1 + COSINE_OFFSET))
        / (2 * (1 + COSINE_OFFSET) * math.cos(COSINE_OFFSET / (1 + COSINE_OFFSET) * math.pi / 2) ** 2)
        / squared_cosine(t, COSINE_OFFSET)
    ),
    "exponential": lambda t: 3 / (1 - torch.exp(-3 * t)),
    "maskgit": lambda t: math.pi / 2 / torch.tan(math.pi / 2 * t),
    "survival": lambda t: math.pi / 2 / torch.tan(math.pi / 4 * t),
}


def test_the_schedules_are_exactly_the_documented_ones():
    assert tuple(SCHEDULES) == NAMES
    assert all(SCHEDULES[name].name == name for name in NAMES)


@every_schedule
@both_precisions
def test_end_points_are_exact(name, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert get_schedule(name).mask_rate(ends).tolist() == [0.0, 1.0]
    # The ends stay exact wherever they stand in a tensor, vectorised loop or remainder.
    assert get_schedule(name).mask_rate(ends.repeat(37)).tolist() == [0.0, 1.0] * 37


@every_schedule
@both_precisions
def test_mask_rate_rises_strictly_from_0_to_1(name, dtype):
    rates = get_schedule(name).mask_rate(torch.linspace(0, 1, 1001, dtype=dtype))
    assert (rates.diff() > 0).all()
    assert rates.min() == 0 and rates.max() == 1


@every_schedule
def test_mask_rate_rises_at_the_very_start_and_never_exceeds_1(name):
    tiny = torch.tensor([0.0, 1e-30, 1e-20, 1e-12, 1e-9, 1e-6], dtype=torch.float64)
    assert (get_schedule(name).mask_rate(tiny).diff() > 0).all()
    late = 1 - torch.logspace(-17, -1, 200, dtype=torch.float64)
    assert (get_schedule(name).mask_rate(late) <= 1).all()


@every_schedule
def test_mask_rate_is_the_published_formula(name):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(get_schedule(name).mask_rate(t), PUBLISHED[name](t), rtol=0, atol=1e-14)


@every_schedule
def test_derivative_is_that_of_autograd(name):
    t = torch.linspace(0.001, 0.999, 499, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(get_schedule(name).mask_rate(t).sum(), t)
    torch.testing.assert_close(get_schedule(name).derivative(t.detach()), slope, rtol=1e-12, atol=1e-12)


@every_schedule
@both_precisions
def test_derivative_is_never_negative(name, dtype):
    assert (get_schedule(name).derivative(torch.linspace(0, 1, 1001, dtype=dtype)) >= 0).all()


@every_schedule
def test_elbo_weight_is_the_closed_form(name):
    t = torch.linspace(0.01, 0.99, 401, dtype=torch.float64)
    torch.testing.assert_close(get_schedule(name).elbo_weight(t), PUBLISHED_WEIGHT[name](t), rtol=1e-10, atol=1e-10)


@every_schedule
def test_elbo_weight_is_as_good_in_float32(name):
    """1 - cos^2 in float32 would lose all digits here; the product form keeps six."""
    t = torch.logspace(-6, -0.1, 200, dtype=torch.float64)
    schedule = get_schedule(name)
    torch.testing.assert_close(schedule.elbo_weight(t.float()).double(), schedule.elbo_weight(t), rtol=1e-5, atol=0)


@every_schedule
def test_mean_derivative_is_1(name):
    """The substitution that removes the schedule from the bound: the integral of mask_rate' over t is 1."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert get_schedule(name).derivative(t).mean().item() == pytest.approx(1, abs=1e-9)


def test_cosine_differs_from_the_squared_sine_by_at_most_0_0072():
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    difference = (get_schedule("cosine").mask_rate(t) - torch.sin(math.pi / 2 * t) ** 2).abs().max().item()
    assert 0.0071 < difference < 0.0072


def test_cosine_is_not_the_quarter_cosine():
    quarter = torch.tensor([0.25])
    assert get_schedule("cosine").mask_rate(quarter).item() == pytest.approx(0.153, abs=5e-4)
    assert get_schedule("maskgit").mask_rate(quarter).item() == pytest.approx(0.383, abs=5e-4)


def test_the_mean_mask_rate_of_survival_over_100_steps_is_0_368():
    """As its users report it for T = 100; 1 - 2 / pi in the limit."""
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    assert get_schedule("survival").mask_rate(t).mean().item() == pytest.approx(0.368, abs=5e-4)


@every_schedule
@both_precisions
def test_shape_and_dtype_are_kept(name, dtype):
    t = torch.rand(3, 1, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    schedule = get_schedule(name)
    for value in (schedule.mask_rate(t), schedule.derivative(t), schedule.elbo_weight(t)):
        assert value.shape == t.shape and value.dtype == dtype
    assert schedule.mask_rate(torch.tensor(0.5, dtype=dtype)).shape == ()
    assert schedule.mask_rate(torch.zeros(0, dtype=dtype)).shape == (0,)


@every_schedule
def test_the_input_is_not_returned_or_changed(name):
    t = torch.tensor([0.25, 0.5])
    get_schedule(name).mask_rate(t).zero_()
    assert t.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("value", (-1e-9, 1 + 1e-9, math.nan, math.inf))
def test_time_outside_0_to_1_is_refused(value):
    t = torch.tensor([0.5, value], dtype=torch.float64)
    for method in (get_schedule("linear").mask_rate, get_schedule("linear").derivative):
        with pytest.raises(ValueError, match=r"`t` must lie in \[0, 1\]"):
            method(t)


def test_time_that_is_not_floating_point_is_refused():
    with pytest.raises(ValueError, match="`t` must be a floating point tensor"):
        get_schedule("linear").mask_rate(torch.tensor([0, 1]))


def test_a_schedule_is_its_own_schedule_and_unknown_names_list_near_ones():
    assert get_schedule(SCHEDULES["cosine"]) is SCHEDULES["cosine"]
    with pytest.raises(ValueError, match=r"`schedule` must be one of linear, cosine.*'cosin'.*mean 'cosine'"):
        get_schedule("cosin")
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        get_schedule("sigmoid")


# --- integer counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("linear", [4, 4, 4, 4, 4, 4, 4, 4]),
        ("cosine", [1, 4, 5, 6, 6, 5, 4, 1]),
        ("exponential", [11, 7, 5, 3, 3, 1, 1, 1]),
        ("maskgit", [1, 1, 3, 4, 5, 6, 6, 6]),
        ("survival", [6, 6, 6, 5, 4, 3, 1, 1]),
    ],
)
def test_32_tokens_in_8_steps_are_the_published_counts(name, counts):
    assert unmask_counts(name, 32, 8) == counts
    assert unmask_counts_with_remasking(name, 32, 8) == counts


def check_counts(name: str, num_masked: int, steps: int) -> None:
    counts = unmask_counts(name, num_masked, steps)
    assert len(counts) == min(steps, num_masked)
    assert sum(counts) == num_masked
    assert all(count >= 1 for count in counts)


@every_schedule
def test_counts_sum_to_the_masks_and_are_at_least_1_for_every_length(name):
    for num_masked in range(1, 513):
        for steps in {1, 2, 3, 7, num_masked // 3 or 1, num_masked - 1 or 1, num_masked, num_masked + 1, 2048}:
            check_counts(name, num_masked, steps)


@settings(deadline=None, derandomize=True, database=None, max_examples=400)
@given(st.sampled_from(NAMES), st.integers(1, 512), st.integers(1, 2048))
def test_counts_sum_to_the_masks_and_are_at_least_1(name, num_masked, steps):
    check_counts(name, num_masked, steps)


# Flat in the middle, where the plan would stand still: the four schedules never need the floor of one token there.
PLATEAU = Schedule("plateau", formula=lambda t: 0.5 + 4 * (t - 0.5) ** 3, slope=lambda t: 12 * (t - 0.5) ** 2)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.sampled_from((*NAMES, PLATEAU)), st.integers(1, 200), st.integers(1, 250))
def test_counts_follow_the_written_recursion(name, num_masked, steps):
    """n_k = min(max(round(L (1 - gamma(k/K))), n_{k-1} + 1), L - (K - k)), one step after the other."""
    steps_made, visible, expected = min(steps, num_masked), 0, []
    for k in range(1, steps_made + 1):
        remaining = get_schedule(name).mask_rate(torch.tensor((steps_made - k) / steps_made, dtype=torch.float64))
        target = round(num_masked * (1 - remaining.item()))
        after = min(max(target, visible + 1), num_masked - (steps_made - k))
        expected.append(after - visible)
        visible = after
    assert unmask_counts(name, num_masked, steps) == expected


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.sampled_from(NAMES), st.integers(0, 300), st.integers(1, 2048))
def test_counts_with_remasking_have_exactly_the_planned_steps(name, num_masked, steps):
    counts = unmask_counts_with_remasking(name, num_masked, steps)
    assert len(counts) == steps if num_masked else counts in ([], [0] * steps)
    assert sum(counts) == num_masked
    assert all(count >= 0 for count in counts)


@every_schedule
def test_counts_with_remasking_follow_the_schedule_to_half_a_token(name):
    for num_masked, steps in ((8, 32), (31, 100), (128, 512)):
        visible = torch.tensor(unmask_counts_with_remasking(name, num_masked, steps)).cumsum(0)
        time_left = 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps
        share = 1 - get_schedule(name).mask_rate(time_left.clamp(min=0))
        assert (visible - num_masked * share).abs().max() <= 0.5 + 1e-9


def test_nothing_masked_needs_no_step():
    assert unmask_counts("linear", 0, 5) == []


@pytest.mark.parametrize("count", (unmask_counts, unmask_counts_with_remasking))
def test_impossible_counts_are_refused(count):
    for steps in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1"):
            count("linear", 4, steps)
    for num_masked in (-1, 2.5):
        with pytest.raises(ValueError, match="`num_masked` must be a whole number of at least 0"):
            count("linear", num_masked, 4)
    with pytest.raises(ValueError, match="`schedule` must be one of"):
        count("quadratic", 4, 2)


def test_a_schedule_of_ones_own_works_everywhere():
    square = Schedule("square", formula=lambda t: t**2, slope=lambda t: 2 * t)
    assert unmask_counts(square, 16, 4) == [7, 5, 3, 1]
    torch.testing.assert_close(square.elbo_weight(torch.tensor([0.5])), torch.tensor([4.0]))
