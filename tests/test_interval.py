"""Confidence intervals of figures per token, against formulas, tables and repetition."""

import math

import pytest
import torch

from diffusion_mlm.evaluation.interval import (
    group_standard_error,
    ratio_estimate,
    share_interval,
    student_quantile,
)
from diffusion_mlm.randomness import uniform


def test_the_figure_is_a_ratio_of_sums_and_no_mean_of_ratios():
    estimate = ratio_estimate(torch.tensor([10.0, 1.0]), torch.tensor([100, 1]))
    assert estimate.value == pytest.approx(11 / 101)


def test_with_texts_of_one_length_the_error_is_that_of_a_mean():
    nats = torch.tensor([3.0, 5.0, 8.0, 9.0], dtype=torch.float64)
    estimate = ratio_estimate(nats, torch.full((4,), 7))
    error = float(nats.std()) / 2 / 7
    assert estimate.standard_error == pytest.approx(error)
    assert estimate.interval == pytest.approx((25 / 28 - 3.182 * error, 25 / 28 + 3.182 * error), rel=1e-2)


def test_texts_that_differ_in_length_alone_leave_no_doubt():
    tokens = torch.tensor([3, 50, 11])
    estimate = ratio_estimate(0.5 * tokens, tokens)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)
    assert estimate.interval == pytest.approx((0.5, 0.5))


def test_one_text_has_no_interval():
    estimate = ratio_estimate(torch.tensor([3.0]), torch.tensor([6]))
    assert (estimate.value, estimate.standard_error, estimate.interval) == (0.5, None, None)


@pytest.mark.parametrize(
    "probability, degrees, table",
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 5, 2.571),
        (0.975, 30, 2.042),
        (0.995, 4, 4.604),
        (0.95, 9, 1.833),
        (0.975, 10**6, 1.960),
    ],
)
def test_quantiles_of_student_are_those_of_the_tables(probability, degrees, table):
    assert student_quantile(probability, degrees) == pytest.approx(table, rel=0.01)


@pytest.mark.parametrize("num_texts", [12, 40])
def test_intervals_cover_the_truth_as_often_as_they_say(num_texts):
    """1000 corpora of texts of 20 to 60 tokens whose nats per token are skewed (exponential), truth 1."""
    draws = uniform(torch.arange(1000), 2 * num_texts)
    tokens = (20 + 41 * draws[:, :num_texts]).long()
    nats = (0.5 - 0.5 * torch.log1p(-draws[:, num_texts:])) * tokens
    covered = 0
    for of_corpus in zip(nats, tokens, strict=True):
        low, high = ratio_estimate(*of_corpus).interval
        covered += low <= 1 <= high
    assert 890 <= covered <= 980  # a skewed law of few texts is covered a little less than 95 %


def test_groups_have_the_standard_error_of_their_mean():
    groups = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    torch.testing.assert_close(group_standard_error(groups), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match=f"`confidence` must lie in \\(0, 1\\), not {confidence}"):
        ratio_estimate(torch.ones(3), torch.ones(3), confidence)


def test_no_token_has_no_figure():
    with pytest.raises(ValueError, match="`tokens` sums to 0 over 2 texts"):
        ratio_estimate(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("count, total", [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (81, 263), (15, 148)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_ends_of_the_interval_of_a_share_solve_the_score_test(count, total, confidence):
    """Each end p is where |share - p| is z standard errors of p, which is what Wilson's interval is."""
    share = count / total
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    for end in share_interval(count, total, confidence):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), abs=1e-9)


def test_the_interval_of_a_share_stays_within_0_and_1_and_holds_the_share():
    for total in (1, 2, 7, 64):
        for count in range(total + 1):
            low, high = share_interval(count, total)
            assert 0 <= low <= count / total <= high <= 1 and low < high


@pytest.mark.parametrize("count, total", [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_are_no_share_are_refused(count, total):
    with pytest.raises(ValueError, match="`count` and `total` must satisfy"):
        share_interval(count, total)
