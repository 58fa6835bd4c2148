"""Remasking: every rule against equation 7 of ReMDM, and what no rule may do."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_mlm.randomness import fold_in, uniform
from diffusion_mlm.remasking import REMASKS, Remasking
from diffusion_mlm.schedules import SCHEDULES, unmask_counts, unmask_counts_with_remasking
from diffusion_mlm.unmasking import scores_before_logits, take_highest

quietly = settings(deadline=None, derandomize=True, database=None, max_examples=300)
REMDM = [rule for rule in REMASKS if rule.startswith("remdm")]


def select(rule, to_fill: Tensor, is_masked: Tensor, num_visible: Tensor, keys: Tensor, t: float = 0.5, **settings):
    confidence = torch.full(to_fill.shape, 0.5).masked_fill(is_masked | ~to_fill, math.nan)
    confidence = settings.pop("confidence", confidence)
    times = torch.full((len(to_fill),), t, dtype=torch.float64)
    return Remasking(rule, **settings).select(to_fill, is_masked, num_visible, confidence, times, keys)


@st.composite
def selections(draw):
    """Positions to fill, which of them are masked, and a plan that does not fall."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    cells = batch * length
    kinds = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=cells, max_size=cells))).view(batch, length)
    to_fill, is_masked = kinds > 0, kinds > 1
    visible = (to_fill & ~is_masked).sum(-1)
    more = torch.tensor(draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch)))
    return to_fill, is_masked, torch.minimum(visible + more, to_fill.sum(-1))


# --- what holds for every rule ---------------------------------------------------------------------------------------


@quietly
@given(selections(), st.sampled_from(REMASKS), st.integers(0, 2**40), st.floats(0, 1), st.floats(0, 1))
def test_what_is_remasked_was_generated_and_visible_and_leaves_room_for_the_plan(selection, rule, key, eta, t):
    to_fill, is_masked, num_visible = selection
    eta = min(eta, 0.1) if rule == "remdm_loop" else eta
    keys = fold_in(key, torch.arange(len(to_fill)))
    remasked = select(rule, to_fill, is_masked, num_visible, keys, t, eta=eta)
    assert not (remasked & (is_masked | ~to_fill)).any()
    still_visible = (to_fill & ~is_masked & ~remasked).sum(-1)
    assert (num_visible - still_visible <= is_masked.sum(-1)).all(), "enough masks are left to reveal"
    last = select(rule, to_fill, is_masked, to_fill.sum(-1), keys, 0.0, eta=eta)
    assert not last.any(), "the last step remasks nothing"


@pytest.mark.parametrize("rule", ["none", "low_confidence", *REMDM])
def test_rules_without_strength_remask_nothing(rule):
    to_fill = torch.ones(50, 5, dtype=torch.bool)
    is_masked = (torch.arange(5) > 2).expand(50, -1)
    assert not select(rule, to_fill, is_masked, torch.full((50,), 3), torch.arange(50), eta=0.0).any()
    assert Remasking(rule, eta=0.0).revises == (rule == "low_confidence")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", (1, 5, 12, 40))
def test_counts_are_those_of_the_schedule_with_or_without_remasking(schedule, steps):
    assert Remasking().counts(schedule, 12, steps) == unmask_counts(schedule, 12, steps)
    for rule in set(REMASKS) - {"none", "remdm_loop"}:
        assert Remasking(rule).counts(schedule, 12, steps) == unmask_counts_with_remasking(schedule, 12, steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", (1, 2, 7, 20, 100))
def test_the_loop_rises_to_alpha_on_stays_there_and_closes(schedule, steps):
    loop = Remasking("remdm_loop", t_on=0.6, t_off=0.2, alpha_on=0.5, eta=0.1)
    counts = loop.counts(schedule, 40, steps)
    assert len(counts) == steps and sum(counts) == 40 and min(counts) >= 0
    for k, visible in enumerate(itertools.accumulate(counts)):
        t = 1 - (k + 1) / steps
        assert (visible == 20) if 0.2 <= t <= 0.6 else (visible <= 20 if t > 0.6 else visible >= 20)


# --- equation 7 ------------------------------------------------------------------------------------------------------

ROWS = 40_000
VISIBLE_NOW, VISIBLE_NEXT, TOTAL = 5, 8, 12
TO_FILL = torch.ones(ROWS, TOTAL, dtype=torch.bool)
IS_MASKED = (torch.arange(TOTAL) >= VISIBLE_NOW).expand(ROWS, -1)
KEYS, NEXT = fold_in(2, torch.arange(ROWS)), torch.full((ROWS,), VISIBLE_NEXT)
SIGMA_MAX = (TOTAL - VISIBLE_NEXT) / VISIBLE_NOW  # (1 - alpha_s) / alpha_t = 4 / 5


@pytest.mark.parametrize(
    ("rule", "eta", "t", "sigma"),
    [
        ("remdm_cap", 0.3, 0.5, 0.3),
        ("remdm_cap", 0.04, 0.5, 0.04),
        ("remdm_rescale", 0.25, 0.5, 0.25 * SIGMA_MAX),
        ("remdm_conf", 1.0, 0.5, SIGMA_MAX / VISIBLE_NOW),  # equal confidence: the softmax is flat
        ("remdm_loop", 0.1, 0.5, 0.1),
        ("remdm_loop", 0.1, 0.7, 0.0),
        ("remdm_loop", 0.1, 0.01, 0.0),
    ],
)
def test_each_visible_position_is_remasked_with_sigma(rule, eta, t, sigma):
    remasked = select(rule, TO_FILL, IS_MASKED, NEXT, KEYS, t, eta=eta)
    assert not remasked[:, VISIBLE_NOW:].any()
    share = remasked[:, :VISIBLE_NOW].double().mean(0)
    assert (share - sigma).abs().max() < 4.5 * max((sigma * (1 - sigma) / ROWS) ** 0.5, 1e-9)


def test_sigma_is_capped_at_its_largest_value():
    remasking = Remasking("remdm_cap", eta=1.0)
    visible, after, total = torch.tensor([0, 5, 10, 12]), torch.tensor([4, 8, 11, 12]), torch.tensor([12] * 4)
    sigma = remasking.probability(visible, after, total, torch.zeros(4))
    torch.testing.assert_close(sigma, torch.tensor([1.0, 0.8, 0.1, 0.0], dtype=torch.float64))


def test_unsure_tokens_are_remasked_more_often_by_confidence():
    confidence = torch.tensor([0.05, 0.5, 0.95, 0.5, 0.5] + [math.nan] * 7).expand(ROWS, -1)
    remasked = select("remdm_conf", TO_FILL, IS_MASKED, NEXT, KEYS, confidence=confidence, eta=1.0)
    share = remasked[:, :VISIBLE_NOW].double().mean(0)
    expected = SIGMA_MAX * torch.softmax(-confidence[0, :VISIBLE_NOW].double(), -1)
    assert (share - expected).abs().max() < 0.01
    assert share[0] > share[1] > share[2]


@pytest.mark.parametrize("rule", REMDM)
def test_marginals_of_the_plan_are_kept(rule):
    """Whatever is remasked, the step ends with the planned share visible, at every position alike."""
    u = uniform(fold_in(5, torch.arange(ROWS)), TOTAL)
    is_masked = ~take_highest(u, TO_FILL, torch.full((ROWS,), VISIBLE_NOW))
    remasked = select(rule, TO_FILL, is_masked, NEXT, KEYS, eta=0.1)
    counts = NEXT - (~is_masked & ~remasked).sum(-1)
    revealed = take_highest(scores_before_logits("random", fold_in(KEYS, 1), TOTAL), is_masked, counts)
    visible = (~is_masked & ~remasked) | revealed
    assert (visible.sum(-1) == VISIBLE_NEXT).all()
    assert (visible.double().mean(0) - VISIBLE_NEXT / TOTAL).abs().max() < 4.5 * (0.25 / ROWS) ** 0.5


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "noise"}, "`remask` must be one of none, renoise"),
        ({"rule": "remdm_cap", "eta": -0.1}, "`remask_eta`"),
        ({"rule": "remdm_cap", "eta": 1.1}, "`remask_eta`"),
        ({"rule": "remdm_cap", "eta": math.nan}, "`remask_eta`"),
        ({"rule": "remdm_loop", "eta": 0.2}, "`remask_eta` of `remdm_loop`"),
        ({"rule": "remdm_loop", "t_on": 0.1, "t_off": 0.2}, "`remask_t_off`"),
        ({"rule": "remdm_loop", "t_off": 0.0}, "`remask_t_off`"),
        ({"rule": "remdm_loop", "alpha_on": 1.0}, "`remask_alpha_on`"),
    ],
)
def test_impossible_settings_are_refused_at_construction(values, message):
    with pytest.raises(ValueError, match=message):
        Remasking(**values)


# --- renoising -------------------------------------------------------------------------------------------------------


def test_renoising_is_equation_7_of_remdm_with_sigma_of_1_minus_alpha():
    """12 positions, 5 visible now, 8 after the step: alpha_t = 5/12, alpha_s = 8/12, sigma = 4/12.

    visible: remasked with sigma. masked: revealed with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) = alpha_s.
    """
    rows, alpha_t, alpha_s = 40_000, 5 / 12, 8 / 12
    sigma = 1 - alpha_s
    to_fill = torch.ones(rows, 12, dtype=torch.bool)
    is_masked = (torch.arange(12) >= 5).expand(rows, -1)
    keys, num_visible = fold_in(2, torch.arange(rows)), torch.full((rows,), 8)
    remasked = select("renoise", to_fill, is_masked, num_visible, keys)
    counts = num_visible - (~is_masked & ~remasked).sum(-1)
    revealed = take_highest(scores_before_logits("random", fold_in(keys, 1), 12), is_masked, counts)
    assert ((to_fill & ~is_masked & ~remasked) | revealed).sum(-1).eq(8).all()

    reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    assert reveal == pytest.approx(alpha_s)
    error = 4 * (0.25 / rows) ** 0.5
    assert (remasked[:, :5].double().mean(0) - sigma).abs().max() < error
    assert (revealed[:, 5:].double().mean(0) - reveal).abs().max() < error


def test_renoising_keeps_every_set_of_positions_with_the_same_chance():
    """4 positions, 2 visible now and 2 after: 6 possible visible sets; chi-square, 5 degrees of freedom, 99.9 %."""
    rows = 24_000
    to_fill = torch.ones(rows, 4, dtype=torch.bool)
    is_masked = torch.tensor([False, True, False, True]).expand(rows, -1)
    keys, two = fold_in(3, torch.arange(rows)), torch.full((rows,), 2)
    remasked = select("renoise", to_fill, is_masked, two, keys)
    counts = two - (~is_masked & ~remasked).sum(-1)
    revealed = take_highest(scores_before_logits("random", fold_in(keys, 1), 4), is_masked, counts)
    visible = (~is_masked & ~remasked) | revealed
    observed = torch.stack(
        [
            (visible.nonzero()[:, 1].view(rows, 2) == torch.tensor(pair)).all(-1).sum()
            for pair in itertools.combinations(range(4), 2)
        ]
    )
    assert observed.sum() == rows
    assert ((observed - rows / 6) ** 2 / (rows / 6)).sum().item() < 20.5
