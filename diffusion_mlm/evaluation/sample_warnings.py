"""What the figures of samples, beside those of real text, should not be taken for."""

import math
from collections.abc import Iterator

from .sample_report import TextFigures

_STANDARD_ERRORS = 2.0  # a difference that is no greater says nothing
_MORE_REPETITION = 0.05  # of rep-4
_MORE_DUPLICATES = 0.01  # of the share of texts that are there already
_MORE_LIKENESS = 0.1  # of self-BLEU
_MORE_COPIES = 0.05  # of the share of texts that copy
_OTHER_LENGTH = 0.05  # of the words, relative
_UNKNOWN = 0.01  # of the judge's tokens
_GUESSED_END = 13.0  # nats: a blind guess among 400,000 tokens costs no more
_MAUVE_TEXTS = 1000


def sample_warnings(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    """Sentences about what a reader of the two rows could get wrong."""
    yield from _collapse(generated, real)
    yield from _repetition(generated, real)
    yield from _likeness(generated, real)
    yield from _copying(generated, real)
    yield from _comparison(generated, real)


def _collapse(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    """Samples that are easier to predict than real text, and less varied.

    Of two sets of real texts one is below the other in both figures a quarter of the time. So the entropy must be
    below by more than chance gives, where that is known.
    """
    errors = [row.word_entropy_standard_error or 0.0 for row in (generated, real)]
    poorer = _is_less(generated.word_entropy_nats, real.word_entropy_nats, _STANDARD_ERRORS * math.hypot(*errors))
    if poorer and _is_less(generated.judge_perplexity, real.judge_perplexity):
        yield (
            f"Collapse: the judge finds the samples easier than real text (perplexity "
            f"{_both_perplexities(generated, real)}), and their words vary less (entropy "
            f"{generated.word_entropy_nats:.3g} against {real.word_entropy_nats:.3g} nats): a low perplexity is no "
            f"quality here."
        )


def _is_less(value: float | None, other: float | None, margin: float = 0.0) -> bool:
    return value is not None and other is not None and value < other - margin


def _both_perplexities(generated: TextFigures, real: TextFigures) -> str:
    return f"{generated.judge_perplexity:.4g} against {real.judge_perplexity:.4g}"


def _repetition(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    if generated.rep_4 is not None and generated.rep_4 > (real.rep_4 or 0.0) + _MORE_REPETITION:
        yield (
            f"The samples repeat themselves: {generated.rep_4:.0%} of the 4-grams of a sample have come before in it, "
            f"{real.rep_4 or 0:.0%} in real text."
        )


def _likeness(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    if generated.num_duplicates > real.num_duplicates + _MORE_DUPLICATES * generated.num_texts:
        yield (
            f"{generated.num_duplicates} of {generated.num_texts} samples are the same as an earlier one: draw them "
            f"with other seeds, by sampling that is not greedy."
        )
    if generated.self_bleu_4 is not None and generated.self_bleu_4 > (real.self_bleu_4 or 0.0) + _MORE_LIKENESS:
        text = f"self-BLEU is {generated.self_bleu_4:.2f}, that of real texts {real.self_bleu_4 or 0:.2f}"
        if _is_less(generated.judge_perplexity, real.judge_perplexity):
            text += f", so that a low perplexity ({_both_perplexities(generated, real)}) is no quality"
        yield f"The samples resemble one another: {text}."


def _copying(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    if generated.copy_share is not None and generated.copy_share > (real.copy_share or 0.0) + _MORE_COPIES:
        yield (
            f"{generated.copy_share:.0%} of the samples share 50 characters or more with the training text, "
            f"{real.copy_share or 0:.0%} of the real texts do: part of what they say is recited."
        )


def _comparison(generated: TextFigures, real: TextFigures) -> Iterator[str]:
    if generated.num_empty:
        yield f"{generated.num_empty} of {generated.num_texts} samples are empty, and count in no figure of words."
    words, others = generated.words_per_text or 0.0, real.words_per_text or 0.0
    if others < (1 - _OTHER_LENGTH) * words:
        yield (
            f"The real texts are shorter than the samples ({others:.1f} words against {words:.1f}), which changes "
            f"entropy, n-grams and perplexity: pass longer `reference_texts`."
        )
    for what, row in (("samples", generated), ("real texts", real)):
        if (row.judge_unknown_share or 0.0) > _UNKNOWN:
            yield (
                f"{row.judge_unknown_share:.1%} of the tokens of the {what} are unknown to the judge, which makes "
                f"them look easier than they are: take another judge."
            )
    end_nats = real.judge_end_nats if real.judge_end_nats is not None else generated.judge_end_nats
    if end_nats is not None and end_nats > _GUESSED_END:
        yield (
            f"The judge is surprised that texts end ({end_nats:.1f} nats), so its perplexity is too high: it was "
            f"trained with another end token. Name that as `end_token` of `Judge`."
        )
    if generated.mauve is not None and generated.num_texts < _MAUVE_TEXTS:
        yield (
            f"MAUVE of {generated.num_texts} texts says little: take {_MAUVE_TEXTS} or more, and compare it only with "
            f"MAUVE of as many."
        )
