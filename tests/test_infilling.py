"""Infilling: blanks are filled with text that fits, and what stands around them comes back byte for byte."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import infill, story_language
from diffusion_mlm.infilling import Blank, encode_continuation, parse_template
from diffusion_mlm.modeling import build_model
from diffusion_mlm.tokenization import encode_text, train_bpe

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(12, seed=31)
FAITHFUL = {"order": "random", "top_p": 1.0}


class Exact(story_language.ExactDenoiser):
    """The exact denoiser with the facts that a trained story model has in its configuration."""

    def __init__(self) -> None:
        super().__init__()
        facts = {"generates_end": True, "row_length": story_language.BLOCK_LENGTH}
        self.config = SimpleNamespace(vocab_size=self.inference.vocab_size, diffusion=facts)


EXACT = Exact()


def with_blank(story: str, first: int, last: int, blank: str | None = None) -> str:
    """The story with its tokens `first` to `last` (last not included) replaced by one blank."""
    tokens = story_language.automaton.split_text(story)
    return "".join([*tokens[:first], " ", blank or f"<mask:{last - first}>", *tokens[last:]])[1:]


# Templates


def test_a_template_is_literal_pieces_and_blanks():
    assert parse_template("<mask>") == [Blank(1, 1)]
    assert parse_template("a<mask:3><mask:2-4>") == ["a", Blank(3, 3), Blank(2, 4)]
    assert parse_template("The [MASK] sat.", "[MASK]") == ["The ", Blank(1, 1), " sat."]
    assert parse_template("<mask:x> <mask>") == ["<mask:x> ", Blank(1, 1)]


@pytest.mark.parametrize("template", ["", "no blank", "<mask:0>", "<mask:3-2>", "<MASK>"])
def test_a_template_without_a_possible_blank_is_refused(template):
    with pytest.raises(ValueError, match="`templates`"):
        parse_template(template)


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.text("ab <>mask:1.", max_size=8) | st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1))
def test_literal_pieces_come_back_whatever_they_hold(parts):
    texts = [part if isinstance(part, str) else f"<mask:{part[0]}-{part[0] + part[1]}>" for part in parts]
    template = "".join(texts)
    if "<mask" not in template:
        return
    try:
        pieces = parse_template(template)
    except ValueError:
        return
    again = "".join(p if isinstance(p, str) else f"<mask:{p.least}-{p.most}>" for p in pieces)
    assert parse_template(again) == pieces


# With the exact denoiser


@pytest.mark.parametrize("blanks", [(5, 9), (0, 6), (20, 45), (1, 60)])
def test_the_middle_of_a_true_story_is_filled_so_that_the_grammar_accepts_it(blanks):
    templates = [with_blank(story, *blanks) for story in STORIES]
    filled = infill(EXACT, TOKENIZER, templates, seed=0, **FAITHFUL)
    assert torch.isfinite(story_language.log_prob([text.text for text in filled])).all()
    for text, template in zip(filled, templates, strict=True):
        before, after = template.split(f"<mask:{blanks[1] - blanks[0]}>")
        assert text.text.startswith(before) and text.text.endswith(after)
        assert text.lengths == [blanks[1] - blanks[0]] and text.num_forwards == blanks[1] - blanks[0]


def test_several_blanks_are_filled_together():
    template = with_blank(with_blank(STORIES[0], 30, 33), 4, 8)
    texts = infill(EXACT, TOKENIZER, template, seed=3, num_return_sequences=20, **FAITHFUL)
    assert all(len(text.fills) == 2 for text in texts)
    assert torch.isfinite(story_language.log_prob([text.text for text in texts])).all()
    assert len({text.text for text in texts}) > 5


def test_a_blank_of_unknown_length_gets_one_that_the_grammar_accepts():
    """Other lengths leave no story: the likelihood bound tells."""
    tokens = story_language.automaton.split_text(STORIES[2])
    start = next(i for i, token in enumerate(tokens) if token.endswith(".")) + 1
    end = next(i for i, token in enumerate(tokens[start:], start) if token.endswith(".")) + 1
    template = with_blank(STORIES[2], start, end, blank=f"<mask:{end - start - 2}-{end - start + 2}>")
    (text,) = infill(EXACT, TOKENIZER, template, seed=1, draws=4, **FAITHFUL)
    assert torch.isfinite(story_language.log_prob([text.text])).all(), text.text
    assert math.isfinite(text.nelbo_nats_per_token)
    assert text.num_forwards > 5 * (end - start - 2), "all lengths were paid for"


def test_a_sample_depends_on_its_seed_alone():
    template = with_blank(STORIES[1], 10, 20)
    together = infill(EXACT, TOKENIZER, [template, with_blank(STORIES[3], 3, 9)], seed=5, num_return_sequences=3)
    alone = infill(EXACT, TOKENIZER, template, seed=7, batch_size=1)
    assert together[2].text == alone[0].text and together[2].seed == 7


# With other tokenizers


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe(STORIES * 4 + ["naïve 😀 \t text"], vocab_size=400, model_max_length=64)


def random_roberta(tokenizer: PreTrainedTokenizerFast, template: RobertaForMaskedLM) -> RobertaForMaskedLM:
    settings = {**template.config.to_dict(), "vocab_size": len(tokenizer), "max_position_embeddings": 66}
    return build_model(template.config.__class__.from_dict(settings), seed=1).eval()


@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(
    st.lists(
        st.sampled_from(["The ", " sat", ".", "naïve 😀", "\n\n", " ", "", "a", "</s>", "7,"]), min_size=2, max_size=4
    )
)
def test_what_stands_around_blanks_comes_back_byte_for_byte(bpe, shared_roberta, pieces):
    model = random_roberta(bpe, shared_roberta)
    (text,) = infill(model, bpe, "<mask:2>".join(pieces), seed=0)
    rest = text.text
    for piece, fill in zip(pieces, [*text.fills, ""], strict=True):
        assert rest.startswith(piece + fill)
        rest = rest[len(piece + fill) :]
    assert rest == ""


@pytest.mark.parametrize("text", [".", " cat", "ish", "!?", ", and", "7th", "ünd", "\n"])
def test_a_continuation_gets_no_space_of_its_own(bpe, text):
    for tokenizer in (bpe, TOKENIZER):
        ids = encode_continuation(tokenizer, text)
        if tokenizer.unk_token_id in ids:
            continue
        head = encode_text(tokenizer, "The")
        assert tokenizer.decode(head + ids) == "The" + text


# What is refused


def test_a_text_longer_than_the_context_is_refused(tiny_roberta: RobertaForMaskedLM, story_tokenizer):
    with pytest.raises(ValueError, match="this model reads"):
        infill(tiny_roberta, story_tokenizer, "Once <mask:60>.")


def test_too_many_lengths_to_try_are_refused(tiny_roberta: RobertaForMaskedLM, story_tokenizer):
    with pytest.raises(ValueError, match="combinations of lengths"):
        infill(tiny_roberta, story_tokenizer, "<mask:1-9> a <mask:1-9>")


def test_the_model_is_left_in_the_mode_it_was_in(tiny_roberta: RobertaForMaskedLM, story_tokenizer):
    tiny_roberta.train()
    infill(tiny_roberta, story_tokenizer, "One <mask>", seed=0)
    assert tiny_roberta.training
