"""The curve of loss against mask rate and its integral, the likelihood bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm.evaluation.loss_curve import MASK_RATES, RowCurves, loss_curve_of_rows, quadrature_weights

MASK, VOCABULARY = 9, 10


def rows(*lengths):
    """Rows of so many words, padded with -1, and where they may be masked: all but the first position."""
    ids = torch.full((len(lengths), max(lengths) + 1), -1)
    for row, length in zip(ids, lengths, strict=True):
        row[: length + 1] = torch.arange(length + 1) % 8
    return ids, ids.ne(-1) & (torch.arange(ids.size(1)) > 0)


def loss_by_share(input_ids, scored):
    """A model whose cross-entropy is log(1 + masked words): it knows nothing but how many are masked."""
    masked = input_ids.eq(MASK).sum(-1, keepdim=True).expand_as(scored)[scored].double()
    logits = torch.full((len(masked), VOCABULARY), -torch.inf, dtype=torch.float64)
    logits[:, :8] = 0.0
    logits[:, 8] = torch.log(8 * (1 + masked) - 8)  # of the mass, 1 / (1 + masked) is shared by the 8 words
    return logits


def expected_loss(masked):
    return torch.log(8.0 * (1 + masked.double()))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.floats(-3, 3), st.floats(-3, 3))
def test_a_straight_line_is_integrated_exactly(nodes, slope, level):
    n = max(nodes)
    nodes = sorted([1, *nodes])
    weights = quadrature_weights(nodes, n)
    total = sum(weight * (level + slope * m) for weight, m in zip(weights, nodes, strict=True))
    assert total == pytest.approx(sum(level + slope * m for m in range(1, n + 1)), abs=1e-6)
    assert min(weights) > 0


def test_a_curve_that_is_known_at_every_count_is_summed():
    assert quadrature_weights([1, 2, 3, 4], 4) == [1.0, 1.0, 1.0, 1.0]
    assert quadrature_weights([0, 0], 0) == [0.0, 0.0]


def test_the_curve_is_the_loss_at_the_counts_that_its_rates_stand_for():
    ids, maskable = rows(16, 3)
    curve = loss_curve_of_rows(loss_by_share, ids, maskable, mask_id=MASK, rates=(0, 0.25, 0.5, 1), batch_size=3)
    assert curve.num_masked.tolist() == [[1, 4, 8, 16], [1, 1, 2, 3]]
    assert curve.total.tolist() == [16, 3]
    torch.testing.assert_close(curve.nats, expected_loss(curve.num_masked), rtol=1e-6, atol=0)


def test_the_integral_of_the_curve_is_the_sum_over_all_counts():
    ids, maskable = rows(64, 40, 2, 1)
    curve = loss_curve_of_rows(loss_by_share, ids, maskable, mask_id=MASK)
    exact = torch.stack([expected_loss(torch.arange(1, n + 1)).sum() for n in (64, 40, 2, 1)])
    torch.testing.assert_close(curve.integral()[2:], exact[2:], rtol=1e-6, atol=0)  # short rows leave no gap
    torch.testing.assert_close(curve.integral(), exact, rtol=1e-2, atol=0)
    assert (curve.integral()[:2] < exact[:2]).all()  # a line between two points of a concave curve runs below it


def test_points_weigh_rows_by_their_tokens():
    curve = RowCurves(
        torch.tensor([[1, 10], [1, 2]]), torch.tensor([[1.0, 2.0], [4.0, 5.0]]).double(), torch.tensor([10, 2])
    )
    rates, nats = zip(*curve.points(), strict=True)
    assert nats == pytest.approx([(10 * 1 + 2 * 4) / 12, (10 * 2 + 2 * 5) / 12])
    assert rates == pytest.approx([(10 * 0.1 + 2 * 0.5) / 12, 1.0])


def test_a_row_has_one_curve_whatever_its_batch():
    ids, maskable = rows(20, 7, 13)

    def by_place(input_ids, scored):  # depends on which words are masked, not only on how many
        seen = torch.where(input_ids.eq(MASK) | input_ids.eq(-1), 0, input_ids + torch.arange(input_ids.size(1)))
        return torch.sin(seen.sum(-1, keepdim=True).expand_as(scored)[scored][:, None] * torch.arange(1.0, 11.0))

    whole = loss_curve_of_rows(by_place, ids, maskable, mask_id=MASK, batch_size=2)
    alone = loss_curve_of_rows(by_place, ids[1:2, :8], maskable[1:2, :8], mask_id=MASK)
    torch.testing.assert_close(alone.nats[0], whole.nats[1], rtol=1e-6, atol=0)
    other = loss_curve_of_rows(by_place, ids, maskable, mask_id=MASK, seed=1)
    assert not torch.allclose(other.nats[:, :-1], whole.nats[:, :-1])
    torch.testing.assert_close(other.nats[:, -1], whole.nats[:, -1])  # all masked: there is one way to do it


def test_a_row_with_nothing_to_predict_costs_nothing():
    ids, maskable = rows(4, 4)
    maskable[0] = False
    nats = loss_curve_of_rows(loss_by_share, ids, maskable, mask_id=MASK).integral()
    assert nats[0] == 0 and nats[1] > 0


def test_the_rates_reach_both_ends_and_are_closer_there():
    assert MASK_RATES[0] == 0 and MASK_RATES[-1] == 1 and list(MASK_RATES) == sorted(MASK_RATES)
    assert math.isclose(MASK_RATES[1], 1 - MASK_RATES[-2])


@pytest.mark.parametrize("rates", [(0.1, 1), (0, 0.5), (0, 0.5, 0.2, 1), (), (1,)])
def test_rates_that_do_not_ascend_from_0_to_1_are_refused(rates):
    rows_of = rows(4)
    with pytest.raises(ValueError, match="`rates` must ascend from 0"):
        loss_curve_of_rows(loss_by_share, *rows_of, mask_id=MASK, rates=rates)
