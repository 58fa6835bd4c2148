"""The estimators of what parallel steps cost, on the Markov chain whose 243 texts and 120 orders can all be tried."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from test_denoising_law import CONDITIONALS, LENGTH, MASK, PLACE_VALUE, TEXTS, TRUTH, H, law_given_order, step_cost

from diffusion_mlm.randomness import fold_in
from diffusion_mlm.schedules import unmask_counts
from experiments.parallel_step_cost import (
    entropies_by_visible,
    expected_nats,
    main,
    measured_nats,
    total_correlations,
)

ORDERS = list(itertools.permutations(range(LENGTH)))
EVERYWHERE = torch.ones(TEXTS.shape, dtype=torch.bool)
PLANS = [("linear", 1), ("linear", 2), ("cosine", 3), ("exponential", 3), ("maskgit", 4), ("linear", 5)]


def source(canvas: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    return CONDITIONALS[canvas @ PLACE_VALUE][needed].log()


def cost_given(order: tuple[int, ...], counts: list[int]) -> float:
    """KL(p || q | order), by enumeration."""
    return (TRUTH * (TRUTH / law_given_order(order, counts)).log()).sum().item()


@pytest.fixture(scope="module")
def all_orders() -> tuple[torch.Tensor, torch.Tensor]:
    """The rank of each position and the entropies for every text in every order, the texts of an order together."""
    rank = torch.tensor(ORDERS).argsort(-1).repeat_interleave(len(TEXTS), 0)
    return rank, entropies_by_visible(source, TEXTS.repeat(len(ORDERS), 1), rank, MASK)


@pytest.mark.parametrize(("schedule", "steps"), PLANS)
def test_the_prediction_for_a_random_order_is_the_enumerated_divergence(schedule, steps, all_orders):
    rank, entropies = all_orders
    counts = unmask_counts(schedule, LENGTH, steps)
    weight = TRUTH.repeat(len(ORDERS)) / len(ORDERS)
    predicted = (weight * total_correlations(entropies, rank, counts, is_random=True)).sum().item()
    assert predicted == pytest.approx(step_cost(counts, H) - sum(H), abs=1e-12)  # the equation
    assert predicted == pytest.approx(sum(cost_given(order, counts) for order in ORDERS) / len(ORDERS), abs=1e-12)


@pytest.mark.parametrize(("schedule", "steps"), PLANS)
def test_the_prediction_for_a_fixed_order_is_the_enumerated_divergence(schedule, steps, all_orders):
    rank, entropies = all_orders
    counts = unmask_counts(schedule, LENGTH, steps)
    nats = total_correlations(entropies, rank, counts, is_random=False).view(len(ORDERS), len(TEXTS))
    for place in (0, 17, 119):
        assert (TRUTH * nats[place]).sum().item() == pytest.approx(cost_given(ORDERS[place], counts), abs=1e-12)


def test_the_entropies_one_by_one_sum_to_that_of_the_text(all_orders):
    rank, entropies = all_orders
    nats = expected_nats(entropies, rank, [1] * LENGTH, is_random=True)
    assert (TRUTH.repeat(len(ORDERS)) * nats).sum().item() / len(ORDERS) == pytest.approx(sum(H), abs=1e-12)


@pytest.mark.parametrize(("schedule", "steps"), PLANS)
def test_what_is_measured_from_left_to_right_is_the_enumerated_log_probability(schedule, steps):
    plan = {"order": "left_to_right", "schedule": schedule, "steps": steps}
    nats = measured_nats(source, TEXTS, EVERYWHERE, MASK, torch.zeros(len(TEXTS), dtype=torch.int64), **plan)
    law = law_given_order(tuple(range(LENGTH)), unmask_counts(schedule, LENGTH, steps))
    torch.testing.assert_close(nats, -law.log(), atol=1e-12, rtol=0)


def test_one_token_a_step_in_any_order_has_the_true_log_probability():
    nats = measured_nats(source, TEXTS, EVERYWHERE, MASK, torch.arange(len(TEXTS)), order="random", steps=LENGTH)
    torch.testing.assert_close(nats, -TRUTH.log(), atol=1e-12, rtol=0)


def test_what_is_measured_in_random_orders_is_one_of_the_enumerated_and_on_average_the_cost():
    counts, rounds = unmask_counts("linear", LENGTH, 2), 60
    laws = torch.stack([law_given_order(order, counts) for order in ORDERS])  # (120, 243)
    texts = TEXTS.repeat(rounds, 1)
    keys = fold_in(7, torch.arange(len(texts)))
    nats = measured_nats(source, texts, EVERYWHERE.repeat(rounds, 1), MASK, keys, order="random", steps=2)
    by_text = nats.view(rounds, len(TEXTS))
    assert ((by_text[:, None] + laws.log()).abs().amin(1) < 1e-9).all()
    means = (by_text * TRUTH).sum(-1)  # one estimate of the cross-entropy a round, its orders drawn anew
    error = means.std().item() / rounds**0.5
    assert means.mean().item() == pytest.approx(step_cost(counts, H), abs=4 * error)
    assert error < 0.05 * (step_cost(counts, H) - sum(H)), "precise enough to tell"


def test_a_source_that_is_not_the_true_one_is_noticed():
    """The estimators agree because the source is exact: with a sharpened one they do not."""

    def sharpened(canvas, needed):
        return (2 * source(canvas, needed)).log_softmax(-1)

    counts = unmask_counts("linear", LENGTH, 2)
    keys = fold_in(8, torch.arange(len(TEXTS)))
    measured = measured_nats(sharpened, TEXTS, EVERYWHERE, MASK, keys, order="left_to_right", steps=2)
    rank = torch.arange(LENGTH).expand(len(TEXTS), -1)
    predicted = expected_nats(entropies_by_visible(sharpened, TEXTS, rank, MASK), rank, counts, is_random=False)
    assert (TRUTH * (measured - predicted)).sum() > 0.5


def test_the_figures_of_the_stories_are_written_as_json_and_as_a_table(tmp_path: Path) -> None:
    output = tmp_path / "cost.json"
    few = ["--num-predicted", "2", "--measured-forwards", "16", "--num-generated", "2"]
    assert main(["--steps", "4", *few, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [(row["order"], row["steps"]) for row in result["rows"]] == [("random", 4), ("left_to_right", 4)]
    assert [row["num_measured"] for row in result["rows"]] == [4, 4]
    assert all(row["measured_nats"] > 5 and row["predicted_nats"] > 5 for row in result["rows"])
    assert output.with_suffix(".md").read_text().count("\n| ") == 1 + 2
