"""Rows to score: every token is new in exactly one of them, and what is left out is counted."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from diffusion_mlm import story_language
from diffusion_mlm.evaluation.row_predictor import PADDING
from diffusion_mlm.evaluation.text_rows import (
    ScoredRow,
    before_masks,
    make_rows,
    one_per_row,
    packed,
    row_batches,
    windows,
)
from diffusion_mlm.packing import tokenize_and_pack
from diffusion_mlm.tokenization import count_unknown, encode_text, train_bpe, train_characters

STORIES = story_language.sample(12, seed=4)
WORDS = story_language.tokenizer()
CHARACTERS = train_characters(["abcdefgh é"])
BPE = train_bpe(["a few words of a text, été 🙂"] * 3, vocab_size=300)
START, END = 0, 2


def new_tokens(rows):
    """The tokens of each unit that a row scores first, in order, without special tokens."""
    found = {}
    for row in rows.rows:
        found.setdefault(row.unit, []).extend(token for token in row.ids[row.first :] if token != END)
    return found


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_windows_make_every_token_new_exactly_once(length, given_tokens, capacity):
    given_tokens = min(given_tokens, length)
    found = windows(length, given_tokens, capacity)
    new = [token for _, first, stop in found for token in range(first, stop)]
    assert new == list(range(given_tokens, length))
    assert all(0 <= start <= first < stop and stop - start <= capacity for start, first, stop in found)


@given(st.integers(8, 60), st.integers(4, 20))
def test_windows_behind_the_first_are_full_and_half_of_what_they_hold_is_given(length, capacity):
    _, *others = windows(length, 0, capacity)
    for start, first, stop in others:
        assert stop - start == capacity
        assert first - start >= capacity // 2


@pytest.mark.parametrize("max_length", [40, 70, 80])
def test_rows_are_those_of_training_if_the_texts_fit(max_length):
    """One text a row, its end learned and filled up."""
    texts = [text for text in STORIES if len(encode_text(WORDS, text)) <= max_length - 2]
    texts += [" ".join(story.split()[:20]) for story in STORIES]
    trained = tokenize_and_pack(Dataset.from_dict({"text": texts}), WORDS, max_length, "one_per_row")
    assert [row.ids for row in one_per_row(texts, WORDS, max_length, True).rows] == trained["input_ids"]


def test_packed_rows_are_those_of_training_with_the_last_block():
    for separate in (True, False):
        trained = tokenize_and_pack(
            Dataset.from_dict({"text": STORIES}), WORDS, 30, "packed", separate_texts=separate, keep_last=True
        )
        rows = packed(STORIES, WORDS, 30, separate)
        assert [row.ids for row in rows.rows] == trained["input_ids"]
        assert rows.num_separators == (len(STORIES) - 1 if separate else 0)


@pytest.mark.parametrize("scores_end", [True, False])
@pytest.mark.parametrize("max_length", [4, 20, 21, 80])
def test_no_token_of_a_long_text_is_lost_or_counted_twice(scores_end, max_length):
    rows = one_per_row(STORIES, WORDS, max_length, scores_end)
    assert new_tokens(rows) == {unit: encode_text(WORDS, text) for unit, text in enumerate(STORIES)}
    assert all(len(row.ids) <= max_length and row.ids[0] == START for row in rows.rows)
    assert rows.num_split == (0 if max_length == 80 else len(STORIES))
    assert rows.num_units == rows.num_texts == len(STORIES)
    assert rows.num_bytes == sum(len(text.encode()) for text in STORIES)


def test_the_end_of_a_text_is_scored_once_and_only_where_the_text_ends():
    rows = one_per_row(STORIES[:1], WORDS, 20, scores_end=True).rows
    ends = [sum(token == END for token in row.ids[row.first :]) for row in rows]
    assert ends == [0] * (len(rows) - 1) + [1]
    assert all(END not in row.ids for row in rows[:-1])  # a row must not pretend that the text is over


def test_without_ends_every_row_is_closed_by_one_that_is_given():
    rows = one_per_row(STORIES[:2], WORDS, 20, scores_end=False).rows
    assert all(row.ids[-1] == END and row.ids.count(END) == 1 for row in rows)


@pytest.mark.parametrize("scores_end", [True, False])
@pytest.mark.parametrize("max_length", [20, 80])
def test_the_last_row_of_a_beginning_is_filled_with_masks(scores_end, max_length):
    rows = one_per_row(STORIES[:2], WORDS, max_length, scores_end, open_with=4)
    assert new_tokens(rows)[1][: len(encode_text(WORDS, STORIES[1]))] == encode_text(WORDS, STORIES[1])
    assert all(len(row.ids) == max_length for row in rows.rows)
    assert all(row.ids.count(END) == (0 if scores_end else 1) for row in rows.rows)
    masks = [row.ids.count(4) for row in rows.rows if row.unit == 1]
    assert masks[:-1] == [0] * (len(masks) - 1) and (masks[-1] > 0) == (max_length == 80)


@pytest.mark.parametrize("max_length", [12, 80])
def test_a_prefix_is_given_in_every_window(max_length):
    words = STORIES[0].split()
    prefix, text = " ".join(words[:15]), " " + " ".join(words[15:])
    rows = one_per_row([text], WORDS, max_length, True, prefix=prefix)
    ids, given_tokens = encode_text(WORDS, STORIES[0]), len(encode_text(WORDS, prefix))
    assert new_tokens(rows)[0] == ids[given_tokens:]
    assert rows.num_bytes == len(text)
    first = rows.rows[0]
    assert first.first > 1
    assert first.ids[1 : first.first] == ids[given_tokens - first.first + 1 : given_tokens]


MASK = WORDS.mask_token_id


@pytest.mark.parametrize("scores_end, tail", [(False, [MASK] * 3 + [END]), (True, [MASK] * 3)])
def test_masks_stand_behind_a_text_whose_end_is_open(scores_end, tail):
    before, both = encode_text(WORDS, "One day,"), encode_text(WORDS, "One day, Mia lived")
    rows = before_masks(" Mia lived", WORDS, 20, scores_end, "One day,", mask_id=MASK, num_masks=3)
    assert rows.rows == [ScoredRow([START, *both, *tail], 1 + len(before), 0)]
    (filled,) = before_masks(" Mia lived", WORDS, 20, scores_end, "One day,", mask_id=MASK).rows
    assert filled.ids == [START, *both, *[MASK] * (20 - 1 - len(both) - (not scores_end)), *tail[3:]]


def test_a_prefix_that_leaves_no_room_is_cut_from_the_left_and_counted():
    prefix, text = STORIES[0], " Mia lived"
    both = encode_text(WORDS, prefix + text)
    rows = before_masks(text, WORDS, 22, False, prefix, mask_id=MASK, num_masks=9)
    assert rows.num_cut == 1 and rows.num_split == 0
    # A quarter of the 20 tokens of a row are masks.
    assert rows.rows == [ScoredRow([START, *both[-15:], *[MASK] * 5, END], 14, 0)]
    assert before_masks(text, WORDS, 128, False, prefix, mask_id=MASK, num_masks=9).num_cut == 0
    assert before_masks(prefix, WORDS, 22, False, mask_id=MASK).num_cut == 0
    full = before_masks(text, WORDS, len(both) + 1, True, prefix, mask_id=MASK)
    assert full.num_cut == 0 and full.rows[0].ids == [START, *both]
    assert before_masks(text, WORDS, len(both), True, prefix, mask_id=MASK).rows[0].ids[-16:] == [MASK] * 16


@pytest.mark.parametrize("max_length", [3, 10, 32])
def test_no_token_of_a_long_text_before_masks_is_lost_or_counted_twice(max_length):
    rows = before_masks(STORIES[0], WORDS, max_length, False, mask_id=MASK, num_masks=4)
    found = [token for token in new_tokens(rows)[0] if token != MASK]
    assert found == encode_text(WORDS, STORIES[0])
    assert rows.num_split == 1 and all(len(row.ids) <= max_length for row in rows.rows)


def test_a_token_of_prefix_and_text_is_scored():
    prefix, text = "a few wor", "ds of a text"
    rows = one_per_row([text], BPE, 40, False, prefix=prefix)
    (row,) = rows.rows
    before = BPE.decode(row.ids[1 : row.first])
    assert prefix.startswith(before)
    assert before + BPE.decode(row.ids[row.first : -1]) == prefix + text


def test_bytes_are_those_of_the_raw_text():
    for text in ("été 🙂\nwords", " two  spaces "):
        rows = one_per_row([text], BPE, 40, True)
        assert (rows.num_bytes, rows.num_altered, rows.num_unknown) == (len(text.encode()), 0, 0)


def test_unknown_words_are_counted_and_their_bytes_taken_off():
    rows = one_per_row(["abé", "ax🙂b", "zz"], CHARACTERS, 40, True)
    assert rows.num_unknown == 4  # x, 🙂, z and z
    assert rows.num_unknown_bytes == 1 + 4 + 2
    assert rows.num_bytes == 4 + 2 + 0
    assert rows.num_altered == 2


def test_unknown_bytes_of_a_text_of_many_pieces_are_all_found():
    text = "abc é" * 30_000 + "x"
    assert count_unknown(CHARACTERS, text, encode_text(CHARACTERS, text)) == (1, 1)
    assert count_unknown(CHARACTERS, "<mask>", encode_text(CHARACTERS, "<mask>")) == (5, 5)  # "a" is known


def test_a_text_without_tokens_is_counted_and_its_bytes_are_not():
    for rows in (one_per_row(["", "abc"], CHARACTERS, 10, False), packed(["", "abc"], CHARACTERS, 10)):
        assert (rows.num_without_tokens, rows.num_bytes, len(rows.rows)) == (1, 3, 1)


def test_batches_hold_every_row_once_and_mask_no_special_token():
    rows = one_per_row([*STORIES, "One unknownword day"], WORDS, 33, True)
    special = torch.tensor([0, 1, 3, 4])  # all but </s>
    seen = 0
    for ids, maskable, units in row_batches(rows.rows, special, 4):
        assert len(ids) == len(maskable) == len(units) <= 4
        assert not (maskable & torch.isin(ids, special)).any()
        assert not (maskable & ids.eq(PADDING)).any()
        assert (ids[:, 0] == START).all()
        seen += int(maskable.sum())
    expected = sum(
        token != 3 for row in rows.rows for place, token in enumerate(row.ids) if place >= row.first
    )  # 3 is <unk>
    assert seen == expected


@pytest.mark.parametrize(
    "packing, max_length, message",
    [
        ("one", 20, "`packing` must be one of packed, one_per_row, not 'one'"),
        ("packed", 2, "`max_length` must be a whole number of at least 3"),
        ("one_per_row", 10.0, "`max_length` must be a whole number of at least 3"),
    ],
)
def test_impossible_rows_are_refused(packing, max_length, message):
    with pytest.raises(ValueError, match=message):
        make_rows(STORIES, WORDS, max_length, packing, True)
