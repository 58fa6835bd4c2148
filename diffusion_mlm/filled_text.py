"""Filled text: what was generated between given pieces, written as it stands there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .canvas import without_start
from .tokenization import decode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fill_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], pieces: Sequence[str | slice]) -> list[str]:
    """The text of each piece: given ones as they are, runs of generated `ids` (slices of them) as they stand there.

    `ids` is the row, start token included. The text is all of it, joined.
    """
    texts: list[str] = []
    for piece in pieces:
        texts.append(piece if isinstance(piece, str) else text_of_run(tokenizer, ids, piece, "".join(texts)))
    return texts


def text_of_run(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], run: slice, before: str) -> str:
    """The text of some ids of a row behind the text `before`, whose space at the end is not repeated."""
    so_far = decode_text(tokenizer, without_start(list(ids[: run.start]), tokenizer))
    whole = decode_text(tokenizer, without_start(list(ids[: run.stop]), tokenizer))
    new = whole[len(so_far) :] if whole.startswith(so_far) else decode_text(tokenizer, ids[run])
    return new.removeprefix(" ") if before.endswith(" ") or not before else new
