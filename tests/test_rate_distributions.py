"""Laws of the mask rate: quantiles, weights, the exact bound under each, and rates that are learnt in training."""

import dataclasses
import itertools

import pytest
import torch
from test_trainer import TOKENIZER, RecordingTrainer, arguments, logged, make_rows, make_trainer, tiny_model

from diffusion_mlm import DataCollatorForMaskedDiffusion, DiffusionTrainer, story_language
from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.objectives import objective_sum, objective_units
from diffusion_mlm.randomness import fold_in, make_key
from diffusion_mlm.rate_distributions import ImportanceRates, RateHistogram, beta, clipped, from_density, get_rates

MASK = TOKENIZER.mask_token_id
# Words of a story that are maskable here, few so that all 63 masks can be tried: Little [Ben] lived by the windy
# meadow with his [rabbit], [Clover]. ... [Clover] the [rabbit] wandered off and got lost. He asked ... about [Clover]
PLACES = torch.tensor([2, 10, 12, 30, 32, 47])
LENGTH = len(PLACES)


def learnt_rates():
    """Importance rates that have seen a loss of 1 + 4 u."""
    rates = ImportanceRates()
    u = (torch.arange(3200, dtype=torch.float64) + 0.5) / 3200
    rates.collect(u, 1 + 4 * u)
    rates.update()
    return rates


FULL = {
    "beta 1 3": beta(1, 3),
    "beta 4 4": beta(4, 4),
    "beta 0.5 0.5": beta(0.5, 0.5),
    "density": from_density(lambda rate: 1 + rate**2),
    "importance": learnt_rates(),
}
LAWS = {**FULL, "clipped": clipped(0.3, 0.8)}
TIMES = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


@pytest.fixture(scope="module")
def enumerated():
    """A story, the mean cross-entropy in each of 63 masks by the exact denoiser, its mean by count, and the bound."""
    (ids,) = story_language.sample_ids(1, seed=3)
    ids = ids[:48]
    masks = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))[1:]
    rows = ids.repeat(len(masks), 1)
    rows[:, PLACES] = rows[:, PLACES].masked_fill(masks, MASK)
    denoiser = story_language.ExactDenoiser(dtype=torch.float64)
    log_probs = denoiser(rows).logits[:, PLACES].log_softmax(-1)
    nats = -log_probs.gather(-1, ids[PLACES].expand(63, -1)[..., None])[..., 0]
    mean = (nats * masks).sum(-1) / masks.sum(-1)
    table = dict(zip(map(tuple, masks.tolist()), mean.tolist(), strict=True))
    exact = float(denoiser.log_prob_ids(rows[-1:]) - denoiser.log_prob_ids(ids[None])) / LENGTH
    by_count = torch.stack([mean[masks.sum(-1) == count].mean() for count in range(1, LENGTH + 1)])
    return ids, table, by_count, exact


def loss_by_count(by_count, rate):
    return by_count[(torch.ceil(rate * LENGTH - 1e-9).long() - 1).clamp(min=0)]


@pytest.mark.parametrize("name", FULL)
def test_weights_make_every_full_law_estimate_the_exact_bound(enumerated, name):
    """The exact denoiser makes the bound tight: the mean of the curve over counts is -log p(text) per token."""
    *_, by_count, exact = enumerated
    assert float(by_count.mean()) == pytest.approx(exact, rel=1e-9)
    rate, weight = FULL[name].rate_and_weight(TIMES)
    loss = loss_by_count(by_count, rate)
    assert float((weight * loss).mean()) == pytest.approx(exact, rel=1e-3)
    assert abs(float(loss.mean()) / exact - 1) > 0.02, "Without weights it is another sum."


def test_a_clipped_law_estimates_the_mean_over_its_range(enumerated):
    *_, by_count, exact = enumerated
    rate, weight = LAWS["clipped"].rate_and_weight(TIMES)
    assert torch.equal(weight, torch.ones_like(weight))
    inside = (TIMES > 0.3) & (TIMES <= 0.8)
    expected = float(loss_by_count(by_count, TIMES)[inside].mean())
    assert float((weight * loss_by_count(by_count, rate)).mean()) == pytest.approx(expected, rel=1e-3)
    assert abs(expected / exact - 1) > 0.02, "so it is no bound"


@pytest.mark.parametrize("distribution, parameters", [("beta", (3, 1)), (lambda rate: 1 + 3 * rate, ())])
def test_masks_and_losses_of_a_batch_estimate_the_exact_bound(enumerated, distribution, parameters):
    ids, table, _, exact = enumerated
    process = ForwardProcess(MASK, prefix_length=0, rate_distribution=distribution, rate_parameters=parameters)
    num_rows, key = 8000, make_key(1)
    rows = torch.arange(num_rows)
    maskable = torch.isin(torch.arange(len(ids)), PLACES).expand(num_rows, -1)
    batch = process(ids.expand(num_rows, -1), maskable, fold_in(key, rows), process.times(key, rows, num_rows))
    means = torch.tensor([table[tuple(mask)] for mask in batch.is_masked[:, PLACES].tolist()])
    nll = means[:, None].expand_as(batch.is_masked)[batch.is_masked]
    estimate = float(objective_sum("elbo", nll, batch) / objective_units("elbo", batch))
    error = float((means * batch.weight).std()) / num_rows**0.5
    assert abs(estimate - exact) < 4 * error < 0.1 * exact
    unweighted = float(objective_sum("elbo", nll, dataclasses.replace(batch, weight=torch.ones(num_rows))) / num_rows)
    assert abs(unweighted - exact) > 10 * error


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_have_the_masses_of_the_law_and_stay_in_order(name):
    law = LAWS[name] if isinstance(LAWS[name], RateHistogram) else LAWS[name]._law
    rate, weight = law.rate_and_weight(TIMES)
    assert (rate.diff() >= 0).all() and rate.min() > 0 and rate.max() <= 1
    counts = torch.histogram(rate, law.edges).hist / len(TIMES)
    assert float((counts - law.masses / law.masses.sum()).abs().max()) < 2e-5
    assert float(weight.mean()) == pytest.approx(1, abs=1e-3)
    one = law.rate_and_weight(torch.ones(1, dtype=torch.float64))[0]
    assert float(one) == float(law.edges[-1])


def test_beta_has_the_mean_and_variance_of_its_mixture():
    rate, _ = beta(2, 5).rate_and_weight(TIMES)
    mean = 0.9 * 2 / 7 + 0.1 / 2
    second = 0.9 * (10 / (49 * 8) + (2 / 7) ** 2) + 0.1 / 3
    assert float(rate.mean()) == pytest.approx(mean, abs=1e-4)
    assert float((rate**2).mean()) == pytest.approx(second, abs=1e-4)


def test_no_weight_of_a_mixture_exceeds_ten():
    for name in ("beta 1 3", "beta 4 4", "beta 0.5 0.5", "importance"):
        assert float(FULL[name].rate_and_weight(TIMES)[1].max()) <= 10 + 1e-9


def test_rates_stay_stratified_over_the_global_batch():
    process = ForwardProcess(MASK, rate_distribution="beta", rate_parameters=(2, 5))
    rates = process.mask_rate_and_weight(process.times(3, torch.arange(64), 64))[0]
    strata = process.mask_rate_and_weight(torch.arange(1, 65, dtype=torch.float64) / 64)[0]
    assert torch.equal(torch.bucketize(rates, strata).sort().values, torch.arange(64))


def test_a_uniform_law_is_the_schedule_itself():
    """So that recorded runs stay what they are."""
    assert get_rates("uniform") is None
    process = ForwardProcess(MASK, schedule="cosine")
    rate, _ = process.mask_rate_and_weight(TIMES)
    assert torch.equal(rate, process._schedule.mask_rate(TIMES))


# Rates that are learnt


def test_learnt_rates_are_drawn_in_proportion_to_the_loss():
    rates, u = learnt_rates(), (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    law = rates._law.masses / rates._law.masses.sum()
    expected = (1 + 4 * u) / (1 + 4 * u).sum()
    assert torch.allclose(law, 0.9 * expected + 0.1 / 32, atol=1e-4)


def test_learnt_rates_are_uniform_until_all_bins_have_been_seen():
    rates = ImportanceRates()
    rates.collect(torch.linspace(0.5, 1, 1000, dtype=torch.float64), torch.full((1000,), 9.0))
    rates.update()
    rate, weight = rates.rate_and_weight(TIMES)
    assert torch.allclose(rate, TIMES) and torch.allclose(weight, torch.ones_like(weight))


def test_an_update_without_rows_changes_nothing():
    rates = learnt_rates()
    before = rates.state_dict()
    rates.update()
    assert all(torch.equal(before[name], tensor) for name, tensor in rates.state_dict().items())


def test_old_losses_are_forgotten_at_the_same_pace_however_rows_come():
    once, often = ImportanceRates(), ImportanceRates()
    low = torch.full((4000,), 0.01, dtype=torch.float64)
    for rates, parts in ((once, 1), (often, 40)):
        rates.collect(low, torch.ones(4000))
        rates.update()
        for part in torch.full((400,), 0.01, dtype=torch.float64).chunk(parts):
            rates.collect(part, torch.full((len(part),), 3.0))
            rates.update()
    learnt = [float(rates.state_dict()["mean_square"][0]) for rates in (once, often)]
    assert learnt == pytest.approx([9, learnt[0]], rel=1e-3)
    assert learnt[1] == pytest.approx(learnt[0], rel=1e-12)


@pytest.fixture
def quick_to_learn(monkeypatch):
    """Four bins that need two rows each, so that runs of a dozen steps draw from a learnt law."""
    monkeypatch.setattr(ImportanceRates, "NUM_BINS", 4)
    monkeypatch.setattr(ImportanceRates, "WARM_UP", 2)


def test_learnt_rates_do_not_depend_on_accumulation_and_follow_the_loss(tmp_path, quick_to_learn):
    found = []
    for batch_size, steps in ((16, 1), (4, 4)):
        trainer = make_trainer(
            tmp_path,
            trainer_class=RecordingTrainer,
            rows=make_rows(32),
            rate_distribution="importance",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=6,
        )
        trainer.train()
        rates = torch.cat([batch.mask_rate for batch in trainer.micro_batches])
        weights = torch.cat([batch.weight for batch in trainer.micro_batches])
        found.append((rates, weights, logged(trainer)))
    assert not torch.allclose(found[0][1][-16:], torch.ones(16, dtype=torch.float64)), "The law is learnt by then."
    for left, right in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-4)


def test_learnt_rates_need_a_trainer_that_tells_the_loss():
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, rate_distribution="importance")
    with pytest.raises(ValueError, match="`rate_distribution` is 'importance'.*DiffusionTrainer"):
        collator([{"input_ids": [0, 7, 8, 2]}])


def test_learnt_rates_of_a_collator_are_each_run_s_own_and_need_the_bound(tmp_path):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, rate_distribution="importance")
    one, other = (DiffusionTrainer(tiny_model(), arguments(tmp_path), data_collator=collator) for _ in range(2))
    assert one._process.rates is not other._process.rates
    with pytest.raises(ValueError, match="`rate_distribution` 'importance' needs the objective elbo, not 'simple'"):
        DiffusionTrainer(tiny_model(), arguments(tmp_path, objective="simple"), data_collator=collator)


# What is refused


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"rate_distribution": "gamma"}, "`rate_distribution` must be one of uniform, clipped"),
        ({"rate_distribution": "beta"}, "`rate_parameters` must be 2 numbers"),
        ({"rate_parameters": (1.0,)}, "`rate_parameters` must be no numbers for the rate distribution 'uniform'"),
        ({"rate_distribution": "beta", "rate_parameters": (0.0, 1.0)}, "two finite numbers above 0"),
        ({"rate_distribution": "clipped", "rate_parameters": (0.8, 0.3)}, "0 <= low < high <= 1"),
        ({"rate_distribution": lambda rate: rate[:3]}, "`rate_distribution` must map rates of shape"),
        ({"rate_distribution": lambda rate: rate - 0.5}, "finite numbers >= 0"),
        ({"rate_distribution": "importance", "schedule": "cosine"}, "leave `masking` exact or bernoulli and"),
        ({"rate_distribution": "importance", "masking": "levels"}, "leave `masking` exact or bernoulli and"),
    ],
)
def test_impossible_laws_are_refused(settings, says):
    with pytest.raises(ValueError, match=says) as raised:
        ForwardProcess(MASK, **settings)
    assert "\n" not in str(raised.value)
