"""The losses against exact integrals: a toy whose cross-entropy depends on the mask rate alone, l(u) = 1 + 4 u."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.objectives import (
    OBJECTIVES,
    objective_sum,
    objective_units,
    row_means,
    scored_positions,
    token_negative_log_likelihood,
)
from diffusion_mlm.randomness import fold_in, make_key

MASK, LENGTH = 99, 40


def corrupted(num_rows, seed=0, length=LENGTH, **settings):
    process = ForwardProcess(MASK, prefix_length=0, **settings)
    ids = torch.randint(0, 90, (num_rows, length), generator=torch.Generator().manual_seed(seed))
    rows, key = torch.arange(num_rows), make_key(seed)
    return process(ids, torch.ones_like(ids).bool(), fold_in(key, rows), process.times(key, rows, num_rows))


def loss_of(objective, batch, token_nll):
    return float(objective_sum(objective, token_nll, batch) / objective_units(objective, batch))


def nll_of_share(batch):
    """l(u) of the toy at each masked token, u being the share of its row that is masked."""
    share = batch.is_masked.sum(-1, keepdim=True) / LENGTH
    return (1 + 4 * share).expand_as(batch.is_masked)[batch.is_masked]


EXACT_BOUND = sum(1 + 4 * m / LENGTH for m in range(1, LENGTH + 1)) / LENGTH  # mean of h over the counts


@pytest.mark.parametrize("schedule", ["linear", "cosine", "maskgit"])
def test_elbo_estimates_the_bound_under_every_schedule(schedule):
    batch = corrupted(20_000, schedule=schedule)
    assert loss_of("elbo", batch, nll_of_share(batch)) == pytest.approx(EXACT_BOUND, abs=0.05)


def test_elbo_is_exact_to_the_stratum_with_the_default_schedule():
    batch = corrupted(LENGTH * 50)
    assert loss_of("elbo", batch, nll_of_share(batch)) == pytest.approx(EXACT_BOUND, abs=1e-5)


def test_elbo_with_bernoulli_masks_agrees_with_exact_counts():
    """Form (A) of the bound (sum over rate x length) against form (B) (mean per row)."""
    losses = [
        loss_of("elbo", batch, nll_of_share(batch))
        for batch in [corrupted(4000, s, masking="bernoulli") for s in range(8)]
    ]
    mean, error = torch.tensor(losses).mean(), torch.tensor(losses).std() / 8**0.5
    # E[sum of l(m/L)] over the masked tokens is E[m (1 + 4 m / L)] with m binomial: u L (1 + 4 (u + (1 - u) / L)).
    expected = 1 + 4 * (0.5 + 0.5 / LENGTH)
    assert abs(mean - expected) < 4 * error + 0.01


def test_simple_weighs_rates_by_themselves():
    batch = corrupted(LENGTH * 50)
    shares = torch.arange(1, LENGTH + 1) / LENGTH
    expected = float((shares * (1 + 4 * shares)).sum() / shares.sum())
    assert loss_of("simple", batch, nll_of_share(batch)) == pytest.approx(expected, abs=1e-4)
    assert expected > EXACT_BOUND + 0.5, "so it is no bound"


def test_full_is_the_mean_over_all_maskable_tokens():
    batch = corrupted(8)
    token_nll = torch.rand(int(scored_positions("full", batch).sum()))
    assert loss_of("full", batch, token_nll) == pytest.approx(float(token_nll.mean()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(objective, parts):
    process = ForwardProcess(MASK)
    ids = torch.randint(0, 20, (8, 12), generator=torch.Generator().manual_seed(1))
    maskable = torch.rand(8, 12, generator=torch.Generator().manual_seed(2)) < 0.7
    maskable[3] = False  # a row that contributes nothing
    rows = torch.arange(8)
    keys, t = fold_in(5, rows), process.times(5, rows, 8)
    table = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def loss(chosen):
        batch = process(ids[chosen], maskable[chosen], keys[chosen], t[chosen])
        scored = scored_positions(objective, batch)
        logits = table[(batch.targets[scored] * 7 + 3) % 20]
        nll = cross_entropy(logits, batch.targets[scored], reduction="none")
        return objective_sum(objective, nll, batch), objective_units(objective, batch)

    whole_sum, whole_units = loss(rows)
    whole = whole_sum / whole_units
    (gradient,) = torch.autograd.grad(whole, table)
    split = sum(loss(part)[0] for part in rows.chunk(parts)) / sum(loss(part)[1] for part in rows.chunk(parts))
    (split_gradient,) = torch.autograd.grad(split, table)
    assert split.item() == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(gradient, split_gradient, atol=1e-12)


def test_a_batch_without_maskable_tokens_gives_zero_and_no_nan():
    process = ForwardProcess(MASK)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    batch = process(ids, torch.zeros(2, 5, dtype=torch.bool), torch.arange(2), torch.ones(2, dtype=torch.float64))
    for objective in OBJECTIVES:
        assert float(objective_sum(objective, torch.zeros(0), batch)) == 0
        assert int(objective_units(objective, batch)) == 0


def test_forbidden_ids_get_probability_zero():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    nll = token_negative_log_likelihood(logits, torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5]))
    expected = cross_entropy(logits[:, :4], torch.tensor([0, 1, 2, 3]), reduction="none")
    assert torch.allclose(nll, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_with_forbidden_ids_is_that_of_the_allowed_ones_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 3, generator=generator), torch.randn(6, 3, generator=generator)
    targets = torch.tensor([0, 1, 2, 3, 0])

    def gradients(forbidden, rows):
        leaves = [hidden.to(dtype).requires_grad_(), weight[:rows].to(dtype).requires_grad_()]
        nll = token_negative_log_likelihood(leaves[0] @ leaves[1].T, targets, forbidden)
        nll.mean().backward()
        return nll, leaves[0].grad, torch.nn.functional.pad(leaves[1].grad, (0, 0, 0, 6 - rows))

    for ours, expected in zip(gradients(torch.tensor([4, 5]), 6), gradients(None, 4), strict=True):
        assert torch.equal(ours, expected)


def test_logits_outside_of_training_are_left_as_they_are():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    token_negative_log_likelihood(logits, torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5]))
    assert torch.equal(logits, before)


def test_the_loss_is_float32_whatever_the_logits_are():
    logits = torch.randn(3, 7).bfloat16()
    assert token_negative_log_likelihood(logits, torch.tensor([0, 1, 2])).dtype == torch.float32


def test_row_means_are_per_row_and_nan_without_masks():
    is_masked = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    means = row_means(torch.tensor([1.0, 3.0, 1.0, 2.0, 6.0]), is_masked)
    assert means[[0, 2]].tolist() == [2.0, 3.0]
    assert means[1].isnan()


def test_an_unknown_objective_is_refused_by_name():
    with pytest.raises(ValueError, match="`objective`"):
        objective_sum("likelihood", torch.zeros(1), corrupted(1, length=1))
