"""Real texts that are cut to the lengths of samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm.evaluation.matched_texts import match_lengths


def test_texts_are_taken_in_order_each_for_the_longest_length_it_has():
    matched = match_lengths(["a b c d e", "f g", "h i j", "k"], [2, 4, 1])
    assert matched.texts == ["f g", "a b c d", "h"]
    assert matched.is_whole == [True, False, False]
    assert matched.rest == ["k"]


def test_lengths_that_no_text_has_get_the_longest_that_are_left():
    matched = match_lengths(["a", "b c", "d e f"], [9, 8, 3])
    assert matched.texts == ["b c", "a", "d e f"]  # 3 is met; of the rest, the longer one goes to 9
    assert matched.is_whole == [True, True, True]


def test_spaces_inside_a_text_stay():
    assert match_lengths(["a  b\nc d"], [3]).texts == ["a  b\nc"]


def test_length_zero_is_nothing():
    assert match_lengths(["a b"], [0]).texts == [""]


def test_fewer_texts_than_lengths_are_refused():
    with pytest.raises(ValueError, match="pass at least 2"):
        match_lengths(["a"], [1, 1])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), st.lists(st.integers(0, 9), max_size=3))
def test_as_many_lengths_as_possible_are_met(pairs, more):
    lengths = [length for length, _ in pairs]
    sizes = [size for _, size in pairs] + more
    texts = [" ".join(f"{number}:{word}" for word in range(size)) for number, size in enumerate(sizes)]
    matched = match_lengths(texts, lengths)
    met = sum(len(text.split()) == length for text, length in zip(matched.texts, lengths, strict=True))
    possible, left = 0, sorted(sizes)
    for length in sorted(lengths, reverse=True):  # the longest text that is left goes to the longest length it has
        if left and left[-1] >= length:
            left.pop()
            possible += 1
    assert met == possible
    assert len(matched.texts) + len(matched.rest) == len(texts)
    used = [text.split(":")[0] for text in matched.texts + matched.rest if text]
    assert len(used) == len(set(used)), "A text was used twice."
