"""What is reported of the quality of samples: a row for them, one for real text, and what to beware of."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TextFigures:
    """Figures of one set of texts. None: not asked for, or there is nothing to measure.

    Attributes:
        num_texts, num_empty (`int`): all of them, and those without a word.
        num_duplicates (`int`): texts with the same words as an earlier one; empty ones do not count.
        words_per_text, characters_per_text (`float`): means.
        finished_share (`float`): of texts that ended by themselves.
        judge_nats_per_token, judge_standard_error (`float`): over all tokens of all texts, ends included; its standard
            error, over texts.
        judge_perplexity (`float`): `exp(judge_nats_per_token)`, comparable for one judge only.
        judge_bits_per_character (`float`): does not depend on the judge's tokenizer.
        judge_end_nats (`float`): what the end of a text costs, mean over those that ended.
        judge_unknown_share (`float`): of the judge's tokens, those that it does not know.
        word_entropy_nats (`float`), word_entropy_standard_error (`float`): of the words of a text, mean over texts.
        distinct_1, distinct_2, distinct_3 (`float`): different n-grams of words among all of the set.
        rep_4 (`float`): share of 4-grams of words that have come before in their text, mean over texts.
        self_bleu_4 (`float`): likeness of the texts to one another.
        longest_copy_characters (`int`), copy_share (`float`): the longest run of characters that one of them has in
            common with the training text, and the share of texts with one of 50 or more.
        mauve (`float`): towards the real texts; for these, towards as many others.
    """

    num_texts: int
    num_empty: int
    num_duplicates: int
    words_per_text: float | None
    characters_per_text: float | None
    finished_share: float | None = None
    judge_nats_per_token: float | None = None
    judge_standard_error: float | None = None
    judge_perplexity: float | None = None
    judge_bits_per_character: float | None = None
    judge_end_nats: float | None = None
    judge_unknown_share: float | None = None
    word_entropy_nats: float | None = None
    word_entropy_standard_error: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    distinct_3: float | None = None
    rep_4: float | None = None
    self_bleu_4: float | None = None
    longest_copy_characters: int | None = None
    copy_share: float | None = None
    mauve: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass(frozen=True)
class SampleReport:
    """What `sample_quality` returns.

    Attributes:
        generated (`TextFigures`): of the samples.
        real (`TextFigures`): of as many real texts, cut to the lengths of the samples.
        warnings (`tuple[str, ...]`): what the figures should not be taken for, a sentence each.
    """

    generated: TextFigures
    real: TextFigures
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "generated": self.generated.to_dict(),
            "real": self.real.to_dict(),
            "warnings": list(self.warnings),
        }

    def to_markdown(self) -> str:
        """A table of the figures there are, and the warnings below it."""
        lines = ["| | generated | real text |", "|---|---|---|"]
        for field in fields(TextFigures):
            row = [getattr(figures, field.name) for figures in (self.generated, self.real)]
            if row != [None, None]:
                lines.append(f"| {field.name} | " + " | ".join(map(_shown, row)) + " |")
        return "\n".join([*lines, *(f"\n* {warning}" for warning in self.warnings)]) + "\n"


def _shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
