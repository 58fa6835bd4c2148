"""How good written stories are, by the built-in language, whose exact probabilities are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .. import story_language
from .diversity import distinct_ngrams
from .interval import ratio_estimate, share_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class StoryFigures:
    """What the grammar says of stories. Log-probabilities are exact, in nats per token, `</s>` counted once.

    A perfect generator has every story accepted *and* a mean log-probability of minus the entropy of the language.
    Text above it is too probable: the generator has collapsed onto likely stories.

    Attributes:
        num_stories (`int`): how many there are; num_distinct (`int`): how many different ones.
        valid_share (`float`), valid_interval: the share that the grammar accepts, and its confidence interval.
        log_prob (`float`, *optional*): the mean over all tokens of the accepted ones; None if there is none.
        log_prob_interval (*optional*): its confidence interval; None below two accepted stories.
        distinct_3 (`float`): see `diversity.distinct_ngrams`.
    """

    num_stories: int
    num_distinct: int
    valid_share: float
    valid_interval: Interval
    log_prob: float | None
    log_prob_interval: Interval | None
    distinct_3: float

    @property
    def gap(self) -> float | None:
        """|mean log-probability + entropy|, in nats per token; None if no story is accepted."""
        return None if self.log_prob is None else abs(self.log_prob + story_language.entropy_per_token())

    @property
    def is_too_probable(self) -> bool:
        """Whether the confidence interval of the mean log-probability lies above that of the language."""
        return self.log_prob_interval is not None and self.log_prob_interval[0] > -story_language.entropy_per_token()


def story_figures(texts: Sequence[str], confidence: float = 0.95) -> StoryFigures:
    """Measures whole stories, written from nothing; `confidence` is that of both intervals.

    Raises:
        ValueError: there is no text, or `confidence` lies outside (0, 1).
    """
    if not texts:
        raise ValueError("`texts` is empty: there is nothing to measure.")
    log_probs = story_language.log_prob(texts)
    valid = torch.isfinite(log_probs)
    mean, interval = None, None
    if valid.any():
        accepted = [text for text, is_valid in zip(texts, valid.tolist(), strict=True) if is_valid]
        tokens = torch.tensor([len(story_language.automaton.split_text(text)) + 1 for text in accepted])
        estimate = ratio_estimate(log_probs[valid], tokens, confidence)
        mean, interval = estimate.value, estimate.interval
    return StoryFigures(
        num_stories=len(texts),
        num_distinct=len(set(texts)),
        valid_share=float(valid.double().mean()),
        valid_interval=share_interval(int(valid.sum()), len(texts), confidence),
        log_prob=mean,
        log_prob_interval=interval,
        distinct_3=distinct_ngrams(texts, 3),
    )


def writes_stories(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the built-in stories, so that what its model writes can be measured exactly."""
    return tokenizer.get_vocab() == story_language.tokenizer().get_vocab()
