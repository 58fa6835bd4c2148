"""What a visitor may ask for. Nothing that comes from a browser is trusted, whatever its sliders allow."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..infilling import Blank, parse_template

_WORD = re.compile(r"<mask[^<>]*>|\w+(?:['’-]\w+)*|[^\w\s]")
_MOST_WORDS, _MOST_LENGTHS = 300, 8


@dataclass(frozen=True)
class Limits:
    """The most of everything, for one request."""

    characters: int = 2000
    new_tokens: int = 256
    steps: int = 256
    samples: int = 4

    def text(self, value: Any, what: str, empty: bool = False) -> str:
        """A text that is not too long, and not empty unless it may be.

        Raises:
            ValueError: in words for the visitor.
        """
        if not isinstance(value, str):
            raise ValueError(f"{what} must be text.")
        if len(value) > self.characters:
            raise ValueError(f"{what} has {len(value):,} characters, more than {self.characters:,}: shorten it.")
        if not empty and not value.strip():
            raise ValueError(f"{what} is empty: write something.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} holds half a character: remove it.") from None
        return value

    def whole(self, value: Any, what: str, least: int, most: int) -> int:
        """A whole number of this range; ValueError otherwise."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value != int(value) or not least <= value <= most:
            raise ValueError(f"{what} must be a whole number from {least} to {most}, not {str(value)[:40]}.")
        return int(value)

    def number(self, value: Any, what: str, least: float, most: float) -> float:
        """A number of this range; ValueError otherwise."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise ValueError(f"{what} must lie between {least:g} and {most:g}, not {str(value)[:40]}.")
        return float(value)

    def choice(self, value: Any, what: str, choices: Sequence[str]) -> str:
        """One of these; ValueError otherwise."""
        if value not in choices:
            raise ValueError(f"{what} must be one of {', '.join(choices)}, not {str(value)[:40]!r}.")
        return str(value)

    def seed(self, value: Any) -> int | None:
        """A seed, or None where the field is empty: a new one then."""
        if value is None or value == "":
            return None
        return self.whole(value, "The seed", 0, 2**32 - 1)

    def template(self, value: Any) -> str:
        """A text with blanks, neither too many tokens nor too many lengths to try.

        Raises:
            ValueError: in words for the visitor.
        """
        template = self.text(value, "The text")
        try:
            blanks = [piece for piece in parse_template(template) if isinstance(piece, Blank)]
        except ValueError:
            raise ValueError("There is nothing to fill: choose words below, or write <mask> or <mask:3>.") from None
        if sum(blank.most for blank in blanks) > self.new_tokens:
            raise ValueError(f"The blanks hold more than {self.new_tokens} tokens: choose fewer.")
        if math.prod(blank.most - blank.least + 1 for blank in blanks) > _MOST_LENGTHS:
            raise ValueError(f"The blanks leave more than {_MOST_LENGTHS} combinations of lengths: narrow them.")
        return template


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words and marks of a text stand that can be chosen to be masked; at most some hundreds.

    >>> [text[start:end] for text in ["It's <mask>, so."] for start, end in words_of(text)]
    ["It's", ',', 'so', '.']
    """
    found = (match.span() for match in _WORD.finditer(text) if not match[0].startswith("<mask"))
    return [span for span, _ in zip(found, range(_MOST_WORDS), strict=False)]


def mask_words(text: str, chosen: Sequence[int], num_tokens: Sequence[int]) -> str:
    """The template in which these words, numbered as in `words_of`, are blanks of so many tokens each.

    >>> mask_words("A fox. An owl", [1, 4], [1, 1, 1, 1, 2])
    'A <mask:1>. An <mask:2>'
    """
    spans, template, copied = words_of(text), "", 0
    for number in sorted(set(chosen)):
        start, end = spans[number]
        template += f"{text[copied:start]}<mask:{num_tokens[number]}>"
        copied = end
    return template + text[copied:]
