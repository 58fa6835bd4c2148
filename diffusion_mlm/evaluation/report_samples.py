"""What a report says of samples: their figures, those of real text and of the same text with its words shuffled."""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .judge import Judge
from .matched_texts import match_lengths
from .sample_quality import sample_quality, text_figures
from .story_quality import story_figures
from .words import WORD_PATTERN, split_words
from .written_texts import WrittenTexts

Write = Callable[[int | None], WrittenTexts]  # in so many steps; None: as the checkpoint does by default

_SHOWN = 3  # texts of each checkpoint that the report holds
_OF_STEPS = ("judge_bits_per_character", "word_entropy_nats", "distinct_3", "valid_share", "exact_nats_per_token")


@dataclass(frozen=True)
class SampleMeasures:
    """How samples are measured.

    Attributes:
        num_samples (`int`): texts of each checkpoint.
        real_texts (`list[str]`): held-out ones, at least as many.
        judge (`Judge`, *optional*).
        training_texts (`list[str]`, *optional*): to look for copies.
        stories (`bool`): whether the real texts are whole stories of the built-in language, which then says which of
            the samples are possible, and how likely.
        ends (`bool`): whether texts are written to their end, which counts then.
        seed (`int`): of the words that are shuffled.
    """

    num_samples: int
    real_texts: list[str]
    judge: Judge | None = None
    training_texts: list[str] | None = None
    stories: bool = False
    ends: bool = False
    seed: int = 0

    def of_checkpoint(self, write: Write, steps: Iterable[int]) -> dict[str, Any]:
        """The figures of one checkpoint as plain values for JSON; `steps` are tried beside its default settings."""
        written = write(None)
        asked: dict[str, Any] = {"judge": self.judge, "training_texts": self.training_texts}
        finished = written.finished if self.ends else None
        quality = sample_quality(written.texts, reference_texts=self.real_texts, finished=finished, **asked).to_dict()
        shuffled = self._shuffled(written.texts)
        whole = self.real_texts[: self.num_samples]
        found = {
            "generated": quality["generated"] | self._of_stories(written.texts),
            "real": quality["real"] | self._of_stories(whole),
            "shuffled": text_figures(shuffled, judge=self.judge).to_dict()
            | self._of_stories(shuffle_words(whole, self.seed)),
            "warnings": quality["warnings"],
            "forwards_per_text": written.forwards,
            "seconds_per_text": written.seconds,
            "texts": written.texts[:_SHOWN],
        }
        points = [self._point(None, written, found["generated"])]
        for number in steps:
            of_steps = write(number)
            figures = text_figures(
                of_steps.texts, judge=self.judge, ended=of_steps.finished if self.ends else None
            ).to_dict()
            points.append(self._point(number, of_steps, figures | self._of_stories(of_steps.texts)))
        return found | {"by_steps": points}

    def _shuffled(self, texts: Sequence[str]) -> list[str]:
        """The real texts that these are compared with, their words in random order: a floor for every judge."""
        lengths = [len(split_words(text)) for text in texts]
        matched = match_lengths([text.strip() for text in self.real_texts], lengths)
        return shuffle_words(matched.texts, self.seed)

    def _of_stories(self, texts: Sequence[str]) -> dict[str, Any]:
        return grammar_figures(texts) if self.stories else {}

    @staticmethod
    def _point(steps: int | None, written: WrittenTexts, figures: dict[str, Any]) -> dict[str, Any]:
        return {
            "steps": steps,
            "forwards_per_text": written.forwards,
            "seconds_per_text": written.seconds,
            **{name: figures[name] for name in _OF_STEPS if figures.get(name) is not None},
        }


def grammar_figures(texts: Sequence[str]) -> dict[str, float | None]:
    """The share of texts that the built-in language allows, and the exact -log p of these in nats per token."""
    found = story_figures(texts)
    return {
        "valid_share": found.valid_share,
        "exact_nats_per_token": None if found.log_prob is None else -found.log_prob,
    }


def shuffle_words(texts: Sequence[str], seed: int) -> list[str]:
    """Each text with its words in random order.

    >>> shuffle_words(["Once upon a time"], seed=0)
    ['a upon Once time']
    """
    return [
        " ".join(random.Random(f"{seed} {place}").sample(words, len(words)))
        for place, words in enumerate(map(split_words, texts))
    ]


def evenly_cut(texts: Sequence[str], number: int) -> list[str]:
    """The texts, joined by line breaks, in so many pieces of whole words, as many words in each as in the others.

    For models of packed rows: what they write begins and ends anywhere, whatever the length of single texts.

    Raises:
        ValueError: there are fewer words than pieces.

    >>> evenly_cut(["Once upon a time", "there was"], 3)
    ['Once upon', 'a time', 'there was']
    """
    joined = "\n".join(texts)
    spans = [found.span() for found in re.finditer(WORD_PATTERN, joined)]
    if len(spans) < number:
        raise ValueError(f"{len(spans)} words of held-out text cannot be cut into {number} pieces: name more text.")
    edges = [math.floor(place * len(spans) / number) for place in range(number + 1)]
    return [joined[spans[first][0] : spans[last - 1][1]] for first, last in itertools.pairwise(edges)]
