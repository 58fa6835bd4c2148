"""Unmasking: scores from hand-made distributions, exact selection, and counts that the model decides."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.randomness import fold_in
from diffusion_mlm.unmasking import (
    ADAPTIVE_RULES,
    ORDERS,
    ORDERS_BEFORE_LOGITS,
    AdaptiveCount,
    position_scores,
    scores_before_logits,
    take_highest,
    take_independent,
    take_spread,
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


# --- take_spread -----------------------------------------------------------------------------------------------------


def naive_spread(scores: list[float], places: list[int], count: int, gap: int) -> set[int]:
    taken: list[int] = []
    while len(taken) < min(count, len(places)):
        free = [i for i in places if i not in taken]
        far = [i for i in free if all(abs(i - j) > gap for j in taken)]
        taken.append(min(far or free, key=lambda i: (-scores[i], i)))
    return set(taken)


@quietly
@given(selections(), st.integers(0, 4))
def test_take_spread_is_the_naive_selection(selection, gap):
    scores, eligible, counts = selection
    taken = take_spread(scores, eligible, counts, gap)
    for row in range(len(scores)):
        places = [i for i in range(scores.shape[1]) if eligible[row, i]]
        expected = naive_spread(scores[row].tolist(), places, int(counts[row]), gap)
        assert set(taken[row].nonzero().squeeze(-1).tolist()) == expected


# --- adaptive counts -------------------------------------------------------------------------------------------------

SURE = torch.tensor([[0.5, 0.95, 0.9, 0.99, 0.2]])
NATS = torch.tensor([[1.0, 0.2, 0.3, 0.05, 2.0]])
ALL = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("rule", "bound", "expected"),
    [
        ("threshold", 0.9, 3),
        ("threshold", 0.96, 1),
        ("threshold", 1.0, 1),  # nobody is that sure: the best one goes all the same
        ("factor", 0.2, 2),  # 2 * 0.01, 3 * 0.05 fit; 4 * 0.1 does not
        ("factor", 0.41, 3),
        ("entropy_bound", 0.0, 1),
        ("entropy_bound", 0.06, 2),  # 0.05 + 0.2 less the largest
        ("entropy_bound", 0.26, 3),
        ("entropy_bound", 100.0, 5),
    ],
)
def test_adaptive_counts_by_hand(rule, bound, expected):
    scores = -NATS if rule == "entropy_bound" else SURE
    assert AdaptiveCount(rule, bound).counts(scores, ALL, SURE, NATS).tolist() == [expected]
    assert AdaptiveCount(rule, bound, most=2).counts(scores, ALL, SURE, NATS).tolist() == [min(expected, 2)]


@pytest.mark.parametrize("rule", [rule for rule in ADAPTIVE_RULES if rule != "independent"])  # it takes no run
def test_adaptive_counts_look_at_eligible_positions_only(rule):
    eligible = torch.tensor([[True, False, False, False, True]])
    assert AdaptiveCount(rule, 0.6).counts(SURE, eligible, SURE, NATS).tolist() == [1]
    assert AdaptiveCount(rule, 0.6).counts(SURE, ~ALL, SURE, NATS).tolist() == [0]


def independent_of(*pairs, length=12, bound=0.1):
    """What is revealed together if each pair (position, words) is masked and expects those words, each as likely."""
    eligible = torch.zeros(1, length, dtype=torch.bool)
    eligible[0, [position for position, _ in pairs]] = True
    probs = torch.tensor([[float(word in words) for word in "abcdefgh"] for _, words in pairs])
    log_probs = torch.nn.functional.normalize(probs, p=1, dim=-1).log()
    scores = -torch.arange(float(length)).double()[None]
    return take_independent(scores, eligible, eligible, log_probs, bound).nonzero()[:, 1].tolist()


def test_independent_positions_are_all_that_are_sure_and_one_other():
    assert independent_of((0, "ab"), (1, "a"), (2, "cd"), (3, "b")) == [0, 1, 3]


def test_unsure_positions_join_from_gaps_of_at_most_two():
    assert independent_of((0, "ab"), (6, "cd"), (7, "ef")) == [0, 6]
    assert independent_of((0, "ab"), (6, "cd"), (7, "ef"), (8, "gh")) == [0]
    assert independent_of((0, "ab"), (1, "cd"), (2, "ef"), (8, "gh")) == [0], "the best one is in a gap of three"


def test_unsure_positions_join_from_beyond_three_positions():
    assert independent_of((0, "ab"), (4, "cd"), (8, "ef")) == [0, 4, 8]
    assert independent_of((0, "ab"), (3, "cd"), (8, "ef")) == [0, 8]


def test_unsure_positions_that_expect_the_same_words_do_not_join():
    assert independent_of((0, "ab"), (5, "bc"), (10, "cd")) == [0, 10]


@quietly
@given(seed=st.integers(0, 10**6), bound=st.sampled_from([0.0, 0.3, 1.0]))
def test_independent_positions_of_a_row_do_not_depend_on_the_others(seed, bound):
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(4, 9, generator=generator) < torch.tensor([[0.0], [0.3], [0.6], [1.0]])
    eligible = masked & (torch.rand(4, 9, generator=generator) < 0.8)
    scores = torch.rand(4, 9, generator=generator).double()
    log_probs = torch.log_softmax(6 * torch.randn(4, 9, 5, generator=generator), dim=-1)
    together = take_independent(scores, eligible, masked, log_probs[eligible], bound)
    assert (together <= eligible).all() and together.any(-1).equal(eligible.any(-1))
    for row in range(4):
        one = slice(row, row + 1)
        alone = take_independent(scores[one], eligible[one], masked[one], log_probs[one][eligible[one]], bound)
        assert alone.equal(together[one])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("always", 0.5), "`adaptive` must be one of threshold, factor, entropy_bound"),
        (("threshold", 0.0), "`adaptive_bound`"),
        (("threshold", 1.5), "`adaptive_bound`"),
        (("factor", 0), "`adaptive_bound`"),
        (("entropy_bound", -0.1), "`adaptive_bound`"),
        (("entropy_bound", math.nan), "`adaptive_bound`"),
        (("threshold", 0.9, 0), "`max_reveal`"),
        (("threshold", 0.9, 2.0), "`max_reveal`"),
    ],
)
def test_impossible_adaptive_rules_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveCount(*values)
