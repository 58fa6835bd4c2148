"""Continuations: exact with the exact denoiser, only their own tokens asked for, the same in every batch."""

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import RobertaTokenizerFast

from diffusion_mlm import generate, story_language
from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.evaluation.continuations import score_continuations
from diffusion_mlm.modeling import build_model
from diffusion_mlm.tokenization import encode_text, special_token_ids, train_bpe

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(8, seed=6)
EXACT = story_language.ExactDenoiser()
SHARED = Path(__file__).parents[2] / "shared" / "data"
ESTIMATORS = ("bound", "chain", "importance")
PAIRS = [
    ("One day", " Mia lived near the lake"),
    ("Once upon a time,", " Ben"),
    ("", "One sunny day"),
    ("Mia and Ben lived near the", " lake. Then"),
    ("One day", " Ben lived near the lake"),
    ("One day", ""),
]


def split(story, word):
    """A story in two before its word of this number, the space with the second part."""
    words = story.split(" ")
    before = " ".join(words[:word])
    return before, story[len(before) :]


def log_prob_of_beginning(text):
    """Exact log-probability of all stories that begin so."""
    return float(EXACT.log_prob_ids(torch.tensor([[TOKENIZER.bos_token_id, *encode_text(TOKENIZER, text)]])))


def random_roberta(template, tokenizer, **facts):
    """Random weights, for a tokenizer and with the facts of a training."""
    config = template.config.__class__.from_dict({**template.config.to_dict(), "vocab_size": len(tokenizer)})
    model = build_model(config, seed=1).eval()
    model.config.diffusion = facts
    return model


@pytest.fixture(scope="module")
def models(shared_roberta):
    """A model of packed rows, one that writes ends, and one of word pieces, with their tokenizers."""
    bpe = train_bpe(STORIES, vocab_size=300, model_max_length=32)
    return {
        "packed": (shared_roberta, TOKENIZER),
        "writes ends": (random_roberta(shared_roberta, TOKENIZER, generates_end=True, row_length=24), TOKENIZER),
        "bpe": (random_roberta(shared_roberta, bpe), bpe),
    }


class Recorder:
    """A copy of a model that keeps the canvases it was asked about."""

    def __init__(self, model):
        self.canvases = []
        self.model = copy.deepcopy(model)
        self.model.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, model, args, inputs):
        self.canvases += [ids for ids in inputs["input_ids"] if TOKENIZER.mask_token_id in ids]


@pytest.mark.parametrize("word", [0, 30])
def test_a_chain_of_the_exact_denoiser_is_the_exact_conditional_probability(word):
    context, continuation = split(STORIES[0], word)
    (scored,) = score_continuations(EXACT, TOKENIZER, [(context, continuation)], estimator="chain")
    # That a story is over is certain after its last word: it is as likely as all that begin with it.
    expected = float(story_language.log_prob([STORIES[0]])) - log_prob_of_beginning(context)
    assert scored.log_probability == pytest.approx(expected, abs=1e-4)
    assert scored.num_tokens == len(encode_text(TOKENIZER, STORIES[0])) - len(encode_text(TOKENIZER, context))


def test_answers_to_one_context_differ_as_whole_stories_do():
    stories = sorted(story_language.sample(100, seed=9))
    first, second = max(
        itertools.pairwise(stories), key=lambda pair: len([1 for a, b in zip(*pair, strict=False) if a == b])
    )
    same = next(place for place, (a, b) in enumerate(zip(first.split(), second.split(), strict=False)) if a != b)
    pairs = [split(first, same), split(second, same)]
    assert pairs[0][0] == pairs[1][0]
    one, other = score_continuations(EXACT, TOKENIZER, pairs, estimator="chain")
    expected = story_language.log_prob([first, second])
    assert one.log_probability - other.log_probability == pytest.approx(float(expected[0] - expected[1]), abs=1e-4)


def test_the_bound_lies_within_its_noise_of_the_exact_probability():
    pairs = [split(story, 9) for story in STORIES]
    pairs = [(context, " ".join(continuation.split(" ")[:7])) for context, continuation in pairs]
    expected = sum(log_prob_of_beginning(context + words) - log_prob_of_beginning(context) for context, words in pairs)
    how = {"draws": 2, "max_length": 24}
    found = torch.tensor(
        [
            sum(scored.log_probability for scored in score_continuations(EXACT, TOKENIZER, pairs, seed=seed, **how))
            for seed in range(6)
        ]
    )
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - expected) < 3 * error < -0.5 * expected


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_agree_on_a_single_token_which_takes_one_forward(models, estimator):
    recorder = Recorder(models["packed"][0])
    pairs = [("One day", " Ben"), ("Once upon a time,", " Mia")]
    found = score_continuations(recorder.model, TOKENIZER, pairs, estimator=estimator)
    assert found == score_continuations(models["packed"][0], TOKENIZER, pairs, estimator="chain")
    assert len(recorder.canvases) == 2 * len(pairs)  # one for its nats, one for the likeliest token


@pytest.mark.parametrize("name", ["packed", "writes ends"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_special_token_is_ever_scored(models, name, estimator):
    """What is asked for are the tokens of the continuation: no `</s>` behind it, nothing of the context."""
    recorder = Recorder(models[name][0])
    for context, continuation in PAIRS[:4]:
        recorder.canvases.clear()
        (scored,) = score_continuations(
            recorder.model, TOKENIZER, [(context, continuation)], estimator=estimator, draws=8
        )
        before, whole = (encode_text(TOKENIZER, text) for text in (context, context + continuation))
        own = range(1 + len(before), 1 + len(whole))
        masks = [TOKENIZER.mask_token_id] * (23 - len(whole) if name == "writes ends" else 16)
        tail = masks if name == "writes ends" else [*masks, TOKENIZER.eos_token_id]
        for canvas in recorder.canvases:
            seen = [token for place, token in enumerate(canvas.tolist()) if place not in own]
            assert seen == [TOKENIZER.bos_token_id, *before, *tail]
        assert scored.num_tokens == len(own)


@pytest.mark.parametrize("name", ["packed", "writes ends"])
def test_a_chain_is_the_sum_over_the_tokens_of_the_continuation(models, name):
    """By hand: the model is called on each canvas, and special tokens share in no probability (but the end may)."""
    model, tokenizer = models[name]
    context, continuation = PAIRS[3]
    before, whole = (encode_text(tokenizer, text) for text in (context, context + continuation))
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    forbidden = [token for token in special_token_ids(tokenizer) if name == "packed" or token != end]
    tail = [*[mask] * 16, end] if name == "packed" else [mask] * (23 - len(whole))
    nats, greedy = 0.0, True
    for place in range(len(before), len(whole)):
        canvas = [tokenizer.bos_token_id, *whole[:place], *[mask] * (len(whole) - place), *tail]
        logits = model(torch.tensor([canvas])).logits[0, 1 + place].detach().double()
        logits[forbidden] = -math.inf
        nats -= float(logits.log_softmax(-1)[whole[place]])
        greedy &= int(logits.argmax()) == whole[place]
    (scored,) = score_continuations(model, tokenizer, [(context, continuation)], estimator="chain")
    assert scored.nats == pytest.approx(nats, abs=1e-5)
    assert scored.is_greedy == greedy


@pytest.mark.parametrize("name", ["packed", "writes ends"])
def test_greedy_is_what_greedy_generation_from_left_to_right_writes(models, name):
    model, tokenizer = models[name]
    # As many masks as for the scores: 5 tokens and 16 masks, or all of a row.
    how = {"order": "left_to_right", "sampling": "greedy", "max_new_tokens": 21 if name == "packed" else None}
    contexts = ["One day", "Once upon a time, Mia", "", "Ben lived near the"]
    samples = generate(model, tokenizer, contexts, **how).samples
    wholes = [encode_text(tokenizer, sample.prefix) + sample.token_ids[:5] for sample in samples]
    written = [tokenizer.decode(ids)[len(context) :] for ids, context in zip(wholes, contexts, strict=True)]
    assert [encode_text(tokenizer, context + new) for context, new in zip(contexts, written, strict=True)] == wholes
    pairs = list(zip(contexts, written, strict=True))
    assert all(scored.is_greedy for scored in score_continuations(model, tokenizer, pairs, draws=2))
    mixed = list(zip(contexts, written[1:] + written[:1], strict=True))
    assert not any(scored.is_greedy for scored in score_continuations(model, tokenizer, mixed, draws=2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_score_depends_on_its_pair_alone(models, estimator):
    options = {"estimator": estimator, "draws": 3, "orders": 2}
    for model, tokenizer in models.values():
        whole = score_continuations(model, tokenizer, PAIRS, batch_size=4, **options)
        for pair, in_batch in zip(PAIRS, whole, strict=True):
            (alone,) = score_continuations(model, tokenizer, [pair], batch_size=64, **options)
            assert alone.nats == pytest.approx(in_batch.nats, abs=1e-5)
            assert (alone.is_greedy, alone.num_tokens) == (in_batch.is_greedy, in_batch.num_tokens)


def test_the_seed_decides_on_the_masks(models):
    first, again, other = (
        score_continuations(*models["packed"], PAIRS[:1], draws=4, seed=seed)[0].nats for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_group_has_the_same_masks_and_another_one_has_others(models):
    def nats(*groups):
        return [
            scored.nats for scored in score_continuations(*models["packed"], PAIRS[:1] * 2, draws=4, groups=groups)
        ]

    first, second = nats("question 1", "question 1")
    assert first == second
    first, second = nats("question 1", "question 2")
    assert first != second


@pytest.mark.parametrize("masks_behind", [0, 3])
def test_as_many_masks_as_asked_for_stand_behind_the_continuation(models, masks_behind):
    recorder = Recorder(models["packed"][0])
    context, continuation = PAIRS[0]
    score_continuations(recorder.model, TOKENIZER, [PAIRS[0]], estimator="chain", masks_behind=masks_behind)
    length = len(encode_text(TOKENIZER, context + continuation))
    tail = [TOKENIZER.mask_token_id] * masks_behind + [TOKENIZER.eos_token_id]
    assert all(canvas[1 + length :].tolist() == tail for canvas in recorder.canvases)


def test_long_contexts_are_cut_from_the_left_with_one_warning(models, caplog):
    words = ["Mia", "Ben", "the", "lake", "near", "lived"] * 10
    long, ending = " ".join(words), " day one"
    model, tokenizer = models["packed"]
    found = score_continuations(
        model, tokenizer, [(long, ending), ("One", " day"), (f"Anna {long}", ending)], estimator="chain"
    )
    kept = " ".join(words[-21:])  # 32 positions hold <s>, </s>, a quarter of masks and two words of the ending besides
    (expected,) = score_continuations(model, tokenizer, [(kept, ending)], estimator="chain")
    assert found[0].nats == found[2].nats == pytest.approx(expected.nats, abs=1e-5)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and messages[0].startswith("2 of 3 contexts do not fit into rows of 32 tokens")


def test_a_continuation_longer_than_a_row_is_scored_token_by_token_once(models):
    (scored,) = score_continuations(*models["packed"], [("One day", f" {STORIES[0]}")], estimator="chain")
    assert scored.num_tokens == len(encode_text(TOKENIZER, STORIES[0]))


def test_nothing_is_certain(models):
    (scored,) = score_continuations(*models["packed"], [("One day", "")])
    assert (scored.log_probability, scored.is_greedy, scored.num_tokens) == (0.0, True, 0)
    assert score_continuations(*models["packed"], []) == []


def test_what_the_tokenizer_does_not_know_cannot_be_written(models):
    unknown, part, known = score_continuations(
        *models["packed"], [("One", " xylophone"), ("One", " xylophone day"), ("xylophone", " day")], draws=2
    )
    assert unknown.log_probability == part.log_probability == -math.inf
    assert not unknown.is_greedy and not part.is_greedy
    assert (unknown.num_tokens, part.num_tokens, part.num_unknown) == (0, 1, 1)
    assert math.isfinite(known.log_probability) and known.num_unknown == 0  # in the context it is merely seen


def test_special_tokens_as_text_are_text(models):
    model, tokenizer = models["bpe"]
    (scored,) = score_continuations(model, tokenizer, [("One", "</s>")], estimator="chain")
    assert scored.num_tokens == len(encode_text(tokenizer, "One</s>")) - len(encode_text(tokenizer, "One")) > 1


def test_a_token_of_context_and_continuation_is_scored(models):
    model, tokenizer = models["bpe"]
    context, continuation = "Li", "ttle Ben lived"
    before, whole = (encode_text(tokenizer, text) for text in (context, context + continuation))
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
    assert same < len(before)
    (scored,) = score_continuations(model, tokenizer, [(context, continuation)], estimator="chain")
    assert scored.num_tokens == len(whole) - same


@pytest.mark.skipif(not SHARED.is_dir(), reason="LAMBADA and the tokenizer of roberta-base are not beside the project")
def test_the_last_word_of_lambada_is_what_the_real_tokenizer_scores(shared_roberta):
    folder = SHARED / "roberta-tokenizer"
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), mask_token=mask)
    changes = {"vocab_size": len(tokenizer), "max_position_embeddings": 258}
    model = build_model(shared_roberta.config.__class__.from_dict({**shared_roberta.config.to_dict(), **changes}))
    with (SHARED / "lambada" / "lambada_test.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 6)]
    asked = []
    model.register_forward_pre_hook(lambda _, args, inputs: asked.append(inputs["input_ids"][0]), with_kwargs=True)
    for text in texts:
        asked.clear()
        context, word = text.rsplit(" ", 1)
        (scored,) = score_continuations(model, tokenizer, [(context, f" {word}")], draws=8)
        masked = torch.stack([ids for ids in asked if tokenizer.mask_token_id in ids]).eq(tokenizer.mask_token_id)
        row = torch.tensor(tokenizer(text)["input_ids"])
        own = masked.any(0)[: len(row)].nonzero()[
            :, 0
        ]  # then </s> in the row; masks and </s> where the model is asked
        assert tokenizer.decode(row[own[:-1]]) == f" {word}" and row[own[-1]] == tokenizer.eos_token_id
        assert scored.num_tokens == len(own) - 1 and scored.nats > 0


def test_the_model_comes_back_in_the_mode_it_was_in(tiny_roberta):
    tiny_roberta.train()
    score_continuations(tiny_roberta, TOKENIZER, PAIRS[:2], draws=2)
    assert tiny_roberta.training


def test_progress_ends_at_all_rows(models):
    seen = []
    score_continuations(
        *models["packed"], PAIRS, draws=2, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (10, 10)  # five rows, twice: the empty continuation has none


def test_a_model_that_answers_nan_is_reported(tiny_roberta):
    torch.nn.init.constant_(tiny_roberta.lm_head.bias, math.nan)
    with pytest.raises(NonFiniteLossError, match="' Ben' after 'Once upon a time,' is NaN"):
        score_continuations(tiny_roberta, TOKENIZER, PAIRS[1:2], draws=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"estimator": "elbo"}, "`estimator` must be one of bound, chain, importance, not 'elbo'"),
        ({"draws": 1}, "`draws` must be a whole number of at least 2, not 1"),
        ({"groups": ["a"]}, "`groups` names 1 groups for 6 `pairs`"),
        ({"masks_behind": -1}, "`masks_behind` must be a whole number of at least 0, not -1"),
        ({"max_length": 99}, "`max_length` is 99, but this model reads 32 tokens"),
    ],
)
def test_mistakes_are_named(models, options, message):
    with pytest.raises(ValueError, match=message):
        score_continuations(*models["packed"], PAIRS, **options)
