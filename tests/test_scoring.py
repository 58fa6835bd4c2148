"""Scores of single texts: exact with the exact denoiser, paired between alternatives, the same in every batch."""

import json
import math

import pytest
import torch

from diffusion_mlm import load_generator, score, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.errors import NonFiniteLossError

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(8, seed=6)
EXACT = story_language.ExactDenoiser()


def tokens_of(text):
    return len(story_language.automaton.split_text(text)) + 1


@pytest.fixture(scope="module")
def generator():
    return load_generator(STORIES_GENERATOR)[0]


def test_a_chain_of_the_exact_denoiser_is_the_exact_probability():
    for scored, exact in zip(
        score(EXACT, TOKENIZER, STORIES[:2], estimator="chain"), story_language.log_prob(STORIES[:2]), strict=True
    ):
        assert scored.nats == pytest.approx(-float(exact), rel=1e-5)
        assert scored.standard_error == 0
        assert scored.num_tokens == tokens_of(scored.text) and scored.num_bytes == len(scored.text)
        assert scored.nats_per_token == pytest.approx(scored.nats / scored.num_tokens)
        assert scored.bits_per_byte == pytest.approx(scored.nats / math.log(2) / len(scored.text))
        assert scored.num_forwards == story_language.BLOCK_LENGTH - 1


def test_what_follows_a_prefix_has_its_conditional_probability():
    words = STORIES[0].split()
    prefix, text = " ".join(words[:40]), " " + " ".join(words[40:])
    (scored,) = score(EXACT, TOKENIZER, text, prefix=prefix, estimator="chain")
    start = torch.tensor([TOKENIZER(prefix)["input_ids"][:-1]])
    expected = float(EXACT.log_prob_ids(start)) - float(story_language.log_prob([STORIES[0]]))
    assert scored.nats == pytest.approx(expected, rel=1e-5)
    assert scored.num_tokens == tokens_of(STORIES[0]) - start.size(1) + 1
    assert (scored.prefix, scored.text, scored.num_bytes) == (prefix, text, len(text))


@pytest.mark.parametrize("estimator", ["chain", "importance"])
def test_a_beginning_has_the_probability_of_all_texts_that_begin_so(estimator):
    text = " ".join(STORIES[1].split()[:9])
    (scored,) = score(EXACT, TOKENIZER, text, beginning=True, estimator=estimator, orders=2)
    ids = torch.tensor([TOKENIZER(text)["input_ids"][:-1]])
    assert scored.nats == pytest.approx(-float(EXACT.log_prob_ids(ids)), rel=1e-5)
    assert scored.num_tokens == ids.size(1) - 1 and not scored.scores_end


def test_the_bound_lies_within_its_errors_of_the_exact_probability():
    """Over 5 stories, each by 16 masks; the error of the sum is made of theirs."""
    scored = score(EXACT, TOKENIZER, STORIES[:5], draws=16)
    difference = sum(text.nats for text in scored) + float(story_language.log_prob(STORIES[:5]).sum())
    error = math.sqrt(sum(text.standard_error**2 for text in scored))
    assert abs(difference) < 3 * error < 0.5 * sum(text.nats for text in scored)


def test_a_story_that_says_who_is_likelier_than_one_that_mixes_names_up(generator):
    story = next(story for story in STORIES if "Mia" in story or "Ben" in story)
    name, other = ("Mia", "Clara") if "Mia" in story else ("Ben", "Max")
    place = story.rindex(name)
    mixed = story[:place] + other + story[place + len(name) :]
    right, wrong = score(generator, TOKENIZER, [story, mixed], draws=32)
    difference, error = wrong.nats_above(right)
    assert difference == wrong.nats - right.nats > 3 * error
    # Both have as many tokens and so the same masks: what they have in common goes out.
    assert error < 0.5 * math.hypot(wrong.standard_error, right.standard_error)


def test_a_text_is_as_likely_as_itself(generator):
    first, second = score(generator, TOKENIZER, [STORIES[0]] * 2, draws=8)
    assert first.nats_above(second) == (0.0, 0.0)


@pytest.mark.parametrize("estimator", ["bound", "chain", "importance"])
def test_a_score_depends_on_its_text_alone(shared_roberta, estimator):
    texts = ["One day", "Once upon a time, Mia lived near the lake", STORIES[2]]
    options = {"estimator": estimator, "draws": 9, "orders": 2, "max_length": 16}
    whole = score(shared_roberta, TOKENIZER, texts, batch_size=5, **options)
    for text, in_batch in zip(texts, whole, strict=True):
        (alone,) = score(shared_roberta, TOKENIZER, [text], batch_size=64, **options)
        assert alone.nats == pytest.approx(in_batch.nats, rel=1e-5)
        assert alone.groups == pytest.approx(in_batch.groups, rel=1e-5)
        assert (alone.num_tokens, alone.num_forwards) == (in_batch.num_tokens, in_batch.num_forwards)
    assert whole[2].num_tokens == tokens_of(STORIES[2]) - 1  # in windows, without the end
    assert whole[0].num_forwards == {"bound": 16, "chain": 2, "importance": 4}[estimator]


def test_other_seeds_give_other_masks(shared_roberta):
    options = {"draws": 8, "max_length": 32}
    first, second, again = (
        score(shared_roberta, TOKENIZER, "One day", seed=seed, **options)[0].nats for seed in (0, 1, 0)
    )
    assert first == again != second


def test_a_packed_model_is_asked_for_the_words_and_not_for_the_end(shared_roberta):
    (scored,) = score(shared_roberta, TOKENIZER, "One day", estimator="chain")
    assert not scored.scores_end and scored.num_tokens == 2


def test_an_impossible_text_is_infinitely_unlikely_and_null_in_json():
    wrong = STORIES[0].replace(".", ",", 1)
    scored = score(EXACT, TOKENIZER, [STORIES[0], wrong], estimator="chain")
    assert scored[1].nats == math.inf
    found = [json.loads(text.to_json()) for text in scored]
    assert found[1]["nats"] is None and found[0]["nats"] == pytest.approx(scored[0].nats)
    assert list(found[0]) == [
        "text",
        "prefix",
        "nats",
        "standard_error",
        "num_tokens",
        "num_bytes",
        "num_unknown",
        "num_forwards",
        "scores_end",
        "estimator",
        "nats_per_token",
        "bits_per_byte",
    ]


def test_unknown_words_are_counted_and_not_scored(shared_roberta):
    (scored,) = score(shared_roberta, TOKENIZER, "One xylophone day", estimator="chain")
    assert (scored.num_unknown, scored.num_tokens) == (1, 2)
    assert scored.num_bytes == len("One") + len(" day")


def test_the_model_comes_back_in_the_mode_it_was_in(tiny_roberta):
    tiny_roberta.train()
    score(tiny_roberta, TOKENIZER, "One day", draws=2)
    assert tiny_roberta.training


def test_a_model_that_answers_nan_is_reported(tiny_roberta):
    torch.nn.init.constant_(tiny_roberta.lm_head.bias, math.nan)
    with pytest.raises(NonFiniteLossError, match="'One day' is NaN"):
        score(tiny_roberta, TOKENIZER, "One day", draws=2)


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ([], {}, "`texts` is empty"),
        ([""], {}, "`texts` holds '', which has no token"),
        (["zzz"], {}, "`texts` holds 'zzz', which has no token"),
        ([None], {}, "`texts` must hold strings"),
        (["\ud800"], {}, "`texts`: number 0"),
        (["One"], {"prefix": 3}, "`prefix` must be a string, not int"),
        (["One"], {"estimator": "elbo"}, "`estimator` must be one of bound, chain, importance, not 'elbo'"),
        (["One"], {"draws": 1}, "`draws` must be a whole number of at least 2, not 1"),
        (["One"], {"orders": 0}, "`orders` must be a whole number of at least 1, not 0"),
        (["One"], {"batch_size": 2.5}, "`batch_size` must be a whole number"),
        (["One"], {"max_length": 99}, "`max_length` is 99, but this model reads 32 tokens"),
        (["One"], {"max_length": 1}, "`max_length` must be a whole number of at least 3"),
    ],
)
def test_mistakes_are_named(shared_roberta, texts, options, message):
    with pytest.raises(ValueError, match=message):
        score(shared_roberta, TOKENIZER, texts, **options)
