"""Calibration by mask rate: by hand, by drawing from the model itself, and of the exact denoiser."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion_mlm import story_language
from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.evaluation.calibration import CalibrationSums, evaluate_calibration

STORIES = story_language.sample(4, seed=2)


class Sharpened(nn.Module):
    """A model whose logits are those of another, times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor, self.config = model, factor, model.config
        self.device = torch.device("cpu")

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.model(**inputs).logits * self.factor)


def figures_of(logits, targets, rates=None):
    sums = CalibrationSums()
    sums.add(logits, targets, torch.full(targets.shape, 0.55) if rates is None else rates)
    return sums.figures()


def drawn(num_tokens, factor=1.0, seed=0):
    """Logits times a factor, and tokens drawn from the distributions before it."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_tokens, 6, generator=generator)
    return factor * logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def test_figures_are_those_computed_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.72, 0.08, 0.2]])
    at, everything = figures_of(p.log(), torch.tensor([0, 1, 2]), torch.tensor([0.5, 0.41, 0.45]))
    assert (at.mask_rate, everything.mask_rate, at.num_tokens) == (0.5, None, 3)
    assert at.nats == pytest.approx(-math.log(0.7 * 0.3 * 0.2) / 3, rel=1e-5)
    squares = [0.3**2 + 0.2**2 + 0.1**2, 0.5**2 + 0.7**2 + 0.2**2, 0.72**2 + 0.08**2 + 0.8**2]
    assert at.brier == pytest.approx(sum(squares) / 3, rel=1e-5)
    assert at.accuracy == pytest.approx(1 / 3) and at.confidence == pytest.approx((0.7 + 0.5 + 0.72) / 3)
    # 0.7 and 0.72 share the bin up to 11/15, where one of two is right; 0.5 has a bin of its own.
    assert at.calibration_error == pytest.approx((abs(1 - 1.42) + abs(0 - 0.5)) / 3, rel=1e-5)
    chance = math.sqrt(2 / math.pi * (0.7 * 0.3 + 0.72 * 0.28)) + math.sqrt(2 / math.pi * 0.5 * 0.5)
    assert at.error_by_chance == pytest.approx(chance / 3, rel=1e-5)


def test_each_tenth_of_the_mask_rates_has_its_own_figures():
    logits, targets = drawn(4)
    found = figures_of(logits, targets, torch.tensor([0.05, 0.1, 0.11, 1.0]))
    assert [(of.mask_rate, of.num_tokens) for of in found] == [(0.1, 2), (0.2, 1), (1.0, 1), (None, 4)]
    assert found[-1].nats == pytest.approx(sum(of.nats * of.num_tokens for of in found[:-1]) / 4)


def test_a_model_that_draws_from_its_own_distribution_is_calibrated_but_for_chance():
    found = [figures_of(*drawn(4000, seed=seed))[-1] for seed in range(10)]
    ratio = sum(of.calibration_error for of in found) / sum(of.error_by_chance for of in found)
    assert ratio == pytest.approx(1, abs=0.15)
    assert sum(of.temperature for of in found) / 10 == pytest.approx(1, abs=0.02)


def test_an_overconfident_model_shows_by_how_much():
    sharp, right = figures_of(*drawn(4000, factor=2.0))[-1], figures_of(*drawn(4000))[-1]
    assert sharp.confidence > sharp.accuracy + 0.05 and sharp.calibration_error > 5 * sharp.error_by_chance
    assert sharp.temperature == pytest.approx(2 * right.temperature, rel=1e-5)
    assert sharp.nats > right.nats and sharp.nats_at_temperature == pytest.approx(right.nats_at_temperature, rel=1e-6)


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.3, 4.0])
def test_the_fitted_temperature_is_the_one_of_the_least_loss(factor):
    logits, targets = drawn(500, factor)
    found = figures_of(logits, targets)[-1]
    grid = torch.linspace(-0.01, 0.01, 201, dtype=torch.float64).exp() * found.temperature
    losses = [float(nn.functional.cross_entropy(logits.double() / t, targets)) for t in grid]
    assert abs(math.log(grid[losses.index(min(losses))] / found.temperature)) < 1e-3
    assert found.nats_at_temperature == pytest.approx(min(losses), abs=1e-4)


def test_there_is_no_temperature_where_none_fits():
    always_right = figures_of(torch.eye(4), torch.arange(4))[-1]  # the colder the better
    indifferent = figures_of(torch.zeros(3, 4), torch.arange(3))[-1]
    assert always_right.temperature is always_right.nats_at_temperature is None
    assert indifferent.temperature is None and indifferent.nats == pytest.approx(math.log(4))


def test_impossible_tokens_play_no_part():
    logits, targets = drawn(50)
    with_others = torch.cat([logits, torch.full((50, 3), -torch.inf)], -1)
    one, other = figures_of(logits, targets)[-1], figures_of(with_others, targets)[-1]
    assert one.to_dict() == pytest.approx(other.to_dict())


def test_how_tokens_come_in_changes_nothing(monkeypatch):
    logits, targets = drawn(40)
    rates = torch.linspace(0.02, 1, 40)
    whole = figures_of(logits, targets, rates)
    monkeypatch.setattr("diffusion_mlm.evaluation.calibration._NUMBERS_AT_ONCE", 7 * 6)
    for one, other in zip(whole, figures_of(logits, targets, rates), strict=True):
        assert one.to_dict() == pytest.approx(other.to_dict())


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_nan_and_probability_zero_are_no_figures(bad):
    logits, targets = drawn(5)
    logits[3, targets[3]] = bad
    with pytest.raises(NonFiniteLossError, match="NaN, or gives a token of the text probability 0"):
        figures_of(logits, targets)


def test_the_exact_denoiser_is_calibrated_and_twice_its_logits_are_not(story_tokenizer):
    exact = story_language.ExactDenoiser()
    right, sharp = (evaluate_calibration(Sharpened(exact, factor), story_tokenizer, STORIES) for factor in (1.0, 2.0))
    assert [of.mask_rate for of in right] == [pytest.approx(k / 10) for k in range(1, 11)] + [None]
    everything = right[-1]
    assert everything.calibration_error < 0.05 and everything.temperature == pytest.approx(1, abs=0.1)
    assert abs(everything.accuracy - everything.confidence) < 0.03
    assert right[-2].calibration_error < 0.1 < 0.15 < sharp[-2].calibration_error  # at the highest mask rates
    fitted = [(one.temperature, other.temperature) for one, other in zip(right, sharp, strict=True)]
    both = [(one, other) for one, other in fitted if one is not None and other is not None]
    assert len(both) > 5 and all(other == pytest.approx(2 * one, rel=1e-4) for one, other in both)


def test_rows_are_scored_alike_in_batches_of_any_size(tiny_roberta, story_tokenizer):
    one, other = (
        evaluate_calibration(tiny_roberta, story_tokenizer, STORIES[:1], max_length=16, batch_size=size, draws=4)
        for size in (1, 8)
    )
    assert [of.num_tokens for of in one] == [of.num_tokens for of in other]
    assert [of.nats for of in one] == pytest.approx([of.nats for of in other], rel=1e-5)
    with pytest.raises(ValueError, match="`draws`"):
        evaluate_calibration(tiny_roberta, story_tokenizer, STORIES, draws=0)
