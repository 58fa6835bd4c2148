"""Unmasking: scores from hand-made distributions, exact selection, and the marginals of renoising."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.randomness import fold_in
from diffusion_mlm.unmasking import (
    ORDERS,
    ORDERS_BEFORE_LOGITS,
    position_scores,
    scores_before_logits,
    select_remasked,
    take_highest,
)

quietly = settings(deadline=None, derandomize=True, database=None, max_examples=300)

LOG_PROBS = torch.tensor(
    [[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05], [0.6, 0.2, 0.2]], dtype=torch.float64
).log()


def test_confidence_is_the_log_of_the_largest_probability():
    torch.testing.assert_close(
        position_scores("confidence", LOG_PROBS).exp(), torch.tensor([0.5, 0.4, 0.9, 0.6], dtype=torch.float64)
    )


def test_margin_is_the_lead_of_the_first_over_the_second():
    torch.testing.assert_close(
        position_scores("margin", LOG_PROBS), torch.tensor([0.0, 0.1, 0.85, 0.4], dtype=torch.float64)
    )


def test_entropy_ranks_the_surest_first():
    scores = position_scores("entropy", LOG_PROBS)
    assert scores[0].item() == pytest.approx(-math.log(2))
    assert scores.argsort(descending=True).tolist() == [2, 0, 3, 1]


def test_the_three_orders_disagree_where_they_should():
    """A fair coin between two tokens: low entropy and half confident, but no lead at all."""
    assert position_scores("confidence", LOG_PROBS).argsort(descending=True).tolist() == [2, 3, 0, 1]
    assert position_scores("margin", LOG_PROBS).argsort(descending=True).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("order", [order for order in ORDERS if order not in ORDERS_BEFORE_LOGITS])
def test_forbidden_ids_and_a_vocabulary_of_one_give_finite_scores(order):
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert position_scores(order, certain).tolist() == [1.0 if order == "margin" else 0.0]
    assert position_scores(order, torch.zeros(2, 1)).isfinite().all()
    assert position_scores(order, torch.zeros(0, 5)).shape == (0,)


@pytest.mark.parametrize("order", [order for order in ORDERS if order not in ORDERS_BEFORE_LOGITS])
def test_equal_distributions_have_exactly_equal_scores_wherever_they_stand(order):
    row = torch.randn(1, 53, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for rows in (1, 2, 3, 7, 64):
        assert (position_scores(order, row.repeat(rows, 1)) == position_scores(order, row)).all()


def test_left_to_right_falls_and_random_is_keyed():
    keys = torch.tensor([5, 6, 5])
    assert scores_before_logits("left_to_right", keys, 4).tolist() == [[0, -1, -2, -3]] * 3
    random = scores_before_logits("random", keys, 4)
    assert torch.equal(random[0], random[2]) and not torch.equal(random[0], random[1])


def test_orders_are_asked_of_the_right_function():
    with pytest.raises(ValueError, match="`order`.*'random'"):
        position_scores("random", LOG_PROBS)
    with pytest.raises(ValueError, match="`order`.*'margin'"):
        scores_before_logits("margin", torch.tensor([0]), 3)


def test_random_order_makes_every_order_equally_likely():
    """All 24 orders of 4 positions, 48,000 keys: chi-square with 23 degrees of freedom, 99.9 % at 49.7."""
    ranking = scores_before_logits("random", fold_in(1, torch.arange(48_000)), 4).argsort(-1)
    code = (ranking * torch.tensor([64, 16, 4, 1])).sum(-1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 2000) ** 2 / 2000).sum().item() < 49.7


# --- take_highest ----------------------------------------------------------------------------------------------------


@st.composite
def selections(draw):
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    score = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])  # many ties, and both infinities
    cells = batch * length
    scores = torch.tensor(draw(st.lists(score, min_size=cells, max_size=cells))).view(batch, length)
    eligible = torch.tensor(draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).view(batch, length)
    return scores, eligible, torch.tensor(draw(st.lists(st.integers(0, 12), min_size=batch, max_size=batch)))


@quietly
@given(selections())
def test_take_highest_is_the_naive_selection(selection):
    scores, eligible, counts = selection
    taken = take_highest(scores, eligible, counts)
    assert torch.equal(taken.sum(-1), torch.minimum(counts, eligible.sum(-1)))
    for row in range(len(scores)):
        places = [i for i in range(scores.shape[1]) if eligible[row, i]]
        best = sorted(places, key=lambda i: (-scores[row, i].item(), i))[: counts[row]]
        assert taken[row].nonzero().squeeze(-1).tolist() == sorted(best)


def test_ties_go_to_the_left_in_long_rows_too():
    """Sorting is only stable by chance in short rows."""
    taken = take_highest(torch.zeros(2, 5000), torch.ones(2, 5000, dtype=torch.bool), torch.tensor([1, 2500]))
    assert taken[0, 0] and taken[1, :2500].all() and taken.sum() == 2501


def test_take_highest_of_an_empty_batch_is_empty():
    assert take_highest(
        torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    ).shape == (0, 3)


# --- remasking -------------------------------------------------------------------------------------------------------


def test_no_remasking_remasks_nothing():
    to_fill = torch.ones(2, 5, dtype=torch.bool)
    assert not select_remasked("none", to_fill, ~to_fill, torch.tensor([0, 3]), torch.tensor([1, 2])).any()


def test_an_unknown_rule_is_refused():
    to_fill = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="`remask` must be one of none, renoise, got 'noise'"):
        select_remasked("noise", to_fill, to_fill, torch.tensor([1]), torch.tensor([1]))


@quietly
@given(selections(), st.integers(0, 2**40))
def test_renoising_remasks_only_generated_visible_positions_and_leaves_room_for_the_plan(selection, key):
    _, to_fill, wanted = selection
    is_masked = to_fill & (torch.arange(to_fill.shape[1]) % 3 == 0)
    num_visible = torch.minimum(wanted, to_fill.sum(-1))
    remasked = select_remasked("renoise", to_fill, is_masked, num_visible, fold_in(key, torch.arange(len(to_fill))))
    assert not (remasked & (is_masked | ~to_fill)).any()
    still_visible = (to_fill & ~is_masked & ~remasked).sum(-1)
    assert (still_visible <= num_visible).all()
    assert (num_visible - still_visible <= is_masked.sum(-1)).all(), "enough masks are left to reveal"
    everything = to_fill.sum(-1)
    assert not select_remasked("renoise", to_fill, is_masked, everything, torch.arange(len(to_fill))).any()


def test_renoising_is_equation_7_of_remdm_with_sigma_of_1_minus_alpha():
    """12 positions, 5 visible now, 8 after the step: alpha_t = 5/12, alpha_s = 8/12, sigma = 4/12.

    visible: remasked with sigma. masked: revealed with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) = alpha_s.
    """
    rows, alpha_t, alpha_s = 40_000, 5 / 12, 8 / 12
    sigma = 1 - alpha_s
    to_fill = torch.ones(rows, 12, dtype=torch.bool)
    is_masked = (torch.arange(12) >= 5).expand(rows, -1)
    keys, num_visible = fold_in(2, torch.arange(rows)), torch.full((rows,), 8)
    remasked = select_remasked("renoise", to_fill, is_masked, num_visible, keys)
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
    remasked = select_remasked("renoise", to_fill, is_masked, two, keys)
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
