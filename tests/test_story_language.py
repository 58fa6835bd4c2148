"""The story language against exact oracles: enumeration of a toy grammar, the chain rule, and what is promised."""

import itertools
import math
import re
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from diffusion_mlm import story_language
from diffusion_mlm.story_language import AUTOMATON, BLOCK_LENGTH, ExactDenoiser, log_prob, sample, sample_ids
from diffusion_mlm.story_language.__main__ import main
from diffusion_mlm.story_language.automaton import (
    EOS_ID,
    MASK_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    Automaton,
    split_text,
)
from diffusion_mlm.story_language.grammar import BOY, GIRL, SLOTS, STORY, VARIABLES
from diffusion_mlm.story_language.inference import Inference

STORIES = sample(2000, seed=11)
TOKENIZER = story_language.tokenizer()
DENOISER = ExactDenoiser()

TOY_VARIABLES = {
    "hero": [{"name": "Ann", "he": "she"}, {"name": "Bea", "he": "she"}, {"name": "Tom", "he": "he"}],
    "colour": [{"colour": "red"}, {"colour": "blue"}],
}
TOY_SLOTS = {"saw": "saw hid", "soon": "soon now"}
TOY_STORY = (
    ["{soon} {name} {saw} it", "{name} {saw} it and"],
    ["{soon} {he} sang {colour}", "{he} left {colour}"],
)
TOY = Automaton(TOY_STORY, TOY_SLOTS, TOY_VARIABLES)


def enumerate_toy() -> dict[str, float]:
    """Every text of the toy grammar with its probability, written out from the rules and not from the automaton."""
    first = {0: 6 / 11, 1: 5 / 11}  # two options of rank 0 and 1 weigh 1/5 and 1/6
    texts: dict[str, float] = {}
    for hero, colour in itertools.product(TOY_VARIABLES["hero"], TOY_VARIABLES["colour"]):
        for a, b, c, d, e in itertools.product(range(2), repeat=5):
            saw, soon, later = (TOY_SLOTS[slot].split()[i] for slot, i in (("saw", b), ("soon", c), ("soon", d)))
            start = f"{soon} {hero['name']} {saw} it" if a == 0 else f"{hero['name']} {saw} it and"
            end = (
                f"{later} {hero['he']} sang {colour['colour']}" if e == 0 else f"{hero['he']} left {colour['colour']}"
            )
            p = first[a] * first[b] * first[e] / 6
            p *= first[c] if a == 0 else 0.5  # the unused choice is summed out over its two values
            p *= first[d] if e == 0 else 0.5
            texts[f"{start} {end}"] = texts.get(f"{start} {end}", 0.0) + p
    return texts


TOY_TEXTS = enumerate_toy()


# A word of each of these forms stands in every story; those of `friend` are an animal and its name, and so on.
TELLING_FORMS = {"hero": ["name"], "friend": ["friend", "pet"], "treasure": ["colour", "object"]}


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def block(stories: list[str], length: int = BLOCK_LENGTH) -> Tensor:
    """Rows `<s> story </s> </s> ...` of `length` tokens, through the tokenizer."""
    ids = TOKENIZER(stories, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
    return ids.masked_fill(ids.eq(PAD_ID), EOS_ID)


def true_token_log_probs(denoiser: ExactDenoiser, clean: Tensor, masked: Tensor) -> Tensor:
    """log p(clean token | visible) at masked positions, 0 elsewhere; float64 of shape (B, L)."""
    logits = denoiser(clean.masked_fill(masked, MASK_ID)).logits.double()
    return logits.gather(2, clean[..., None])[..., 0].masked_fill(~masked, 0.0)


# --- what the stories are --------------------------------------------------------------------------------------------


def test_language_meets_its_requirements():
    word_types = [token for token in AUTOMATON.vocabulary[len(SPECIAL_TOKENS) :] if token.strip().isalpha()]
    assert len(word_types) >= 200
    assert 220 <= len(AUTOMATON.vocabulary) <= 400
    assert story_language.number_of_stories() > 10**12
    assert 0.5 <= story_language.entropy_per_token() <= 1.5
    assert AUTOMATON.entropy() > 30


def test_every_story_has_45_to_70_words_and_fits_the_block():
    least, most = AUTOMATON.length_range(words_only=True)
    counts = [len(words_of(story)) for story in STORIES]
    assert 45 <= least <= min(counts) <= max(counts) <= most <= 70
    tokens = [len(split_text(story)) for story in STORIES]
    assert AUTOMATON.length_range()[0] <= min(tokens) <= max(tokens) <= AUTOMATON.length_range()[1] <= 78
    assert AUTOMATON.length_range()[1] + 2 == BLOCK_LENGTH <= 80


def test_every_story_keeps_its_hero_pronouns_and_things():
    girls = {value["name"] for value in VARIABLES["hero"] if value["child"] == "girl"}
    female, male = set(GIRL.values()), set(BOY.values())
    for story in STORIES:
        words = words_of(story)
        for variable, values in VARIABLES.items():
            for form in TELLING_FORMS[variable]:
                told = {word for word in words if word in {value[form] for value in values}}
                assert len(told) == 1, f"{variable} must be one and the same, got {told} in: {story}"
            if variable == "hero":
                assert not set(words) & (male if told <= girls else female), story
            elif variable in ("friend", "treasure"):
                forms = {form: next(w for w in words if w in {v[form] for v in values}) for form in values[0]}
                assert forms in values, f"{forms} belong together in: {story}"


def test_heroes_friends_and_things_recur():
    mentions = {
        form: torch.tensor(
            [sum(word in {value[form] for value in values} for word in words_of(story)) for story in STORIES]
        ).double()
        for variable, values in VARIABLES.items()
        for form in TELLING_FORMS[variable]
    }
    assert all(bool((counts >= 1).all()) for counts in mentions.values())
    assert mentions["object"].min() >= 2, "the treasure is shown, and comes back"
    assert mentions["object"].mean() > 2.5 and mentions["pet"].mean() > 2.5 and mentions["name"].mean() > 1.5


def test_every_word_of_the_vocabulary_is_used():
    seen = set(sample_ids(8000, seed=3).unique().tolist())
    assert seen == set(range(len(AUTOMATON.vocabulary))) - {PAD_ID, UNK_ID, MASK_ID}


def test_sample_is_deterministic_and_a_seed_names_an_endless_list():
    assert sample(20, seed=5) == sample(20, seed=5)
    assert sample(20, seed=5)[:7] == sample(7, seed=5)
    assert not set(sample(200, seed=5)) & set(sample(200, seed=6))
    assert len(set(STORIES)) == len(STORIES)
    assert torch.equal(sample_ids(9, seed=5)[4:], sample_ids(5, seed=5, first=4))
    assert sample(0, seed=5) == []


def test_sample_ids_are_the_tokens_of_the_stories():
    assert torch.equal(block(STORIES[:100]), sample_ids(100, seed=11))


# --- exact numbers ---------------------------------------------------------------------------------------------------


def test_mean_surprise_of_samples_is_the_exact_entropy():
    nats = -log_prob(STORIES)
    standard_error = nats.std() / math.sqrt(len(nats))
    assert abs(nats.mean() - AUTOMATON.entropy()) < 4 * standard_error
    tokens = torch.tensor([len(split_text(story)) + 1.0 for story in STORIES])
    assert abs(tokens.mean() - story_language.expected_tokens()) < 4 * tokens.std() / math.sqrt(len(tokens))


def test_toy_grammar_agrees_with_enumeration():
    p = torch.tensor(list(TOY_TEXTS.values()), dtype=torch.float64)
    assert math.isclose(p.sum().item(), 1.0, abs_tol=1e-12)
    assert TOY.number_of_stories() == len(TOY_TEXTS)
    assert TOY.entropy() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-12)
    lengths = [len(text.split()) for text in TOY_TEXTS]
    assert TOY.length_range() == (min(lengths), max(lengths))
    assert TOY.expected_tokens() == pytest.approx(1 + sum(x * q for x, q in zip(lengths, p.tolist(), strict=True)))
    for text, probability in TOY_TEXTS.items():
        assert TOY.log_prob(text) == pytest.approx(math.log(probability), abs=1e-12)


def test_toy_grammar_gives_no_probability_to_any_other_text():
    words = [token.strip() for token in TOY.vocabulary[len(SPECIAL_TOKENS) :]]
    for length in range(5):
        assert all(TOY.log_prob(" ".join(text)) == -math.inf for text in itertools.product(words, repeat=length))
    for text, position, word in itertools.product(TOY_TEXTS, range(8), words):
        changed = text.split()
        changed[position : position + 1] = [word]
        expected = TOY_TEXTS.get(" ".join(changed), 0.0)
        assert math.exp(TOY.log_prob(" ".join(changed))) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(index=st.integers(0, len(TOY_TEXTS) - 1), pattern=st.integers(1, 2**10 - 1), length=st.integers(2, 11))
def test_posterior_is_what_enumeration_gives_for_any_mask_and_any_row_length(index, pattern, length):
    width = 11

    def row(text: str) -> list[int]:
        ids = [0, *(TOY.id_of[token] for token in split_text(text))]
        return ids + [EOS_ID] * (width - len(ids))

    every = torch.tensor([row(text) for text in TOY_TEXTS])[:, :length]
    p = torch.tensor(list(TOY_TEXTS.values()), dtype=torch.float64)
    masked = torch.tensor([False] + [bool(pattern >> i & 1) for i in range(width - 1)])[:length]
    canvas = every[index].masked_fill(masked, MASK_ID)[None]
    agrees = (every == canvas)[:, ~masked].all(1)
    inference = Inference(TOY)
    assert inference.log_prob(canvas).item() == pytest.approx(p[agrees].sum().log().item(), abs=1e-12)
    for finished in (False, True):
        possible = agrees & (every[:, -1] == EOS_ID) if finished else agrees
        posterior, impossible = inference.posterior(canvas, finished)
        assert bool(impossible) == (not possible.any())
        for answer, position in zip(posterior, masked.nonzero()[:, 0].tolist(), strict=True):
            expected = torch.zeros(len(TOY.vocabulary), dtype=torch.float64)
            expected.index_add_(0, every[possible, position], p[possible] / p[possible].sum())
            torch.testing.assert_close(answer, expected if possible.any() else inference.unigram, atol=1e-12, rtol=0)


def test_log_prob_of_rows_equals_log_prob_of_texts():
    torch.testing.assert_close(DENOISER.log_prob_ids(block(STORIES[:80])), log_prob(STORIES[:80]), atol=1e-9, rtol=0)


def swap_one(story: str, words: list[str]) -> str:
    """The story with the last occurrence of any of `words` replaced by another of them."""
    *_, last = (match for match in re.finditer(r"[A-Za-z]+", story) if match.group() in words)
    other = next(word for word in words if word != last.group())
    return story[: last.start()] + other + story[last.end() :]


def test_a_story_with_one_fault_is_refused():
    stories = [story for story in STORIES if story.count("friends.")][:40]  # their last sentence names the hero again
    faulty = []
    for story in stories:
        faulty += [
            swap_one(story, [value["name"] for value in VARIABLES["hero"]]),
            swap_one(story, [value["friend"] for value in VARIABLES["friend"]]),
            swap_one(story, [value["pet"] for value in VARIABLES["friend"]]),
            swap_one(story, ["He", "She"]) if re.search(r"\b(He|She)\b", story) else "",
            swap_one(story, ["his", "her", "him"]) if re.search(r"\b(his|her|him)\b", story) else "",
        ]
        faulty += [story + " ", " " + story, story.replace(" ", "  ", 1), story[:-1], story + ".", story.lower()]
        faulty += [story.replace(" were ", " was "), story.replace(" were", ""), f"{story} {story}", story + "\n"]
    things = STORIES[:40]
    faulty += [swap_one(story, [value["object"] for value in VARIABLES["treasure"]]) for story in things]
    faulty += [swap_one(story, [value["colour"] for value in VARIABLES["treasure"]]) for story in things]
    faulty += ["", " ", "<s>", "</s>", "<mask>", "Once upon a time", "café", "7"]
    assert log_prob(stories + things).isfinite().all()
    assert log_prob(faulty).isneginf().all()


def test_dropping_any_word_but_an_optional_one_is_refused():
    story = STORIES[0]
    tokens = split_text(story)
    shorter = ["".join(tokens[:i] + tokens[i + 1 :])[1:] for i in range(len(tokens))]
    finite = log_prob(shorter).isfinite()
    assert finite.sum() <= 2, "only `One windy April morning` may lose its weather"


# --- the exact denoiser ----------------------------------------------------------------------------------------------


def test_denoiser_agrees_with_log_probs_of_every_candidate_word():
    generator = torch.Generator().manual_seed(0)
    for row, story in zip(block(STORIES[:3]), STORIES[:3], strict=True):
        end = len(split_text(story)) + 1
        positions = [1, 2, end - 1, end, *(torch.randperm(end - 3, generator=generator)[:5] + 3).tolist()]
        for position in positions:
            texts = []
            for token in AUTOMATON.vocabulary:
                tokens = split_text(story)
                tokens[position - 1 : position] = [token]
                texts.append("".join(tokens)[1:] if token not in SPECIAL_TOKENS else "")
            candidates = log_prob(texts)
            if position == end:  # `</s>` stands where the story ends
                candidates[EOS_ID] = log_prob([story])[0]
            canvas = row.clone()
            canvas[position] = MASK_ID
            answer = DENOISER(canvas[None]).logits[0, position]
            torch.testing.assert_close(answer.double().exp(), candidates.softmax(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("row_length", [BLOCK_LENGTH, 80, 20])
def test_chain_in_any_order_is_the_exact_log_probability(row_length):
    """T1: one position at a time, over the whole block and its fill, or over a row that cuts the story."""
    rows = block(STORIES[:3], 80)[:, :row_length]
    generator = torch.Generator().manual_seed(row_length)
    expected = log_prob(STORIES[:3]) if row_length >= BLOCK_LENGTH else DENOISER.log_prob_ids(rows)
    for row, truth in zip(rows, expected, strict=True):
        rank = torch.randperm(row_length - 1, generator=generator)
        hidden = rank[None, :] >= torch.arange(row_length - 1)[:, None]  # before step k, ranks k and later are masked
        hidden = torch.cat([torch.zeros(row_length - 1, 1, dtype=torch.bool), hidden], dim=1)
        steps = true_token_log_probs(DENOISER, row.expand(row_length - 1, -1), hidden)
        chain = steps[rank, 1 + torch.arange(row_length - 1)].sum()
        assert chain.item() == pytest.approx(truth.item(), abs=1e-5)


def test_chain_agrees_for_blocks_revealed_together_when_they_are_certain():
    """After the story is visible, all its fill is certain at once."""
    rows = block(STORIES[:8])
    fill = torch.zeros_like(rows, dtype=torch.bool)
    for row, story in enumerate(STORIES[:8]):
        fill[row, len(split_text(story)) + 1 :] = True
    assert torch.equal(true_token_log_probs(DENOISER, rows, fill), torch.zeros(rows.shape, dtype=torch.float64))


def test_one_visible_pronoun_halves_the_names():
    story = next(story for story in STORIES if " her " in story and story.startswith("Once"))
    names = [value["name"] for value in VARIABLES["hero"]]
    hero = {form for value in VARIABLES["hero"] for form in value.values()}
    row = block([story])[0]
    tied = torch.tensor([AUTOMATON.vocabulary[i].strip() in hero for i in row.tolist()])
    name_at = next(i for i, token in enumerate(row.tolist()) if AUTOMATON.vocabulary[token].strip() in names)
    her_at = next(i for i, token in enumerate(row.tolist()) if AUTOMATON.vocabulary[token] == " her")
    for visible, chance in ((None, 1 / 10), (her_at, 1 / 5), (name_at, 1.0)):
        canvas = row.masked_fill(tied, MASK_ID)
        if visible is not None:
            canvas[visible] = row[visible]
        assert DENOISER(canvas[None]).logits[0, name_at, row[name_at]].exp().item() == pytest.approx(chance, abs=1e-6)


def test_logits_are_log_probabilities_and_keep_visible_tokens():
    generator = torch.Generator().manual_seed(1)
    rows = block(STORIES[:32])
    masked = torch.rand(rows.shape, generator=generator) < torch.rand(32, 1, generator=generator)
    logits = DENOISER(rows.masked_fill(masked, MASK_ID)).logits
    assert logits.shape == (*rows.shape, len(AUTOMATON.vocabulary))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(rows.shape), atol=1e-5, rtol=0)
    assert torch.equal(logits.argmax(-1)[~masked], rows[~masked])
    assert logits[:, 1:, [0, PAD_ID, UNK_ID, MASK_ID]][masked[:, 1:]].isneginf().all()


def test_answers_do_not_depend_on_the_batch():
    rows = block(STORIES[:70]).clone()
    rows[:, 5:40] = MASK_ID
    together = DENOISER(rows).logits
    torch.testing.assert_close(DENOISER(rows[66:67]).logits[0], together[66], atol=1e-6, rtol=0)


def test_impossible_context_answers_with_the_unigram_law_and_is_counted():
    denoiser = ExactDenoiser(dtype=torch.float64)
    good, contradictory, broken = block([STORIES[0]] * 3)
    names = TOKENIZER("Lily Tom", add_special_tokens=False)["input_ids"]
    contradictory = torch.tensor([0, names[0], names[1], MASK_ID, MASK_ID]).repeat(16)[:BLOCK_LENGTH]
    broken[3] = EOS_ID  # a word after `</s>`
    rows = torch.stack([good, contradictory, broken])
    rows[:, 10] = MASK_ID
    logits = denoiser(rows).logits
    assert denoiser.impossible_contexts == 2
    frequencies = torch.bincount(
        sample_ids(4000, seed=2)[:, 1:].flatten(), minlength=len(AUTOMATON.vocabulary)
    ).double()
    frequencies[EOS_ID] = 4000  # one end for each story
    unigram = logits[1, 10].exp()
    torch.testing.assert_close(unigram, frequencies / frequencies.sum(), atol=2e-3, rtol=0)
    torch.testing.assert_close(logits[2, 10].exp(), unigram)
    assert not torch.allclose(logits[0, 10].exp(), unigram, atol=1e-2)


def test_finished_rows_end_and_rows_too_short_for_it_are_impossible():
    denoiser = ExactDenoiser(finished=True)
    least = AUTOMATON.length_range()[0]
    rows = torch.full((2, least + 3), MASK_ID)
    assert denoiser(rows).logits[:, -1, EOS_ID].exp() == pytest.approx(1.0)
    assert denoiser.impossible_contexts == 0
    assert denoiser(rows[:, : least + 1]).logits.shape == (2, least + 1, len(AUTOMATON.vocabulary))
    assert denoiser.impossible_contexts == 2
    assert DENOISER(rows[:, : least + 1]).logits[0, -1, EOS_ID] == -math.inf


def test_padding_says_nothing():
    row = block([STORIES[0]], BLOCK_LENGTH + 4)
    row[0, 8:20] = MASK_ID
    padded, attention = row.clone(), torch.ones_like(row)
    padded[0, BLOCK_LENGTH:], attention[0, BLOCK_LENGTH:] = PAD_ID, 0
    answer = DENOISER(padded, attention_mask=attention, token_type_ids=None).logits[:, :BLOCK_LENGTH]
    torch.testing.assert_close(answer, DENOISER(row).logits[:, :BLOCK_LENGTH], atol=1e-6, rtol=0)


def test_rounding_the_module_does_not_round_the_grammar():
    canvas = block([STORIES[0]])
    canvas[0, 1:] = MASK_ID
    assert torch.equal(ExactDenoiser().half().to("cpu")(canvas).logits, DENOISER(canvas).logits)
    assert DENOISER.device == torch.device("cpu")
    assert not DENOISER.state_dict()


@pytest.mark.parametrize(
    "rows", [torch.zeros(4), torch.zeros(1, 0), torch.tensor([[0, 9999]]), torch.tensor([[7, 8]])]
)
def test_bad_rows_are_refused_in_one_sentence(rows):
    with pytest.raises(ValueError, match="^`input_ids` must"):
        DENOISER(rows.long())


# --- likelihood estimators with the oracle in the loop (T2, T3) ------------------------------------------------------


@dataclass
class Draws:
    """Masked rows of some stories: all tensors (stories, draws)."""

    rate: Tensor
    num_masked: Tensor
    nats: Tensor  # sum over masked positions of -log p(token | visible)


NUM_STORIES, NUM_DRAWS, MASKABLE = 40, 12, BLOCK_LENGTH - 1


def draw_masks(exact: bool, stratified: bool, seed: int) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_STORIES, NUM_DRAWS)
    offsets = torch.arange(NUM_DRAWS) / NUM_DRAWS
    u = torch.rand((NUM_STORIES, 1), generator=generator, dtype=torch.float64) + offsets
    u = 1 - (u % 1 if stratified else torch.rand(shape, generator=generator, dtype=torch.float64))  # in (0, 1]
    noise = torch.rand((*shape, MASKABLE), generator=generator, dtype=torch.float64)
    masked = noise < u[..., None]
    if exact:
        masked = noise.argsort(-1).argsort(-1) < (u * MASKABLE).ceil()[..., None]
    masked = torch.cat([torch.zeros(*shape, 1, dtype=torch.bool), masked], dim=-1).flatten(0, 1)
    clean = block(STORIES[:NUM_STORIES]).repeat_interleave(NUM_DRAWS, 0)
    nats = -true_token_log_probs(DENOISER, clean, masked).sum(1)
    return Draws(u, masked.sum(1).view(shape), nats.view(shape))


@pytest.fixture(scope="module")
def exact_stratified() -> Draws:
    return draw_masks(exact=True, stratified=True, seed=1)


@pytest.fixture(scope="module")
def exact_iid() -> Draws:
    return draw_masks(exact=True, stratified=False, seed=2)


@pytest.fixture(scope="module")
def bernoulli_stratified() -> Draws:
    return draw_masks(exact=False, stratified=True, seed=3)


def exact_count_nats(draws: Draws) -> Tensor:
    """Estimator (2), one number per story: mean over draws of L / m times the masked cross-entropy."""
    return (MASKABLE * draws.nats / draws.num_masked).mean(1)


def bernoulli_nats(draws: Draws) -> Tensor:
    """Estimator (1) in its linear form, one number per story: mean over draws of the masked cross-entropy / rate."""
    return (draws.nats / draws.rate).mean(1)


def assert_mean_is_zero(errors: Tensor) -> None:
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(len(errors))


def test_both_estimators_find_the_exact_surprise(exact_stratified, exact_iid, bernoulli_stratified):
    truth = -log_prob(STORIES[:NUM_STORIES])
    assert_mean_is_zero(exact_count_nats(exact_stratified) - truth)
    assert_mean_is_zero(exact_count_nats(exact_iid) - truth)
    assert_mean_is_zero(bernoulli_nats(bernoulli_stratified) - truth)
    assert_mean_is_zero(exact_count_nats(exact_stratified) - bernoulli_nats(bernoulli_stratified))
    assert truth.mean() == pytest.approx(AUTOMATON.entropy(), abs=3 * truth.std().item() / math.sqrt(NUM_STORIES))


def test_stratified_counts_have_the_smaller_error(exact_stratified, exact_iid):
    truth = -log_prob(STORIES[:NUM_STORIES])
    stratified, iid = ((exact_count_nats(draws) - truth).std() for draws in (exact_stratified, exact_iid))
    assert stratified < iid


def test_token_mean_over_the_batch_weights_high_rates(exact_stratified, bernoulli_stratified):
    """T3: forms (A) and (B) agree; (C), one mean over all masked tokens, is the curve weighted by the mask rate."""
    form_a = bernoulli_nats(bernoulli_stratified) / MASKABLE
    form_b = exact_count_nats(exact_stratified) / MASKABLE
    assert_mean_is_zero(form_a - form_b)
    form_c = bernoulli_stratified.nats.sum() / bernoulli_stratified.num_masked.sum()
    curve = exact_stratified.nats / exact_stratified.num_masked  # l(u), one value per draw
    weighted = (exact_stratified.rate * curve).mean() / exact_stratified.rate.mean()
    assert form_c.item() == pytest.approx(weighted.item(), rel=0.05)
    assert form_c > 1.2 * form_b.mean()


def test_loss_per_masked_token_falls_with_the_number_of_visible_tokens(exact_stratified):
    visible = (MASKABLE - exact_stratified.num_masked).flatten()
    loss = (exact_stratified.nats / exact_stratified.num_masked).flatten()
    bins = [loss[(visible >= low) & (visible < high)].mean() for low, high in ((0, 10), (10, 20), (20, 40), (40, 80))]
    assert all(later < earlier for earlier, later in itertools.pairwise(bins))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_tokenizer_gives_one_token_per_word_and_decodes_byte_for_byte():
    for story in STORIES[:200]:
        ids = TOKENIZER(story)["input_ids"]
        assert [TOKENIZER.convert_ids_to_tokens(i).replace("Ġ", " ") for i in ids[1:-1]] == split_text(story)
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == story
    assert UNK_ID not in TOKENIZER(" ".join(STORIES))["input_ids"]


def test_tokenizer_has_the_special_tokens_of_roberta():
    ids = [TOKENIZER.bos_token_id, TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id]
    assert [*ids, TOKENIZER.mask_token_id] == [0, 1, 2, 3, 4]
    assert (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.model_max_length) == (0, 2, 128)
    assert len(TOKENIZER) == len(AUTOMATON.vocabulary)
    masked = TOKENIZER("Once upon a <mask>, zebra")["input_ids"]
    once, upon, a = TOKENIZER("Once upon a", add_special_tokens=False)["input_ids"]
    assert masked[:5] == [0, once, upon, a, MASK_ID]
    assert masked[-2:] == [UNK_ID, EOS_ID]


def test_tokenizer_survives_saving(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(STORIES[:20])["input_ids"] == TOKENIZER(STORIES[:20])["input_ids"]
    assert loaded.decode(loaded(STORIES[0])["input_ids"], skip_special_tokens=True) == STORIES[0]
    assert loaded.get_vocab() == TOKENIZER.get_vocab() == story_language.tokenizer().get_vocab()
    assert loaded.model_max_length == 128
    assert loaded("a <mask> b")["input_ids"] == TOKENIZER("a <mask> b")["input_ids"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "story, slots, variables, message",
    [
        ("{name} {colour} {he} {fell}", {}, TOY_VARIABLES, "uses the slot 'fell'"),
        ("{name} {colour} {he}", {"fell": "fell"}, TOY_VARIABLES, "never uses"),
        ("{name} {colour} {he} {fell}", {"fell": "fell fell"}, TOY_VARIABLES, "distinct words"),
        ("{name} {colour} {he} {fell}", {"fell": "fell she"}, TOY_VARIABLES, "belong to `variables`"),
        ("{name} {colour} {he} red", {}, TOY_VARIABLES, "belong to `variables`"),
        (["{name} {colour}", "{name} {he}"], {}, TOY_VARIABLES, "never tells which 'colour'"),
        (["{name} {he} {colour}", "{name} she {colour}"], {}, TOY_VARIABLES, "belong to `variables`"),
        (["{x} sat", "{x} sat"], {}, {"x": [{"x": "a"}, {"x": "b"}]}, "in two ways"),
        ("{x} {y}", {}, {"x": [{"x": "a", "y": "b"}, {"x": "b", "y": "a"}]}, "two meanings"),
    ],
)
def test_grammar_that_would_not_be_exact_is_refused(story, slots, variables, message):
    with pytest.raises(ValueError, match=message):
        Automaton(story, slots, variables)


def test_shipped_grammar_is_accepted_unchanged():
    assert Automaton(STORY, SLOTS, VARIABLES).vocabulary == AUTOMATON.vocabulary


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="`n` must be 0 or more, got -1"):
        sample(-1, seed=0)
    with pytest.raises(ValueError, match="`texts` must be a list"):
        log_prob(STORIES[0])
    assert log_prob([]).shape == (0,)


def test_command_prints_stories_with_their_log_probability(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["story_language", "--num", "2", "--seed", "11"])
    main()
    printed = capsys.readouterr().out
    assert " ".join(STORIES[1].split()) in " ".join(printed.split())
    assert f"{log_prob(STORIES[:1]).item():.2f} nats" in printed
