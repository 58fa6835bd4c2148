"""How varied some texts are: the entropy of their words, different and repeated n-grams, likeness to one another.

A text is a sequence of words, which may be anything that can be compared: strings, characters, token ids. Where there
is nothing to measure, a figure is None. All of them depend on how long the texts are, and those of a whole set on how
many there are: compare sets of equal numbers and lengths only.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from statistics import fmean
from typing import Any, TypeAlias

Words: TypeAlias = Sequence[Hashable]

_FLOOR = 0.1  # matches where there is none: smoothing method 1 of Chen and Cherry 2014


def ngrams(words: Words, n: int) -> Iterator[tuple[Hashable, ...]]:
    """All runs of n words, overlapping ones too.

    Raises:
        ValueError: `n` is no whole number of at least 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"`n` must be a whole number of at least 1, not {n!r}.")
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def word_entropy(words: Words) -> float | None:
    """Entropy of the words of one text, in nats: 0 for one word over and over, log of its length for all different.

    >>> round(word_entropy("to be or not to be".split()) / math.log(2), 3)  # in bits
    1.918
    """
    if not words:
        return None
    counts = Counter(words).values()
    return math.log(len(words)) - sum(count * math.log(count) for count in counts) / len(words)


def distinct_ngrams(texts: Sequence[Words], n: int) -> float | None:
    """Different n-grams among all n-grams of all texts: 1 if none comes twice.

    Source: Li et al. 2016, arXiv:1510.03055 (distinct-1 and distinct-2).

    >>> distinct_ngrams(["the cat sat".split(), "the cat ran".split()], 2)
    0.75
    """
    found = Counter(gram for words in texts for gram in ngrams(words, n))
    return len(found) / found.total() if found else None


def repeated_ngrams(words: Words, n: int = 4) -> float | None:
    """Share of the n-grams of one text that have come before in it: 0 if none comes twice.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 6 (seq-rep-n).

    >>> repeated_ngrams("a b a b a b a".split(), 4)
    0.5
    """
    different = distinct_ngrams([words], n)
    return None if different is None else 1 - different


def self_bleu(texts: Sequence[Words], max_n: int = 4) -> float | None:
    """Mean BLEU of each text with all others as its references: 1 if all are the same, near 0 if they share nothing.

    BLEU as that paper computes it (smoothing method 1: 0.1 matches where there is none; the brevity penalty of the
    reference that is closest in length), but n-grams longer than a text play no part in its score, so that equal texts
    score 1 however short. Texts without words are left out. The time is linear in the number of words: the references'
    clipped counts are the two largest counts of each n-gram.

    Source: Zhu et al. 2018, arXiv:1802.01886, section 3.3; BLEU: Papineni et al. 2002.

    >>> round(self_bleu(["a b c d".split(), "a b c e".split()]) ** 4, 6)  # 3/4 * 2/3 * 1/2 * 0.1/1
    0.025
    """
    texts = [words for words in texts if words]
    if len(texts) < 2:
        return None
    logs = [_brevity(len(words), closest) for words, closest in zip(texts, _closest_lengths(texts), strict=True)]
    for n in range(1, max_n + 1):
        counts = [Counter(ngrams(words, n)) for words in texts]
        largest = _largest_counts(counts)
        for place, of_text in enumerate(counts):
            total = of_text.total()
            if not total:  # the text is shorter than n
                continue
            matches = sum(min(count, largest[gram].in_others(place)) for gram, count in of_text.items())
            if not matches and n == 1:
                logs[place] = -math.inf  # no word in common
            precision = (matches or _FLOOR) / total
            logs[place] += math.log(precision) / min(max_n, len(texts[place]))
    return fmean(map(math.exp, logs))


class _LargestCounts:
    """How often an n-gram stands in the text that has most of it, and in the next one."""

    __slots__ = ("first", "owner", "second")

    def __init__(self) -> None:
        self.first, self.owner, self.second = 0, -1, 0

    def add(self, count: int, owner: int) -> None:
        if count > self.first:
            self.first, self.owner, self.second = count, owner, self.first
        elif count > self.second:
            self.second = count

    def in_others(self, owner: int) -> int:
        return self.second if owner == self.owner else self.first


def _largest_counts(counts: Sequence[Counter[tuple[Hashable, ...]]]) -> dict[tuple[Hashable, ...], _LargestCounts]:
    largest: dict[tuple[Hashable, ...], _LargestCounts] = {}
    for owner, of_text in enumerate(counts):
        for gram, count in of_text.items():
            largest.setdefault(gram, _LargestCounts()).add(count, owner)
    return largest


def _closest_lengths(texts: Sequence[Words]) -> Iterator[int]:
    """For each text the length of the other one that is closest in length, the shorter one of two."""
    counts = Counter(map(len, texts))
    lengths = sorted(counts)
    for words in texts:
        place = bisect_left(lengths, len(words))
        beside = (
            [len(words)] if counts[len(words)] > 1 else lengths[max(place - 1, 0) : place] + lengths[place + 1 :][:1]
        )
        yield min(beside, key=lambda length: (abs(length - len(words)), length))


def _brevity(length: int, closest: int) -> float:
    """Logarithm of BLEU's brevity penalty."""
    return min(0.0, 1 - closest / length)


def diversity_figures(texts: Sequence[Words]) -> dict[str, Any]:
    """All of the above for a set of texts, as `TextFigures` names them; figures of single texts are means."""
    entropies = [entropy for entropy in map(word_entropy, texts) if entropy is not None]
    repeated = [share for share in map(repeated_ngrams, texts) if share is not None]
    filled = [tuple(words) for words in texts if words]
    return {
        "num_texts": len(texts),
        "num_empty": len(texts) - len(filled),
        "num_duplicates": len(filled) - len(set(filled)),
        "words_per_text": fmean(map(len, texts)) if texts else None,
        "word_entropy_nats": fmean(entropies) if entropies else None,
        "word_entropy_standard_error": standard_error(entropies),
        "distinct_1": distinct_ngrams(texts, 1),
        "distinct_2": distinct_ngrams(texts, 2),
        "distinct_3": distinct_ngrams(texts, 3),
        "rep_4": fmean(repeated) if repeated else None,
        "self_bleu_4": self_bleu(texts, 4),
    }


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
