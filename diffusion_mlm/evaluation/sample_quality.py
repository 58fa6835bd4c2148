"""How good samples are: their figures beside those of real text of the same lengths, and what these hide."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from .diversity import diversity_figures
from .judge import Judge
from .longest_copy import copy_figures, longest_copies
from .matched_texts import match_lengths
from .mauve_score import mauve_score, require_mauve
from .sample_report import SampleReport, TextFigures
from .sample_warnings import sample_warnings
from .words import WORD_PATTERN, require_texts, split_words


def sample_quality(
    texts: Sequence[str],
    *,
    reference_texts: Sequence[str],
    judge: Judge | str | None = None,
    finished: Sequence[bool] | None = None,
    training_texts: Iterable[str] | None = None,
    mauve: bool = False,
    word_pattern: str = WORD_PATTERN,
) -> SampleReport:
    """Figures of generated texts, and the same figures of real ones cut to the same lengths.

    No figure means anything alone: text that repeats itself is easy to predict, entropy grows with length, and
    likeness with the number of texts. So the report holds both rows, and says what it finds suspicious.

    Args:
        texts (`Sequence[str]`): samples, each up to its first end, such as `generate(...).texts`. Spaces around a text
            do not count, here and below.
        reference_texts (`Sequence[str]`): held-out real texts, at least as many, and as long; see `match_lengths`.
            With `mauve`, twice as many give its figure for real text too.
        judge (`Judge` or `str`, *optional*): a causal language model, a directory or a Hub id. Make a `Judge` of it
            once for many reports, or to name its end token.
        finished (`Sequence[bool]`, *optional*): whether each sample ended by itself, as `GeneratedText.finished` says.
            The judge scores these ends then, and those of the real texts that were not cut.
        training_texts (`Iterable[str]`, *optional*): what the generator was trained on, to look for copies.
        mauve (`bool`): whether to compute MAUVE from the features of the judge; needs the extra `mauve`.
        word_pattern (`str`): what a word is, see `split_words`.

    Returns:
        `SampleReport`.

    Raises:
        ValueError: there are no texts, what is passed holds something else than strings, there are fewer
            `reference_texts` than texts, or `mauve` is asked for without a judge.
        ImportError: the extra `mauve` is not installed.

    Example:
        >>> from diffusion_mlm import sample_quality, story_language
        >>> real = story_language.sample(8, seed=0)
        >>> report = sample_quality(["The fox sat by the fox."] * 8, reference_texts=real)
        >>> report.generated.self_bleu_4, report.generated.num_duplicates
        (1.0, 7)
        >>> print(report.warnings[0])
        7 of 8 samples are the same as an earlier one: draw them with other seeds, by sampling that is not greedy.
    """
    samples = [text.strip() for text in require_texts(texts, "texts")]
    references = [text.strip() for text in require_texts(reference_texts, "reference_texts")]
    if not samples:
        raise ValueError("`texts` is empty: pass at least one sample.")
    if len(references) < len(samples):
        raise ValueError(
            f"`reference_texts` holds {len(references)} texts, and there are {len(samples)} samples: pass at least as "
            f"many."
        )
    if finished is not None and len(finished) != len(samples):
        raise ValueError(
            f"`finished` must say of each of the {len(samples)} texts whether it ended, not of {len(finished)}."
        )
    if mauve and judge is None:
        raise ValueError("`mauve` needs a `judge`, whose features it compares: pass a causal language model.")
    if mauve:
        require_mauve()
    if isinstance(judge, str):
        judge = Judge.from_pretrained(judge)
    lengths = [len(split_words(text, word_pattern)) for text in samples]
    matched = match_lengths(references, lengths, word_pattern)
    copies = None if training_texts is None else longest_copies([*samples, *matched.texts], training_texts)
    ended = None if finished is None else matched.is_whole
    asked: dict[str, Any] = {"judge": judge, "word_pattern": word_pattern}
    generated = text_figures(samples, ended=finished, **asked)
    real = text_figures(matched.texts, ended=ended, **asked)
    if copies is not None:
        generated = replace(generated, **copy_figures(copies[: len(samples)]))
        real = replace(real, **copy_figures(copies[len(samples) :]))
    if finished is not None:  # whether a real text was cut says nothing of how texts end
        generated = replace(generated, finished_share=fmean(map(bool, finished)))
    if mauve and judge is not None:
        features = judge.features(matched.texts)
        generated = replace(generated, mauve=mauve_score(judge.features(samples), features))
        if len(matched.rest) >= len(samples):
            others = match_lengths(matched.rest, lengths, word_pattern).texts
            real = replace(real, mauve=mauve_score(judge.features(others), features))
    return SampleReport(generated, real, tuple(sample_warnings(generated, real)))


def text_figures(
    texts: Sequence[str],
    *,
    judge: Judge | None = None,
    ended: Sequence[bool] | None = None,
    word_pattern: str = WORD_PATTERN,
) -> TextFigures:
    """One row: how varied texts are and how likely the judge finds them. Arguments as in `sample_quality`."""
    judged: Any = judge.score(texts, ended).figures() if judge is not None else {}
    varied = diversity_figures([split_words(text, word_pattern) for text in texts])
    return TextFigures(characters_per_text=fmean(map(len, texts)) if texts else None, **varied, **judged)
