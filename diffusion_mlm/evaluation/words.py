"""Texts and their words."""

import re
from collections.abc import Iterable, Iterator

WORD_PATTERN = r"\S+"  # what stands between spaces


def require_texts(texts: Iterable[str], argument: str) -> Iterator[str]:
    """The texts, one after the other.

    Raises:
        ValueError: one string was passed in place of several, or one of them is no string.
    """
    if isinstance(texts, str):
        raise ValueError(f"`{argument}` must be several texts, not the string {texts[:40]!r}: wrap it in a list.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`{argument}` must hold strings; number {index} (from 0) is {text!r}.")
        yield text


def split_words(text: str, pattern: str = WORD_PATTERN) -> list[str]:
    r"""The words of a text: what `pattern`, a regular expression, finds one after the other.

    The default is `str.split`. `r"\S"` makes a word of each character, for scripts without spaces and for proteins.

    >>> split_words("Too late. 太晚", r"\w+|[^\w\s]")
    ['Too', 'late', '.', '太晚']
    """
    return [found.group() for found in re.finditer(pattern, text)]


def first_words(text: str, count: int, pattern: str = WORD_PATTERN) -> str:
    """A text up to the end of its word number `count`; all of it if it has no more than that.

    >>> first_words("Once upon  a time", 3)
    'Once upon  a'
    """
    ends = [found.end() for found in re.finditer(pattern, text)]
    return text if len(ends) <= count else text[: ends[count - 1] if count else 0]
