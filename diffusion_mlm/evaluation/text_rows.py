"""From texts to the rows that are scored: every token in exactly one row as a new one, and what was left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..packing import PACKINGS, pack
from ..tokenization import boundary_token_ids, count_unknown, decode_text, encode_texts
from .row_predictor import PADDING

_TEXTS_AT_ONCE = 1000
MASKS_BEHIND = 16  # behind a text whose end is open, if a row has room: more were measured to change little


@dataclass(frozen=True)
class ScoredRow:
    """One row of token ids.

    Attributes:
        ids (`list[int]`): `<s>` and what follows.
        first (`int`): positions before it are given: `<s>`, and the tokens that an earlier row scores.
        unit (`int`): the text (packed: the row) whose likelihood this row is part of.
    """

    ids: list[int]
    first: int
    unit: int


@dataclass
class TextRows:
    """Rows of some texts and the counts that belong to them.

    Attributes:
        rows (`list[ScoredRow]`).
        num_units (`int`): texts, or rows if they are packed; numbers of units run from 0.
        num_texts (`int`): of which the rows are.
        num_bytes (`int`, *optional*): UTF-8 bytes of the texts as they were given, without those that unknown tokens
            stand for; None if nobody can tell how many these are.
        num_unknown (`int`), num_unknown_bytes (`int`): `<unk>` tokens, which are given and not scored, and what they
            stand for.
        num_separators (`int`): packed: `</s>` between two texts, given and not scored.
        num_without_tokens (`int`): texts that give no token; their bytes are not in `num_bytes`.
        num_altered (`int`): texts that their tokens do not give back byte for byte (letter case, spaces, unknown
            words): their bits per byte are those of something poorer than the text.
        num_split (`int`): texts too long for one row, scored window by window.
        num_cut (`int`): texts whose prefix is too long to stand before them, and was cut from the left.
    """

    rows: list[ScoredRow] = field(default_factory=list)
    num_units: int = 0
    num_texts: int = 0
    num_bytes: int | None = 0
    num_unknown: int = 0
    num_unknown_bytes: int = 0
    num_separators: int = 0
    num_without_tokens: int = 0
    num_altered: int = 0
    num_split: int = 0
    num_cut: int = 0

    def count_text(
        self, tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], prefix: str = "", given: int = 0
    ) -> None:
        """Adds a text to the counts; `ids` are the tokens of prefix and text, `given` of them those of the prefix."""
        unknown, unknown_bytes = count_unknown(tokenizer, text, ids[given:])
        self.num_texts += 1
        self.num_unknown += unknown
        self.num_unknown_bytes += unknown_bytes or 0
        self.num_altered += decode_text(tokenizer, ids) != prefix + text
        if len(ids) <= given:
            self.num_without_tokens += 1
        elif self.num_bytes is not None:
            self.num_bytes = None if unknown_bytes is None else self.num_bytes + len(text.encode()) - unknown_bytes


def windows(length: int, given: int, capacity: int) -> list[tuple[int, int, int]]:
    """Windows of at most `capacity` consecutive tokens in which each token from `given` on is new exactly once.

    The first window is full; each one after it has half a window of new tokens, the last one fewer, behind as many
    earlier ones as there is room for.

    Args:
        length (`int`): tokens of the text; given (`int`): of them, those at the start that are not to be scored.

    Returns:
        `list`: (start, first new token, stop) of each window.

    >>> windows(10, 0, 4)
    [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    """
    stride = max(capacity // 2, 1)
    found, first = [], given
    while first < length:
        stop = min(length, max(capacity, first + stride))
        found.append((max(stop - capacity, 0), first, stop))
        first = stop
    return found


def one_per_row(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    scores_end: bool,
    prefix: str = "",
    open_with: int | None = None,
) -> TextRows:
    """A row for each text, or several windows for one that is too long.

    If the end is scored it is a token of the text, and a row that holds it is filled with ends to `max_length`, as in
    training. If not, every row is closed by a visible `</s>`, as packed blocks are.

    Args:
        texts, tokenizer, max_length (`int`): tokens of a row, at least 3.
        scores_end (`bool`): whether `</s>` is scored.
        prefix (`str`): stands before each text, given and not scored. A token that holds characters of both is scored.
        open_with (`int`, *optional*): the id of the mask token, if the texts are beginnings: no end is scored, and
            their last row is filled with masks, as a row is that is being written.
    """
    _require_row_length(max_length)
    start_id, end_id = boundary_token_ids(tokenizer)
    closing = [] if scores_end else [end_id]
    capacity = max_length - 1 - len(closing)
    rows = TextRows(num_units=len(texts))
    for unit, (text, ids, given) in enumerate(_encoded(texts, tokenizer, prefix)):
        rows.count_text(tokenizer, text, ids, prefix, given)
        tokens = [*ids, end_id] if scores_end and open_with is None else ids
        fill = end_id if open_with is None and scores_end else open_with
        pieces = windows(len(tokens), given, capacity)
        rows.num_split += len(pieces) > 1
        for start, first, stop in pieces:
            row = [start_id, *tokens[start:stop]]
            if stop == len(tokens) and fill is not None:
                row += [fill] * (1 + capacity - len(row))
            rows.rows.append(ScoredRow(row + closing, 1 + first - start, unit))
    return rows


def before_masks(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    scores_end: bool,
    prefix: str = "",
    *,
    mask_id: int,
    num_masks: int | None = None,
) -> TextRows:
    """Rows of one text that goes on with nobody knows what: masks stand behind what a row scores.

    They take up to a quarter of a row, however long the prefix is, which is cut from the left for them. Where they
    only fill rows, no prefix is cut that fits without them.

    Args:
        text, tokenizer, max_length, prefix: as in `one_per_row`.
        scores_end (`bool`): whether `</s>` would be scored if the text ended; if not it closes the row.
        mask_id (`int`), num_masks (`int`, *optional*): how many, if there is room; by default as many as fill the row.
    """
    _require_row_length(max_length)
    start_id, end_id = boundary_token_ids(tokenizer)
    closing = [] if scores_end else [end_id]
    room = max_length - 1 - len(closing)
    rows = TextRows(num_units=1)
    ((_, ids, given),) = _encoded([text], tokenizer, prefix)
    rows.count_text(tokenizer, text, ids, prefix, given)
    kept = min(MASKS_BEHIND if num_masks is None else num_masks, room // 4)
    kept = 0 if num_masks is None and len(ids) <= room else kept
    pieces = windows(len(ids), given, room - kept)
    rows.num_split += len(pieces) > 1
    rows.num_cut += bool(pieces) and pieces[0][0] > 0
    for start, first, stop in pieces:
        masks = room - (stop - start)
        masks = masks if num_masks is None else min(masks, num_masks)
        rows.rows.append(ScoredRow([start_id, *ids[start:stop], *[mask_id] * masks, *closing], 1 + first - start, 0))
    return rows


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, prefix: str
) -> Iterator[tuple[str, list[int], int]]:
    """Each text, the tokens of prefix and text, and how many of them are of the prefix alone."""
    before = encode_texts(tokenizer, [prefix])[0] if prefix else []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = list(texts[first : first + _TEXTS_AT_ONCE])
        whole = [prefix + text if isinstance(text, str) else text for text in batch]  # no string: refused there
        for text, ids in zip(batch, encode_texts(tokenizer, whole), strict=True):
            same = (place for place, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b)
            yield text, ids, next(same, min(len(before), len(ids)))


def packed(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, separate_texts: bool = True
) -> TextRows:
    """Blocks of `max_length` tokens cut from the texts one after the other, as in training, the last one shorter.

    Blocks are scored apart from each other; the `</s>` that separate texts and close blocks are given.

    Args:
        texts, tokenizer, max_length (`int`): as in `one_per_row`.
        separate_texts (`bool`): False puts nothing between two texts.
    """
    _require_row_length(max_length)
    start_id, end_id = boundary_token_ids(tokenizer)
    rows = TextRows()

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = list(texts[first : first + _TEXTS_AT_ONCE])
            encoded = encode_texts(tokenizer, batch)
            for text, ids in zip(batch, encoded, strict=True):
                rows.count_text(tokenizer, text, ids)
            flat = np.fromiter((index for ids in encoded for index in ids), dtype=np.int32)
            yield flat, np.fromiter(map(len, encoded), dtype=np.int64)

    for unit, block in enumerate(pack(batches(), max_length, start_id, end_id, separate_texts, keep_last=True)):
        rows.rows.append(ScoredRow(block, 1, unit))
    rows.num_units = len(rows.rows)
    if separate_texts:
        rows.num_separators = max(rows.num_texts - rows.num_without_tokens - 1, 0)
    return rows


def make_rows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    packing: str,
    scores_end: bool,
    separate_texts: bool = True,
) -> TextRows:
    """`packed` or `one_per_row`.

    Raises:
        ValueError: the packing is unknown, the rows are too short, or a text is no string.
    """
    if packing not in PACKINGS:
        raise ValueError(f"`packing` must be one of {', '.join(PACKINGS)}, not {packing!r}.")
    if packing == "packed":
        return packed(texts, tokenizer, max_length, separate_texts)
    return one_per_row(texts, tokenizer, max_length, scores_end)


def _require_row_length(max_length: int) -> None:
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3:
        raise ValueError(
            f"`max_length` must be a whole number of at least 3 (<s>, one token, </s>), not {max_length!r}."
        )


def row_batches(
    rows: Sequence[ScoredRow], never_scored: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The rows, longest first, in batches.

    Yields:
        `input_ids` of shape `(B, L)`, padded with -1, `maskable` of shape `(B, L)`, and the units, `(B,)`.
    """
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        input_ids = torch.full((len(batch), len(batch[0].ids)), PADDING)
        for place, row in zip(input_ids, batch, strict=True):
            place[: len(row.ids)] = torch.tensor(row.ids)
        given = torch.tensor([row.first for row in batch])[:, None]
        is_new = (torch.arange(input_ids.size(1)) >= given) & input_ids.ne(PADDING)
        maskable = is_new & ~torch.isin(input_ids, never_scored)
        yield input_ids, maskable, torch.tensor([row.unit for row in batch])
