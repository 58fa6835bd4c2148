"""Gaussian diffusion on embeddings: mathematics against exact values, the model against the lookup, its training."""

import copy
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, TrainerCallback

from diffusion_mlm import DiffusionTrainingArguments, generate, infill, load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_MLM
from diffusion_mlm.embedding_diffusion.building import build_embedding_diffusion, embedding_diffusion_from
from diffusion_mlm.embedding_diffusion.generation import fill_by_denoising
from diffusion_mlm.embedding_diffusion.likelihood import gaussian_bound_of_rows, row_noise
from diffusion_mlm.embedding_diffusion.modeling import (
    EmbeddingDiffusionConfig,
    EmbeddingDiffusionModel,
    EmbeddingDiffusionOutput,
)
from diffusion_mlm.embedding_diffusion.monitors import (
    embedding_figures,
    fit_noise_schedule,
    loss_by_noise,
    middle_band,
    unigram_entropy,
)
from diffusion_mlm.embedding_diffusion.noise import (
    NOISE_SCHEDULES,
    NoiseSchedule,
    add_noise,
    alpha_sigma,
    ddim_step,
    ddpm_step,
    lookup_figures,
    make_knots,
    noise_log_likelihood,
    sampling_times,
    staggered_times,
)
from diffusion_mlm.embedding_diffusion.noise_warp import NoiseWarp
from diffusion_mlm.embedding_diffusion.trainer import EmbeddingDiffusionTrainer
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.modeling import build_model, load_model
from diffusion_mlm.precision import set_precision
from diffusion_mlm.presets import preset_config
from diffusion_mlm.randomness import fold_in, normal

TOKENIZER = story_language.tokenizer()
LITERAL = {
    "objective": "eps_mse",
    "normalize_embeddings": False,
    "noise_schedule": "cosine",
    "self_conditioning": 0.0,
    "embedding_dim": 32,
}


def encoder_settings(dropout=0.0):
    config = preset_config("roberta-tiny", TOKENIZER, 80, dropout)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads = 2, 32, 32, 2
    return config.to_dict()


def tiny_model(dropout=0.0, seed=0, **settings):
    settings = {"embedding_dim": 8, "self_conditioning": 0.5, **settings}
    return build_embedding_diffusion(EmbeddingDiffusionConfig(encoder=encoder_settings(dropout), **settings), seed)


@pytest.fixture(scope="module")
def counts():
    return torch.bincount(story_language.sample_ids(400, 5)[:, 1:].flatten(), minlength=len(TOKENIZER))


@pytest.fixture(scope="module")
def shared_model(counts):
    model = tiny_model().eval()
    model.take_unigram(counts)
    torch.nn.init.zeros_(model.denoiser.lm_head.layer_norm.weight)
    return model


@pytest.fixture
def model(shared_model):
    """Knows the unigram law, and adds nothing for context; yours to change."""
    return copy.deepcopy(shared_model)


@pytest.fixture
def trained_a_little(model):
    """Logits that context changes, and ends that are written."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.constant_(model.denoiser.lm_head.layer_norm.weight, 20.0)
        torch.nn.init.normal_(model.read_previous.weight, std=0.3)
    model.config.diffusion = {"process": "gaussian", "generates_end": True, "row_length": 24}
    return model


# Mathematics


def test_normal_numbers_have_mean_0_and_variance_1_and_do_not_depend_on_their_number():
    numbers = normal(torch.tensor(3), 100_000)
    assert abs(float(numbers.mean())) < 0.015
    assert float(numbers.var()) == pytest.approx(1, abs=0.02)
    assert torch.equal(normal(torch.tensor(3), 5), numbers[:5])


def test_signal_and_noise_share_a_variance_of_1():
    log_snr = torch.linspace(-30, 30, 13)
    alpha, sigma = alpha_sigma(log_snr)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(13))
    torch.testing.assert_close(
        (alpha.double() ** 2 / sigma.double() ** 2).log()[4:9], log_snr[4:9].double(), atol=1e-5, rtol=0
    )


def test_ddim_with_the_true_embeddings_keeps_the_noise_and_ends_at_them():
    clean, noise = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    here, there = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 40.0])
    z = ddim_step(add_noise(clean, noise, here), clean, here, there)
    torch.testing.assert_close(z, add_noise(clean, noise, there), atol=1e-5, rtol=0)
    torch.testing.assert_close(z[1], clean[1], atol=1e-5, rtol=0)


def test_ddpm_with_the_true_embeddings_keeps_the_law_of_the_noise():
    clean = torch.full((1, 200_000, 1), 1.5)
    here, there = torch.tensor([-1.0]), torch.tensor([0.5])
    z = add_noise(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), here)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    z = ddpm_step(z, clean, here, there, noise)
    alpha, sigma = alpha_sigma(there)
    assert float(z.mean()) == pytest.approx(float(alpha) * 1.5, abs=0.005)
    assert float(z.var()) == pytest.approx(float(sigma) ** 2, rel=0.02)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_noise_grows_with_time_and_the_slope_is_its_derivative(name, model):
    schedule = NoiseSchedule(make_knots(name, model.log_unigram, model.clean_embeddings()))
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() <= 0).all()
    assert log_snr[0] > log_snr[-1]
    integral = float(schedule.slope((t[1:] + t[:-1]) / 2).mean())
    assert integral == pytest.approx(float(log_snr[0] - log_snr[-1]), rel=0.01)
    levels = schedule.log_snr(sampling_times(5))
    assert levels[0] == log_snr[-1]
    assert levels[-1] == log_snr[0]


def test_the_lookup_knows_nothing_in_noise_and_everything_where_it_is_clear(model):
    entropy = -float((model.log_unigram.exp() * model.log_unigram).sum())
    figures = lookup_figures(model.log_unigram, model.clean_embeddings(), torch.tensor([-20.0, -3, -1, 1, 20]))
    assert float(figures.cross_entropy[0]) == pytest.approx(entropy, rel=0.01)
    assert (figures.cross_entropy.diff() < 0).all()
    assert float(figures.cross_entropy[-1]) == pytest.approx(0, abs=1e-6)
    assert float(figures.accuracy[-1]) == 1


def test_an_informative_schedule_covers_what_the_lookup_can_learn(model):
    ends = model.schedule.log_snr(torch.tensor([0.0, 1.0]))
    nats = lookup_figures(model.log_unigram, model.clean_embeddings(), ends).cross_entropy
    entropy = -float((model.log_unigram.exp() * model.log_unigram).sum())
    assert float(nats[0]) < 0.02 * entropy
    assert float(nats[1]) > 0.97 * entropy


def test_places_clear_one_after_another_in_an_order_of_the_row_and_all_at_once_without_stagger():
    is_noised = torch.tensor([[False, True, True, True, True, False]] * 2)
    keys = torch.tensor([1, 2])
    for t in (0.0, 0.4, 1.0):
        rows = torch.full((2,), t)
        assert (staggered_times(rows, is_noised, keys, 0.0)[:, 1:5] == rows.double()[:, None]).all()
        times = staggered_times(rows, is_noised, keys, 3.0)
        assert (times[:, [0, 5]] == 0).all()  # what is given is clear
        times = times[:, 1:5]
        # windows of length 1/4 that begin at 0, 3/16 more for each place, so the last ends at 29/32
        expected = [min(max(4 * t - 3 * (place + 0.5) / 4, 0), 1) for place in (3, 2, 1, 0)]
        torch.testing.assert_close(times.sort(-1).values, torch.tensor([expected] * 2, dtype=torch.float64))
    first, second = staggered_times(torch.full((2,), 0.4), is_noised, keys, 3.0)[:, 1:5]
    assert not torch.equal(first, second)


def test_the_bound_of_tokens_without_context_is_their_entropy(model):
    """There the lookup is the exact posterior, and with it the bound of Gaussian diffusion is tight."""
    p = model.log_unigram.exp().double()
    tokens = torch.multinomial(p, 64 * 24, replacement=True, generator=torch.Generator().manual_seed(0)).view(64, 24)
    noised = torch.ones_like(tokens, dtype=torch.bool)
    model.config.stagger = 0.0  # with it the estimate scatters more, see `one_of_four_words`
    bounds = gaussian_bound_of_rows(model, tokens, torch.ones_like(tokens), noised, draws=32)
    exact = -float(p.log()[tokens].mean())
    assert float(bounds.nats.sum() / bounds.num_tokens.sum()) == pytest.approx(exact, rel=0.03)


# Model


def noisy(model, ids, level=0.0, seed=0):
    keys = fold_in(torch.tensor(seed), torch.arange(len(ids)))
    return row_noise(keys, ids.shape[1], model.config.embedding_dim), torch.full((len(ids),), level)


def test_a_model_that_adds_no_context_is_the_lookup(model):
    ids = story_language.sample_ids(3, 7)
    noised = ids.ne(TOKENIZER.bos_token_id)
    noise, log_snr = noisy(model, ids)
    table = model.clean_embeddings()
    alone = noise_log_likelihood(add_noise(table[ids], noise, log_snr), log_snr, table) + model.log_unigram
    torch.testing.assert_close(model(ids, None, noised, log_snr, noise).logits[noised], alone[noised], atol=0, rtol=0)


def test_what_is_given_is_read_clean_and_padding_changes_nothing(trained_a_little):
    model, ids = trained_a_little, story_language.sample_ids(2, 7)[:, :20]
    noised = torch.arange(20).expand(2, 20) >= 6
    noise, log_snr = noisy(model, ids)
    logits = model(ids, torch.ones_like(ids), noised, log_snr, noise).logits
    other = noise.clone()
    other[:, :6] = 9.0
    assert torch.equal(model(ids, torch.ones_like(ids), noised, log_snr, other).logits[noised], logits[noised])
    other_ids = ids.clone()
    other_ids[:, 3] = 77
    assert not torch.equal(model(other_ids, None, noised, log_snr, noise).logits[noised], logits[noised])
    padded, mask = torch.nn.functional.pad(ids, (0, 4), value=1), torch.ones_like(ids)
    longer = model(
        padded,
        torch.nn.functional.pad(mask, (0, 4)),
        torch.nn.functional.pad(noised, (0, 4)),
        log_snr,
        torch.nn.functional.pad(noise, (0, 0, 0, 4)),
    ).logits
    torch.testing.assert_close(longer[:, :20], logits, atol=1e-4, rtol=1e-4)


def test_a_first_prediction_is_seen_by_the_rows_that_are_chosen_only(trained_a_little):
    model, ids = trained_a_little, story_language.sample_ids(2, 7)
    noised = ids.ne(TOKENIZER.bos_token_id)
    noise, log_snr = noisy(model, ids)
    without = model(ids, None, noised, log_snr, noise).logits
    chosen = model(ids, None, noised, log_snr, noise, torch.tensor([False, True])).logits
    torch.testing.assert_close(chosen[0], without[0], atol=1e-4, rtol=1e-4)
    assert float((chosen[1] - without[1]).detach().abs().max()) > 0.01
    z = add_noise(model.clean_embeddings()[ids], noise, log_snr)
    again = model.predict(z, log_snr, ids, noised, None, previous=without).logits
    torch.testing.assert_close(again[1], chosen[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, LITERAL])
def test_a_model_that_was_saved_writes_the_same(tmp_path, counts, settings):
    model = tiny_model(**settings).eval()
    model.take_unigram(counts)
    model.config.diffusion = {"generates_end": True, "row_length": 24}
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded, tokenizer = load_generator(str(tmp_path))
    assert type(loaded) is EmbeddingDiffusionModel
    for (name, before), after in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    settings = {"seed": 3, "steps": 3}
    assert generate(loaded, tokenizer, "", **settings).texts == generate(model, TOKENIZER, "", **settings).texts


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"objective": "mse"}, "objective"),
        ({"noise_schedule": "linear"}, "noise_schedule"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"self_conditioning": 1.5}, "self_conditioning"),
        ({"stagger": -1.0}, "stagger"),
        ({"objective": "eps_mse", "self_conditioning": 0.5}, "self_conditioning"),
        ({"objective": "eps_mse", "self_conditioning": 0, "noise_schedule": "warped"}, "noise_schedule"),
    ],
)
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        EmbeddingDiffusionConfig(encoder=encoder_settings(), **settings)


def test_a_call_without_noise_says_what_to_do(model):
    with pytest.raises(ValueError, match="`log_snr`"):
        model(torch.ones(1, 4, dtype=torch.int64))


# From a masked language model


@pytest.fixture(scope="module")
def converted():
    masked = load_model(STORIES_MLM)
    model = embedding_diffusion_from(masked, TOKENIZER.mask_token_id, embedding_dim=16)
    model.take_unigram(torch.bincount(story_language.sample_ids(400, 5)[:, 1:].flatten(), minlength=len(TOKENIZER)))
    return model.eval(), masked.eval()


def test_where_noise_hides_a_token_the_masked_model_is_asked(converted):
    """Given everything else, a place under pure noise gets the logits of a mask there, a clear one its token."""
    model, masked = converted
    ids = story_language.sample_ids(4, 7)
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[:, 9:12] = True
    log_snr = torch.full((4,), -40.0, dtype=torch.float64)
    found = model(ids, None, hidden, log_snr, noisy(model, ids)[0]).logits
    expected = masked(ids.masked_fill(hidden, TOKENIZER.mask_token_id)).logits
    torch.testing.assert_close(found[hidden], expected[hidden], atol=2e-3, rtol=1e-4)
    clean = model(ids, None, hidden, -log_snr, noisy(model, ids)[0]).logits
    assert torch.equal(clean[hidden].argmax(-1), ids[hidden])


def test_a_masked_model_knows_more_than_the_lookup_before_it_has_seen_noise(converted):
    model, _ = converted
    ids = story_language.sample_ids(32, 11)
    curve = loss_by_noise(model, ids, ids.ne(TOKENIZER.bos_token_id), torch.tensor([-1.0, 0.0]))
    for nats, alone in zip(curve["cross_entropy"], curve["lookup_cross_entropy"], strict=True):
        assert nats < 0.9 * alone


def test_a_converted_model_that_was_saved_answers_the_same_and_its_source_stays(converted, tmp_path):
    model, masked = converted
    for of, other in zip(load_model(STORIES_MLM).parameters(), masked.parameters(), strict=True):
        assert torch.equal(of, other)
    model.save_pretrained(tmp_path)
    again = EmbeddingDiffusionModel.from_pretrained(tmp_path).eval()
    assert again.get_output_embeddings().weight is again.words.weight
    ids = story_language.sample_ids(2, 7)
    arguments = (ids, None, ids.ne(0), *reversed(noisy(model, ids)))
    assert torch.equal(again(*arguments).logits, model(*arguments).logits)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("AlbertConfig", {"embedding_size": 8}),
        ("ElectraConfig", {"embedding_size": 8}),
        ("DebertaV2Config", {}),
        ("ModernBertConfig", {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2}),
    ],
)
def test_other_architectures_are_converted_saved_and_loaded(config, settings, tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vocabulary = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 128}
    masked = AutoModelForMaskedLM.from_config(getattr(transformers, config)(**size, **vocabulary, **settings))
    masked.config._name_or_path = "/home/me/models/mine"
    model = embedding_diffusion_from(masked, TOKENIZER.mask_token_id, embedding_dim=8)
    ids = story_language.sample_ids(2, 7)
    train(tmp_path / "run", model=model, rows=[{"input_ids": row} for row in ids.tolist() * 2], max_steps=1)
    model.eval().save_pretrained(tmp_path)
    assert "/home/me" not in (tmp_path / "config.json").read_text()
    again = EmbeddingDiffusionModel.from_pretrained(tmp_path).eval()
    arguments = (ids, None, ids.ne(0), *reversed(noisy(model, ids)))
    assert torch.equal(again(*arguments).logits, model(*arguments).logits)


def test_a_model_that_is_told_the_time_is_not_converted():
    config = preset_config("modern-tiny", TOKENIZER, 80, time_conditioning="learned")
    config.mask_token_id = TOKENIZER.mask_token_id
    with pytest.raises(ValueError, match="`masked` is a TimeConditionedMaskedLM"):
        embedding_diffusion_from(build_model(config, 0), TOKENIZER.mask_token_id)


def test_noise_cannot_be_predicted_from_words_that_are_known(tiny_roberta):
    with pytest.raises(ValueError, match="`objective`"):
        embedding_diffusion_from(tiny_roberta, TOKENIZER.mask_token_id, **LITERAL)


# Sampling


class Oracle(torch.nn.Module):
    """Knows the text."""

    def __init__(self, model, text):
        super().__init__()
        self.model, self.text, self.embeddings = model, text, model.embeddings
        self.config, self.schedule, self.clean_embeddings = model.config, model.schedule, model.clean_embeddings

    def predict(self, z, log_snr, input_ids, is_noised, attention_mask=None, previous=None):
        logits = torch.nn.functional.one_hot(self.text, self.config.vocab_size).float() * 50
        return EmbeddingDiffusionOutput(logits.expand(len(z), -1, -1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("order, num_forwards", [("random", 4), ("entropy", 2)])  # what is sure goes at once
def test_a_sampler_that_is_told_the_text_writes_it(model, sampler, order, num_forwards):
    text = story_language.sample_ids(1, 9)[:, :30]
    *_, last = fill_by_denoising(
        Oracle(model, text),
        text.masked_fill(torch.arange(30) >= 5, 0),
        (torch.arange(30) >= 5)[None],
        DiffusionGenerationConfig(steps=4, sampler=sampler, order=order),
        mask_id=TOKENIZER.mask_token_id,
        padding_id=1,
        keys=torch.tensor([1]),
        forbidden_ids=torch.tensor([0, 1, 3, 4]),
        end_id=2,
        may_end=torch.ones_like(text, dtype=torch.bool),
    )
    assert torch.equal(last.canvas, text)
    assert last.num_forwards.tolist() == [num_forwards]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("order", ["random", "entropy"])
def test_a_text_does_not_depend_on_the_texts_beside_it_and_keeps_its_prefix(trained_a_little, sampler, order):
    settings = {"seed": 5, "steps": 4, "sampler": sampler, "order": order}
    texts = generate(trained_a_little, TOKENIZER, ["", "One sunny day", "Finn had a"], **settings).texts
    alone = generate(trained_a_little, TOKENIZER, "One sunny day", **settings)
    assert alone.texts[0] == texts[1]
    assert texts[1].startswith("One sunny day")
    assert not set(alone.samples[0].token_ids) & {0, 1, 3, 4}
    assert alone.samples[0].num_forwards <= 4
    assert len(set(generate(trained_a_little, TOKENIZER, "", num_return_sequences=4, **settings).texts)) > 1


def test_blanks_are_filled_between_what_stands(trained_a_little):
    (text,) = infill(trained_a_little, TOKENIZER, "One sunny day <mask:2> had a <mask:1-2>.", seed=0, steps=3, draws=2)
    assert text.text.startswith("One sunny day ")
    assert " had a " in text.text
    assert text.text.endswith(".")
    assert text.nelbo_nats_per_token > 0


@pytest.mark.parametrize(
    "settings", [{"order": "left_to_right"}, {"remask": "renoise"}, {"guidance_scale": 2.0}, {"schedule": "cosine"}]
)
def test_settings_of_masks_are_refused(model, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        generate(model, TOKENIZER, "", seed=0, **settings)


@pytest.mark.parametrize("settings", [{"order": "random"}, {"top_p": 0.5}, {"sampling": "topk"}, {"defer_end": False}])
@pytest.mark.parametrize("model_settings", [{"stagger": 0.0}, {**LITERAL, "stagger": 3.0}])
def test_what_draws_no_tokens_refuses_to_be_told_how(settings, model_settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`.*draws no tokens"):
        generate(tiny_model(**model_settings), TOKENIZER, "", seed=0, max_new_tokens=3, **settings)


def test_a_callback_sees_every_step_and_may_end_the_text_but_not_change_it(trained_a_little):
    def look(answer, seen):
        return lambda step: seen.append(step.num_forwards) or (answer(step) if len(seen) == 2 else None)

    how = {"seed": 0, "steps": 40, "order": "random"}
    for answer, forwards in ((lambda step: None, 40), (lambda step: "finish", 3)):
        seen = []
        output = generate(trained_a_little, TOKENIZER, "", on_step=look(answer, seen), **how)
        assert output.samples[0].num_forwards == len(seen) == forwards
        assert TOKENIZER.mask_token_id not in output.samples[0].token_ids
    with pytest.raises(ValueError, match="`on_step` returned another canvas"):
        generate(trained_a_little, TOKENIZER, "", on_step=look(lambda step: step.canvas + 1, []), **how)


def test_guidance_brings_no_token_back_that_is_forbidden(trained_a_little):
    def flat(canvas, position, logits):
        return torch.zeros_like(logits)

    sample = generate(trained_a_little, TOKENIZER, "", seed=0, steps=3, guidance=flat).samples[0]
    assert not set(sample.token_ids) & {0, 1, 3, 4}


@pytest.mark.parametrize("order, steps", [("entropy", 2), ("entropy", 90), ("random", 60)])  # windows of 1, 2, 2 steps
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_without_context_tokens_follow_the_unigram_law_in_few_steps(model, sampler, order, steps):
    num_rows, length, words = 300, 6, torch.arange(10, 13)
    counts = torch.zeros(len(TOKENIZER))
    counts[words] = torch.tensor([6.0, 3.0, 1.0])
    model.take_unigram(counts)
    *_, last = fill_by_denoising(
        model,
        torch.zeros(num_rows, length, dtype=torch.int64),
        torch.ones(num_rows, length, dtype=torch.bool),
        DiffusionGenerationConfig(steps=steps, sampler=sampler, order=order, top_p=1.0),
        mask_id=TOKENIZER.mask_token_id,
        padding_id=1,
        keys=torch.arange(num_rows),
        forbidden_ids=torch.tensor([token for token in range(len(TOKENIZER)) if token not in words]),
        end_id=None,
        may_end=torch.ones(num_rows, length, dtype=torch.bool),
    )
    expected = counts[words] / 10 * num_rows * length
    found = torch.bincount(last.canvas.flatten(), minlength=13)[words]
    assert float(((found - expected) ** 2 / expected).sum()) < 13.8  # chi-square with 2 degrees of freedom: 1 in 1000


def test_weights_of_another_format_are_refused(model):
    with pytest.raises(ValueError, match="`dtype` 'bfloat16' is for masked models"):
        set_precision(model, "bfloat16")
    assert set_precision(model, "float32") is model


def test_a_masked_model_has_no_sampler(tiny_roberta):
    with pytest.raises(ValueError, match="`sampler`"):
        generate(tiny_roberta, TOKENIZER, "", seed=0, sampler="ddim", max_new_tokens=3)


class OneWord:
    """The exact posterior of texts that are one word again and again: what all places say together."""

    def __init__(self, model):
        self.model, self.embeddings = model, model.embeddings
        self.config, self.schedule, self.clean_embeddings = model.config, model.schedule, model.clean_embeddings

    def eval(self):
        return self

    def predict(self, z, log_snr, input_ids, is_noised, attention_mask=None, previous=None):
        alone = noise_log_likelihood(z, log_snr, self.clean_embeddings())
        return EmbeddingDiffusionOutput(alone.sum(1, keepdim=True).expand_as(alone))

    def __call__(self, input_ids, attention_mask, is_noised, log_snr, noise):
        z = add_noise(self.clean_embeddings()[input_ids], noise, log_snr)
        return self.predict(z, log_snr, input_ids, is_noised)


@pytest.fixture(params=[0.0, 3.0], ids=["at once", "staggered"])
def one_of_four_words(request):
    model = tiny_model(embedding_dim=4, stagger=request.param)
    model.take_unigram(torch.tensor([0] * 10 + [1] * 4 + [0] * (len(TOKENIZER) - 14)))
    return OneWord(model)


NO_OTHER_WORDS = torch.tensor([*range(10), *range(14, len(TOKENIZER))])


def test_the_bound_of_the_exact_posterior_is_the_entropy(one_of_four_words):
    rows = torch.arange(10, 14)[:, None].expand(-1, 6)
    noised = torch.ones_like(rows, dtype=torch.bool)
    nats = [  # noise is keyed by content, of which there are four
        gaussian_bound_of_rows(
            one_of_four_words, rows, torch.ones_like(rows), noised, draws=32, seed=seed, forbidden_ids=NO_OTHER_WORDS
        ).nats
        for seed in range(32)
    ]
    assert float(torch.cat(nats).mean()) == pytest.approx(math.log(4), rel=0.1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_with_the_exact_posterior_samples_follow_the_language(one_of_four_words, sampler):
    """Four words, equally likely; a text that mixes two of them is none of the language."""
    num_rows = 120
    *_, last = fill_by_denoising(
        one_of_four_words,
        torch.zeros(num_rows, 6, dtype=torch.int64),
        torch.ones(num_rows, 6, dtype=torch.bool),
        DiffusionGenerationConfig(steps=32, sampler=sampler),
        mask_id=TOKENIZER.mask_token_id,
        padding_id=1,
        keys=torch.arange(num_rows),
        forbidden_ids=NO_OTHER_WORDS,
        end_id=None,
        may_end=torch.ones(num_rows, 6, dtype=torch.bool),
    )
    assert torch.equal(last.canvas, last.canvas[:, :1].expand(-1, 6))
    counts = torch.bincount(last.canvas[:, 0] - 10, minlength=4)
    assert float(((counts - 30) ** 2 / 30).sum()) < 16.3  # chi-square with 3 degrees of freedom: 1 in 1000


# Monitors


def test_a_small_squared_error_of_the_noise_says_nothing_about_text(model):
    """Embeddings that have nearly collapsed leave nothing to predict but noise, which is what one sees."""
    collapsed = 0.01 * model.clean_embeddings()
    figures = lookup_figures(model.log_unigram, collapsed, torch.tensor([0.0]))
    assert float(figures.eps_mse) < 0.001
    assert float(figures.accuracy) < 1.1 * float(model.log_unigram.exp().max()) + 0.01


def test_collapsed_embeddings_are_seen():
    apart = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    together = apart[:1] + 0.01 * apart
    assert embedding_figures(apart)["nearest_neighbor"] > 0.5
    assert embedding_figures(together)["nearest_neighbor"] < 0.05
    assert embedding_figures(4 * apart)["nearest_neighbor"] == pytest.approx(
        embedding_figures(apart)["nearest_neighbor"]
    )


def test_without_context_the_curve_is_that_of_the_lookup(model):
    ids = story_language.sample_ids(64, 11)
    levels = torch.tensor([-6.0, -2.0, -0.5, 3.0])
    curve = loss_by_noise(model, ids, ids.ne(TOKENIZER.bos_token_id), levels)
    assert curve["cross_entropy"] == pytest.approx(curve["lookup_cross_entropy"], abs=0.08)
    assert curve["accuracy"] == pytest.approx(curve["lookup_accuracy"], abs=0.03)
    entropy = -float((model.log_unigram.exp() * model.log_unigram).sum())
    assert middle_band(curve, entropy) == [1, 2]


def test_a_fitted_schedule_keeps_its_ends_and_needs_some_rows(model, monkeypatch):
    ids = story_language.sample_ids(8, 11)
    before = model.noise_knots.clone()
    with pytest.raises(ValueError, match="`input_ids` has 8 rows, too few"):
        fit_noise_schedule(model, ids, ids.ne(TOKENIZER.bos_token_id))
    assert torch.equal(model.noise_knots, before)
    monkeypatch.setattr(NoiseWarp, "WARM_UP", 5)
    fit_noise_schedule(model, ids, ids.ne(TOKENIZER.bos_token_id), draws=96)
    assert (model.noise_knots.diff() <= 1e-6).all()
    assert not torch.equal(model.noise_knots, before)
    torch.testing.assert_close(model.noise_knots[[0, -1]], before[[0, -1]])


def test_unigram_entropy_of_even_tokens_is_the_logarithm_of_their_number():
    assert unigram_entropy([1, 2, 3, 4] * 5) == pytest.approx(math.log(4))
    assert unigram_entropy([7, 7]) == 0


# Training


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = state.global_step >= self.step


def make_rows(count):
    return [{"input_ids": row[: 20 + place]} for place, row in enumerate(story_language.sample_ids(count, 3).tolist())]


def train(directory, stop_at=None, resume_from=None, model=None, rows=None, **settings):
    torch.manual_seed(99)  # what the process did before must not matter
    defaults = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "eval_draws": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    rows = rows or make_rows(24)
    trainer = EmbeddingDiffusionTrainer(
        model or tiny_model(),
        DiffusionTrainingArguments(**{**defaults, **settings}),
        processing_class=TOKENIZER,
        train_dataset=rows,
        eval_dataset=rows[:5],
        callbacks=[StopAt(stop_at)] if stop_at else [],
    )
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def digest(trainer):
    weights = trainer.model.state_dict().items()
    return hashlib.sha256(b"".join(name.encode() + of.numpy().tobytes() for name, of in weights)).hexdigest()


def test_a_warped_schedule_gives_its_time_to_the_levels_at_which_nats_become_known():
    """All that is learnt is learnt between log-SNR -4 and -2: four fifths of the time go there, the rest evenly."""
    warp = NoiseWarp(torch.linspace(2, -8, 129))
    assert warp.knots() is None
    levels = torch.linspace(-8, 2, 48_001, dtype=torch.float64)[:-1]
    warp.collect(levels, (-levels - 2).clamp(0, 2))
    assert warp.knots() is None  # it counts from the next update on
    warp.update()
    schedule = NoiseSchedule(warp.knots())
    torch.testing.assert_close(schedule.knots[[0, -1]], torch.tensor([2.0, -8.0], dtype=torch.float64))
    shares = torch.linspace(0, 1, 2001, dtype=torch.float64)
    inside = ((schedule.log_snr(shares) > -4) & (schedule.log_snr(shares) < -2)).double().mean()
    assert float(inside) == pytest.approx(0.8 + 0.2 * 0.2, abs=0.06)  # bins are a tenth of the band


def test_what_waits_or_is_clear_already_teaches_a_warp_nothing():
    warp, other = NoiseWarp(torch.linspace(2, -8, 129)), NoiseWarp(torch.linspace(2, -8, 129))
    levels = torch.linspace(-8, 2, 48_001, dtype=torch.float64)[1:-1]
    for one, ends in ((warp, 0), (other, 10_000)):
        one.collect(levels, torch.sigmoid(-levels))
        one.collect(torch.tensor([-8.0, 2.0]).repeat(ends), torch.full((2 * ends,), 7.0))
        one.update()
    torch.testing.assert_close(other.knots(), warp.knots())


def test_what_a_warp_has_learnt_can_be_kept():
    warp, other = NoiseWarp(torch.linspace(2, -8, 129)), NoiseWarp(torch.linspace(1, 0, 129))
    levels = torch.linspace(-8, 2, 48_001, dtype=torch.float64)
    warp.collect(levels, torch.sigmoid(-levels))
    warp.update()
    other.load_state_dict(warp.state_dict())
    assert torch.equal(other.knots(), warp.knots())


@pytest.fixture
def quick_to_warp(monkeypatch):
    """Four bins that need two tokens each, so that runs of a few steps follow what they learn."""
    monkeypatch.setattr(NoiseWarp, "NUM_BINS", 4)
    monkeypatch.setattr(NoiseWarp, "WARM_UP", 2)


def test_the_schedule_follows_training_and_does_not_depend_on_accumulation(tmp_path, quick_to_warp):
    warped = {"noise_schedule": "warped", "stagger": 3.0}
    before, settings = tiny_model(**warped), {"max_steps": 3, "rows": make_rows(16)}
    whole = train(tmp_path, model=tiny_model(**warped), per_device_train_batch_size=16, **settings)
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    parts = train(tmp_path, model=tiny_model(**warped), **accumulated, **settings)
    knots = whole.model.noise_knots
    assert float((knots - before.noise_knots).abs().max()) > 0.1
    torch.testing.assert_close(parts.model.noise_knots, knots, atol=1e-4, rtol=1e-4)


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(tmp_path, quick_to_warp):
    def fresh():
        return tiny_model(dropout=0.1, noise_schedule="warped")

    unbroken = train(tmp_path / "a", model=fresh(), eval_strategy="steps", eval_steps=1)
    train(tmp_path / "b", stop_at=2, model=fresh())
    resumed = train(tmp_path / "b", resume_from=True, model=fresh())
    assert digest(resumed) == digest(unbroken)
    assert not torch.equal(resumed.model.noise_knots, fresh().noise_knots)
    train(tmp_path / "c", stop_at=4, model=fresh())  # killed after its last step was saved
    assert digest(train(tmp_path / "c", resume_from=True, model=fresh())) == digest(unbroken)
    torch.testing.assert_close(
        unbroken.model.clean_embeddings().norm(dim=-1), torch.full((len(TOKENIZER),), math.sqrt(8.0))
    )


def test_the_loss_does_not_depend_on_accumulation(tmp_path):
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0, "rows": make_rows(16)}
    whole = train(tmp_path, per_device_train_batch_size=16, **settings)
    parts = train(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, **settings)
    assert parts.state.log_history[0]["loss"] == pytest.approx(whole.state.log_history[0]["loss"], rel=1e-5)
    for (name, of), other in zip(
        whole.model.named_parameters(), (of for _, of in parts.model.named_parameters()), strict=True
    ):
        # Terms of the level's weights, one for each place, are large and cancel.
        torch.testing.assert_close(other, of, atol=1e-4, rtol=1e-4, msg=name)


def test_training_learns_context_that_the_lookup_has_not(tmp_path):
    """Text of one word again and again, another one in every row: nobody knows which until all places agree."""
    model = tiny_model(embedding_dim=4)
    rows = [{"input_ids": [0, *[10 + row % 16] * 12]} for row in range(64)]
    settings = {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "optim": "muon"}
    trainer = train(tmp_path, model=model, rows=rows, no_prefix_share=1.0, **settings)
    model.eval()
    ids = torch.tensor([row["input_ids"] for row in rows[:16]])
    curve = loss_by_noise(model, ids, ids.ne(0), torch.tensor([-2.0, -1.0]))
    for nats, alone in zip(curve["cross_entropy"], curve["lookup_cross_entropy"], strict=True):
        assert nats < 0.9 * alone
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.9 * math.log(16)
    assert {"eval_nearest_neighbor", "eval_loss_noise_time_1.0"} <= set(metrics)
    assert any(name.startswith("loss_noise_time_") for name in trainer.state.log_history[0])


def test_the_squared_error_of_the_noise_is_trained_and_embeddings_stay_free(tmp_path):
    model = tiny_model(**LITERAL)
    before = model.embeddings.weight.clone()
    trainer = train(tmp_path, model=model, max_steps=12, learning_rate=1e-2)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] > 1  # to guess no noise at all costs 1
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not torch.equal(model.embeddings.weight, before)


@pytest.mark.parametrize(
    ("name", "value"), [("schedule", "cosine"), ("span_length", 2.0), ("rate_distribution", "importance")]
)
def test_arguments_about_masks_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        train(tmp_path, **{name: value})


def test_a_model_that_has_learnt_keeps_its_unigram_law_and_its_schedule(tmp_path):
    model = tiny_model()
    model.take_unigram(torch.arange(len(TOKENIZER)))
    before = [model.log_unigram.clone(), model.noise_knots.clone()]
    train(tmp_path, model=model, max_steps=1)
    assert torch.equal(model.log_unigram, before[0])
    assert torch.equal(model.noise_knots, before[1])


def test_half_precision_trains(tmp_path):
    model = embedding_diffusion_from(load_model(STORIES_MLM), TOKENIZER.mask_token_id)
    trainer = train(tmp_path, model=model, max_steps=2, bf16=True)
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_another_model_is_refused(tmp_path, tiny_roberta):
    with pytest.raises(ValueError, match="`model`"):
        train(tmp_path, model=tiny_roberta)


# Commands and tables


def test_tables_hold_what_the_arms_have_found_so_far(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    from embedding_diffusion_tables import write_tables

    curve = {name: [1.0, 0.5] for name in ("log_snr", "cross_entropy", "lookup_cross_entropy", "accuracy")}
    curve |= {name: [1.0, 0.25] for name in ("lookup_accuracy", "eps_mse", "lookup_eps_mse")}
    (tmp_path / "study").mkdir()
    for name, found in (
        ("early", {}),
        ("late", {"curve": curve, "writing": {"DDIM": [{"forwards": 8, "valid_share": 0.5}]}}),
    ):
        report = {"command": f"run {name}", "device": "cpu", **found}
        (tmp_path / "study" / f"{name}.json").write_text(json.dumps(report))
    write_tables(str(tmp_path / "study.json"))
    assert set(json.loads((tmp_path / "study.json").read_text())) == {"early", "late"}
    page = (tmp_path / "study.md").read_text()
    assert "| late | DDIM | 50.0 % |" in page
    assert "| 0.5 | 0.500 | 0.500 |  | 25.0 % | 50.0 % | 0.2500 | 0.2500 |" in page


def look_at_it(main, capsys):
    """What else there is to do with a model, on `run/final-model`: it is done, or refused in one sentence."""
    model = ["--checkpoint", "run/final-model"]
    assert main(["doctor", *model]) == 0
    assert "ok    length             rows of up to 128 tokens" in capsys.readouterr().out
    texts = ["A boy named Max had a goat.", "A named boy Max had a goat."]
    assert main(["score", *model, "--draws", "2", "--texts", *texts, "--output-format", "json"]) == 0
    first, second = (json.loads(line)["nats"] for line in capsys.readouterr().out.splitlines())
    assert 0 < first != second > 0
    assert main(["score", *model, "--estimator", "chain", "--texts", *texts]) == 2
    assert "`estimator` is 'chain', which asks for tokens under masks" in capsys.readouterr().err
    assert main(["evaluate", *model, "--num-stories", "2", "--draws", "1"]) == 0
    assert "loss by noise time" in capsys.readouterr().out
    assert main(["evaluate", *model, "--num-stories", "2", "--estimators", "curve"]) == 2
    assert main(["evaluate", *model, "--num-stories", "2", "--report", "report"]) == 2
    assert "a report is about tokens under masks" in capsys.readouterr().err
    steps = ["--steps", "2", "3", "--sampler", "ddim", "ddpm", "--max-new-tokens", "5", "--num-samples", "2"]
    assert main(["sweep", *model, *steps, "--picture", "false"]) == 0
    assert "4 settings of 2 texts each" in capsys.readouterr().err
    assert main(["sweep", *model, "--order", "margin", "--output-dir", "other"]) == 2
    assert "`order` must be one of entropy, random" in capsys.readouterr().err


def test_the_two_commands_train_and_write(tmp_path, capsys, monkeypatch):
    from diffusion_mlm.cli import main

    monkeypatch.chdir(tmp_path)
    options = "--num-stories 16 --max-steps 1 --validation 0 --batch-size 4 --output-dir run"
    assert main(["train", "--process", "gaussian", *options.split()]) == 0
    capsys.readouterr()
    write = "generate --checkpoint run/final-model --steps 3 --max-new-tokens 6 --sampler ddpm --output-format json"
    assert main(write.split()) == 0
    sample = json.loads(capsys.readouterr().out)
    assert sample["num_forwards"] == 3
    assert (
        json.loads((tmp_path / "run" / "final-model" / "config.json").read_text())["diffusion"]["process"]
        == "gaussian"
    )
    look_at_it(main, capsys)
    again = f"--model-name run/final-model {options[:-3]}again"
    assert main(["train", *again.split()]) == 0  # such a checkpoint goes on without being told what it is
    assert main(["train", "--embedding-dim", "8"]) == 2
    scratch = f"--preset roberta-tiny --dropout 0 {options[:-3]}scratch"
    assert main(["train", "--process", "gaussian", *scratch.split()]) == 0
    literal = ["--process", "gaussian", "--noise-objective", "eps_mse"]
    assert main(["train", *literal, "--model-name", STORIES_MLM]) == 2
    assert "`--noise-objective` is 'eps_mse'" in capsys.readouterr().err
    assert main(["train", *literal, "--noise-schedule", "warped"]) == 2
    assert "`--noise-schedule` is 'warped'" in capsys.readouterr().err
