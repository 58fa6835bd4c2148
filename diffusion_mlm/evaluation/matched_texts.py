"""Real text to compare samples with: as many texts, cut to the same lengths."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .words import WORD_PATTERN, first_words, split_words


@dataclass(frozen=True)
class MatchedTexts:
    """Beginnings of texts that have asked lengths.

    Attributes:
        texts (`list[str]`): as many as lengths were asked for, each for the length at its place.
        is_whole (`list[bool]`): of each, whether nothing was cut off.
        rest (`list[str]`): the texts that were not taken.
    """

    texts: list[str]
    is_whole: list[bool]
    rest: list[str]


def match_lengths(texts: Sequence[str], lengths: Sequence[int], pattern: str = WORD_PATTERN) -> MatchedTexts:
    """Cuts texts to the lengths of others, so that figures that depend on length can be compared.

    Texts are taken in their order, each for the greatest length that is still wanted and that it has; so as many
    lengths as possible are met. Lengths that nothing is long enough for get the longest texts that are left, whole.

    Args:
        texts (`Sequence[str]`): at least as many as `lengths`.
        lengths (`Sequence[int]`): in words.
        pattern (`str`): what a word is, see `split_words`.

    Raises:
        ValueError: there are fewer texts than lengths.

    >>> match_lengths(["Once upon a time", "The end", "So be it"], [2, 3]).texts
    ['The end', 'Once upon a']
    """
    if len(texts) < len(lengths):
        raise ValueError(f"{len(texts)} texts cannot be cut to {len(lengths)} lengths: pass at least {len(lengths)}.")
    waiting = sorted(range(len(lengths)), key=lambda place: lengths[place])
    found: dict[int, str] = {}
    left: list[tuple[int, str]] = []
    for text in texts:
        size = len(split_words(text, pattern)) if waiting else 0
        place = bisect_right(waiting, size, key=lambda place: lengths[place]) - 1
        if place < 0:
            left.append((size, text))
        else:
            found[waiting.pop(place)] = text
    by_size = sorted(range(len(left)), key=lambda index: left[index][0])
    too_short = [by_size.pop() for _ in waiting]
    found.update({place: left[index][1] for place, index in zip(reversed(waiting), too_short, strict=True)})
    cut = [first_words(found[place], length, pattern) for place, length in enumerate(lengths)]
    return MatchedTexts(
        texts=cut,
        is_whole=[text == found[place] for place, text in enumerate(cut)],
        rest=[left[index][1] for index in sorted(by_size)],
    )
