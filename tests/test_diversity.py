"""Figures of variety, counted by hand."""

import math

import pytest

from diffusion_mlm.evaluation.diversity import distinct_ngrams, word_entropy


@pytest.mark.parametrize(
    "texts, n, share",
    [
        (["a b c d"], 3, 1.0),
        (["a a a a a"], 3, 1 / 3),
        (["a b c", "a b c", "c b a"], 3, 2 / 3),
        (["a b", "b a"], 3, 0.0),
        ([], 3, 0.0),
        (["one two", "two one"], 1, 0.5),
    ],
)
def test_distinct_ngrams_do_not_reach_over_the_end_of_a_text(texts, n, share):
    assert distinct_ngrams(texts, n) == pytest.approx(share)


def test_entropy_of_words_is_that_of_their_frequencies():
    assert word_entropy([" ".join("abcdefgh"), " ".join("ABCDEFGH")]) == pytest.approx(3)
    assert word_entropy(["x x x y"]) == pytest.approx(-0.75 * math.log2(0.75) + 0.5)
    assert str(word_entropy(["x x", "x"])) == str(word_entropy([])) == "0.0"
