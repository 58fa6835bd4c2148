"""What texts have word for word from the text a model was trained on: the longest run of characters they share."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .words import require_texts

COPY_CHARACTERS = 50  # from so many shared characters on, a text counts as one that copies

_PIECE = 2**20  # characters of the training text at once, which take some tens of megabytes
_BETWEEN_TEXTS = 0x110000  # no character has this number, so that no copy goes from one training text to the next
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)

Codes = NDArray[np.uint32]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def longest_copies(texts: Iterable[str], training_texts: Iterable[str]) -> list[int]:
    """For each text the length, in characters, of the longest run that stands in one of the training texts.

    Exact; upper and lower case and spaces count. A run of n characters holds runs of all lengths below n, so the
    length is found by bisection: windows of one length are looked up among those of the training text by hash, and
    what is found is compared character by character. The training text goes past once, a million characters at a time;
    all of these are looked at for the powers of two up to the length of a text, and for lengths in between only where
    a copy of the power of two below begins.

    Args:
        texts (`Iterable[str]`): generated texts, or held-out ones to compare with.
        training_texts (`Iterable[str]`): read once.

    Returns:
        `list[int]`, 0 for a text that shares no character.

    Raises:
        ValueError: one string is passed in place of several, or what is passed holds something else than strings.

    >>> longest_copies(["a cat sat here", "dig"], ["the cat sat", "on the mat"])
    [8, 0]
    """
    wanted = [_Windows(_codes(text)) for text in require_texts(texts, "texts")]
    longest = max((len(windows.codes) for windows in wanted), default=0)
    copies = [0] * len(wanted)
    for codes in _pieces(require_texts(training_texts, "training_texts"), overlap=max(longest - 1, 0)):
        _Piece(codes, wanted, copies).search(list(range(len(wanted))), np.arange(len(codes)), 0, longest)
    return copies


def copy_figures(copies: Sequence[int]) -> dict[str, Any]:
    """What `longest_copies` found of a set of texts, as `TextFigures` names it; None of no texts."""
    return {
        "longest_copy_characters": max(copies, default=None),
        "copy_share": fmean(length >= COPY_CHARACTERS for length in copies) if copies else None,
    }


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _pieces(texts: Iterable[str], overlap: int) -> Iterator[Codes]:
    """The texts one after the other in pieces of about `_PIECE` characters; a text that is cut overlaps itself."""
    between = np.array([_BETWEEN_TEXTS], dtype=np.uint32)
    waiting, size = [], 0
    for text in texts:
        codes = _codes(text)
        for first in range(0, max(len(codes) - overlap, 1), _PIECE):
            part = codes[first : first + _PIECE + overlap]
            waiting += [part, between]
            size += len(part) + 1
            if size >= _PIECE:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


class _Windows:
    """Hashes of the windows of some characters: their sum, each times a power of the base, modulo 2**64."""

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self.sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(codes * _powers(_BASE, len(codes)), out=self.sums[1:])
        self.to_first_power = _powers(_INVERSE, len(codes))  # makes a hash independent of where its window starts

    def hashes(self, starts: Places | slice, ends: Places | slice) -> Hashes:
        return (self.sums[ends] - self.sums[starts]) * self.to_first_power[starts]

    def all_hashes(self, length: int) -> Hashes:
        count = max(len(self.codes) - length + 1, 0)
        return self.hashes(slice(0, count), slice(length, length + count))


def _powers(base: int, count: int) -> Hashes:
    powers: Hashes = np.full(count, base, dtype=np.uint64)
    return np.cumprod(powers, out=powers)


class _Piece(_Windows):
    """A piece of the training text, and the longest copy of each text that was found so far."""

    def __init__(self, codes: Codes, wanted: Sequence[_Windows], copies: list[int]) -> None:
        super().__init__(codes)
        self.wanted, self.copies = wanted, copies

    def search(self, texts: list[int], starts: Places, low: int, high: int) -> None:
        """Looks for longer copies of `texts`, up to `high` characters, that begin at `starts`.

        Whatever windows of `low` characters of these texts stand in the piece, they begin at `starts`.
        """
        texts = [text for text in texts if self.copies[text] < min(high, len(self.wanted[text].codes))]
        if not texts:
            return
        # The length with the most factors 2, so that texts of all lengths try the same few ones.
        shift = (low ^ high).bit_length() - 1
        length = high >> shift << shift
        found, further = self._find(texts, starts[starts + length <= len(self.codes)], length)
        for text in found:
            self.copies[text] = max(self.copies[text], length)
        self.search(found, further, length, high)
        self.search(sorted(set(texts) - set(found)), starts, low, length - 1)

    def _find(self, texts: list[int], starts: Places, length: int) -> tuple[list[int], Places]:
        """Which texts have windows of `length` characters that stand at some of `starts`, and at which."""
        of_text = [self.wanted[text].all_hashes(length) for text in texts]
        known, number = np.unique(np.concatenate(of_text), return_inverse=True)
        if not len(known) or not len(starts):
            return [], starts[:0]
        # Most places are sorted out by a table of leading bits, the quickest look-up there is.
        shift = np.uint64(64 - min(max(len(known).bit_length() + 4, 12), 26))
        table = np.zeros(2 ** (64 - int(shift)), dtype=bool)
        table[known >> shift] = True
        hashes = self.hashes(starts, starts + length)
        likely = table[hashes >> shift]
        starts, hashes = starts[likely], hashes[likely]
        nearest = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        same = known[nearest] == hashes
        starts, nearest = starts[same], nearest[same]
        example = np.full(len(known), -1)
        example[nearest] = starts  # one of the places that have this hash

        def stands(window: Codes, number: int) -> bool:
            if np.array_equal(window, self.codes[example[number] :][:length]):
                return True
            return any(np.array_equal(window, self.codes[place:][:length]) for place in starts[nearest == number])

        found, first = [], 0
        for text, hashes in zip(texts, of_text, strict=True):
            numbers = number[first : first + len(hashes)]
            first += len(hashes)
            codes = self.wanted[text].codes
            hits = np.flatnonzero(example[numbers] >= 0)
            if any(stands(codes[begin : begin + length], numbers[begin]) for begin in hits):
                found.append(text)
        return found, starts
