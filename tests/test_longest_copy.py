"""The longest runs that texts share with the training text, against a search through all of them."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm.evaluation import longest_copy
from diffusion_mlm.evaluation.longest_copy import copy_figures, longest_copies


def by_brute_force(text: str, training_texts: list[str]) -> int:
    runs = (text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1))
    return max((len(run) for run in runs if any(run in training for training in training_texts)), default=0)


FEW_CHARACTERS = st.text(alphabet="abç😀", max_size=24)


@given(st.lists(FEW_CHARACTERS, max_size=4), st.lists(FEW_CHARACTERS, max_size=4))
def test_the_longest_copy_is_that_of_a_search_through_all_runs(texts, training_texts):
    assert longest_copies(texts, training_texts) == [by_brute_force(text, training_texts) for text in texts]


def test_copies_that_cross_the_pieces_of_the_training_text_are_found(monkeypatch):
    monkeypatch.setattr(longest_copy, "_PIECE", 8)
    draw = random.Random(0)
    for _ in range(100):
        training_texts = ["".join(draw.choices("abc", k=draw.randrange(40))) for _ in range(3)]
        long = "".join(draw.choices("abc", k=40))
        start = draw.randrange(30)
        texts = [long[start : start + 9] + "x", *("".join(draw.choices("abc", k=12)) for _ in range(2))]
        training_texts.append(long)
        assert longest_copies(texts, training_texts) == [by_brute_force(text, training_texts) for text in texts]


@pytest.mark.parametrize(
    "text, training_texts, length",
    [
        ("", ["abc"], 0),
        ("abc", [], 0),
        ("abc", [""], 0),
        ("ABC", ["abc"], 0),
        ("xabcx", ["abc"], 3),
        ("abcd", ["ab", "cd"], 2),  # no copy goes from one training text to the next
        ("nåïve 太晚", ["a naive, nåïve 太晚 b"], 8),
        ("\ud800ab", ["\ud800a"], 2),  # half a character is one here
    ],
)
def test_lengths_are_in_characters_of_one_training_text(text, training_texts, length):
    assert longest_copies([text], training_texts) == [length]


def test_training_texts_may_be_read_once():
    assert longest_copies(iter(["abc"]), (text for text in ["xab", "bcx"])) == [2]


def test_texts_with_the_same_hash_are_told_apart():
    """Two Thue-Morse words of 1024 characters, the one with a and b exchanged: equal modulo 2**64 for every base."""
    word = "a"
    while len(word) < 1024:
        word += word.translate(str.maketrans("ab", "ba"))
    other = word.translate(str.maketrans("ab", "ba"))
    hashes = [longest_copy._Windows(longest_copy._codes(text)).all_hashes(1024) for text in (word, other)]
    assert np.array_equal(*hashes)
    (length,) = longest_copies([other], [word])
    assert any(other[start : start + length] in word for start in range(1025 - length))
    assert not any(other[start : start + length + 1] in word for start in range(1024 - length))


def test_a_window_is_looked_for_at_all_places_with_its_hash(monkeypatch):
    """With base 1 the hash is the sum of the characters: "ad" and "bc" have the same one."""
    monkeypatch.setattr(longest_copy, "_BASE", 1)
    monkeypatch.setattr(longest_copy, "_INVERSE", 1)
    for training in ("ad bc cb da", "da bc ad cb", "cb da ad bc"):
        assert longest_copies(["xbcx", "xadx", "xacx"], [training]) == [2, 2, 1]


def test_a_text_copies_from_fifty_characters_on():
    assert copy_figures([49, 50, 51, 0]) == {"longest_copy_characters": 51, "copy_share": 0.5}
    assert copy_figures([]) == {"longest_copy_characters": None, "copy_share": None}


def test_one_string_is_no_list_of_texts():
    with pytest.raises(ValueError, match="`training_texts` must be several texts"):
        longest_copies(["abc"], "abc")
    with pytest.raises(ValueError, match="`texts` must hold strings; number 1"):
        longest_copies(["abc", 3], ["abc"])
