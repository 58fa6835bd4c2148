"""Words of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm.evaluation.words import first_words, require_texts, split_words


@given(st.text(alphabet="aé太 \t\n\x1c\xa0\u200b\u3000"))
def test_words_are_what_stands_between_spaces(text):
    assert split_words(text) == text.split()


def test_a_word_may_be_a_character():
    assert split_words("太晚 了", r"\S") == ["太", "晚", "了"]


@given(st.text(alphabet="ab \n"), st.integers(0, 5))
def test_the_first_words_of_a_text_are_a_beginning_of_it(text, count):
    cut = first_words(text, count)
    assert text.startswith(cut)
    assert split_words(cut) == split_words(text)[:count]


@pytest.mark.parametrize("texts, complaint", [("abc", "wrap it in a list"), (["a", None], "number 1 .* is None")])
def test_only_strings_are_texts(texts, complaint):
    with pytest.raises(ValueError, match=f"`predictions` must .*{complaint}"):
        list(require_texts(texts, "predictions"))
