"""Editing: the share that was asked for is written anew, and everything else stays, character by character."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_infilling import EXACT, FAITHFUL, STORIES, TOKENIZER, random_roberta
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import edit, story_language
from diffusion_mlm.tokenization import train_bpe


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe([*STORIES, "naïve 😀 \t text"], vocab_size=400, model_max_length=64)


@pytest.mark.parametrize("strength", (0.05, 0.4))
def test_edited_stories_are_stories(strength):
    edited = edit(EXACT, TOKENIZER, STORIES, strength=strength, seed=0, **FAITHFUL)
    assert torch.isfinite(story_language.log_prob([text.text for text in edited])).all()
    for text, story in zip(edited, STORIES, strict=True):
        tokens = len(story_language.automaton.split_text(story))
        assert text.original == story
        assert text.num_masked == -(-round(strength * tokens * 1e6) // 10**6) == text.num_forwards


def test_more_strength_changes_more():
    changed = [
        sum(text.text != text.original for text in edit(EXACT, TOKENIZER, STORIES, strength=s, seed=1, **FAITHFUL))
        for s in (0.02, 0.9)
    ]
    assert changed[0] < changed[1] == len(STORIES)


def test_protected_pieces_stay_wherever_they_stand():
    story = STORIES[0]
    name = next(word for word in story.split() if word.istitle() and story.count(word) > 1)
    for text in edit(EXACT, TOKENIZER, story, strength=1.0, protect=[name], num_return_sequences=5, seed=2):
        assert text.text.count(name) >= story.count(name)
        assert text.num_masked == len(story_language.automaton.split_text(story)) - story.count(name)


def test_a_sample_depends_on_its_seed_alone():
    together = edit(EXACT, TOKENIZER, STORIES[:2], seed=5, num_return_sequences=2)
    assert edit(EXACT, TOKENIZER, STORIES[1], seed=6, batch_size=1)[0].text == together[3].text


@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(st.text("ab ï😀\n\t.", min_size=1, max_size=20).filter(str.strip), st.integers(0, 99))
def test_characters_of_tokens_that_were_not_masked_stay(bpe, shared_roberta, text, seed):
    model = random_roberta(bpe, shared_roberta)
    (whole,) = edit(model, bpe, text, strength=1.0, seed=seed)
    assert whole.num_masked == len(bpe(text, add_special_tokens=False)["input_ids"])
    (edited,) = edit(model, bpe, "Keep this: " + text, strength=1.0, protect=["Keep this:"], seed=seed)
    assert edited.text.startswith("Keep this:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.0}, "`strength`"),
        ({"strength": 1.5}, "`strength`"),
        ({"strength": True}, "`strength`"),
        ({"texts": ""}, "`texts`"),
        ({"texts": "  "}, "`texts`"),
        ({"texts": [1]}, "`texts`"),
        ({"texts": "One day. " * 40}, "Edit it in parts"),
        ({"protect": ["dragon"]}, "`protect` names 'dragon'"),
        ({"protect": "One day."}, "nothing is left to edit"),
        ({"steps": 0}, "`steps`"),
    ],
)
def test_impossible_edits_are_refused(tiny_roberta: RobertaForMaskedLM, story_tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        edit(tiny_roberta, story_tokenizer, **{"texts": "One day.", **arguments})
