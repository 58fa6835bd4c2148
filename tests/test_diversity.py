"""Figures of variety against values worked out by hand and against their definitions."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm.evaluation.diversity import (
    distinct_ngrams,
    diversity_figures,
    ngrams,
    repeated_ngrams,
    self_bleu,
    standard_error,
    word_entropy,
)

SETS = st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=6)


@pytest.mark.parametrize(
    "text, nats",
    [
        ("a", 0.0),
        ("a a a a", 0.0),
        ("a b c d", math.log(4)),
        ("a a b b", math.log(2)),
        ("a a a b", 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ("é É", math.log(2)),
    ],
)
def test_entropy_of_words(text, nats):
    assert word_entropy(text.split()) == pytest.approx(nats)


def test_words_may_be_token_ids():
    assert word_entropy([3, 3, 5, 5]) == pytest.approx(math.log(2))
    assert distinct_ngrams([[3, 3, 5, 5], [3, 3]], 2) == 3 / 4


@pytest.mark.parametrize("n, share", [(1, 3 / 7), (2, 4 / 5), (3, 3 / 3), (4, 1 / 1), (5, None)])
def test_distinct_ngrams_are_counted_over_all_texts(n, share):
    """Words: a b a c, c a b. Of the 2-grams ab ba ac ca ab, ab comes twice."""
    assert distinct_ngrams([list("abac"), list("cab")], n) == share


def test_repeated_ngrams_are_those_that_came_before_in_the_same_text():
    assert repeated_ngrams(list("abcdef")) == 0
    assert repeated_ngrams(list("aaaaaaa")) == 3 / 4  # four 4-grams, all the same
    assert repeated_ngrams(list("abcdabcd")) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_ngrams(list("abc")) is None


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_impossible_lengths_of_ngrams_are_refused(n):
    with pytest.raises(ValueError, match="`n` must be a whole number of at least 1"):
        ngrams(["a"], n)


def test_self_bleu_by_hand():
    """Each of the two shares 3/4 words, 2/3 2-grams, 1/2 3-grams and no 4-gram, for which 0.1 stands."""
    assert self_bleu([list("abcd"), list("abce")]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)


def test_self_bleu_clips_counts_and_punishes_brevity():
    """`a a a` finds two of its three words in `a a b b`; that one finds two of four in it. BLEU-1, by hand.

    The first is shorter than its only reference: exp(1 - 4/3).
    """
    assert self_bleu([list("aaa"), list("aabb")], max_n=1) == pytest.approx((2 / 3 * math.exp(-1 / 3) + 2 / 4) / 2)


@pytest.mark.parametrize("text", ["a", "a b", "a b c d e", "太 晚 了", "😀 😀"])
@pytest.mark.parametrize("copies", [2, 3])
def test_self_bleu_of_equal_texts_is_one(text, copies):
    assert self_bleu([text.split()] * copies) == 1


def test_self_bleu_of_texts_without_a_word_in_common_is_zero():
    assert self_bleu([list("abc"), list("def")]) == 0


def bleu(words, references, max_n=4):
    """BLEU by its definition, as described in `self_bleu`."""
    log_precision, orders = 0.0, min(max_n, len(words))
    for n in range(1, orders + 1):
        found = Counter(ngrams(words, n))
        matches = sum(
            min(count, max(Counter(ngrams(reference, n))[gram] for reference in references))
            for gram, count in found.items()
        )
        if n == 1 and not matches:
            return 0.0
        log_precision += math.log((matches or 0.1) / found.total()) / orders
    closest = min(map(len, references), key=lambda length: (abs(length - len(words)), length))
    return math.exp(log_precision + min(0.0, 1 - closest / len(words)))


@given(SETS)
def test_self_bleu_is_the_mean_bleu_of_each_text_against_all_others(texts):
    filled = [words for words in texts if words]
    if len(filled) < 2:
        assert self_bleu(texts) is None
        return
    scores = [bleu(words, filled[:place] + filled[place + 1 :]) for place, words in enumerate(filled)]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores))


@given(SETS)
def test_figures_are_numbers_in_their_range_or_none(texts):
    figures = diversity_figures(texts)
    for name in ("distinct_1", "distinct_2", "distinct_3", "rep_4", "self_bleu_4"):
        assert figures[name] is None or -1e-12 <= figures[name] <= 1 + 1e-12
    longest = max(map(len, texts), default=0)
    assert (figures["word_entropy_nats"] is None) == (longest == 0)
    assert longest == 0 or -1e-12 <= figures["word_entropy_nats"] <= math.log(longest) + 1e-12


def test_what_cannot_be_measured_is_none():
    single = diversity_figures([["a"]])
    assert (single["self_bleu_4"], single["rep_4"], single["distinct_2"]) == (None, None, None)
    assert (single["word_entropy_nats"], single["word_entropy_standard_error"], single["distinct_1"]) == (0, None, 1)
    empty = diversity_figures([[], []])
    assert (empty["num_texts"], empty["num_empty"], empty["num_duplicates"], empty["words_per_text"]) == (2, 2, 0, 0)
    assert {empty[name] for name in ("word_entropy_nats", "distinct_1", "rep_4", "self_bleu_4")} == {None}
    assert diversity_figures([])["words_per_text"] is None


def test_duplicates_are_texts_with_the_words_of_an_earlier_one():
    assert diversity_figures([list("ab"), list("ba"), list("ab"), list("ab"), []])["num_duplicates"] == 2


def test_standard_error_of_a_mean():
    assert standard_error([1.0, 3.0, 5.0, 7.0]) == pytest.approx(math.sqrt((9 + 1 + 1 + 9) / 3 / 4))
    assert standard_error([1.0]) is None
