"""How good written stories are, by the built-in language, whose exact probabilities are known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .. import story_language
from .diversity import distinct_ngrams
from .interval import ratio_estimate, share_interval
from .sweep import Measured

Interval = tuple[float, float]

_REFERENCE_SEED = 1_000_005  # stories that no recipe trains on
# How much likelier than the language stories must be, beyond chance, for a collapse; greedy ones are by 6 % and more.
_TOLERANCE = 0.02


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
        distinct_3=_distinct_3(texts),
    )


def _distinct_3(texts: Sequence[str]) -> float:
    return distinct_ngrams([text.split() for text in texts], 3) or 0.0


class StoryQuality:
    """The quality of sets of stories, for `sweep`: a product of three factors in [0, 1].

    * the share of stories that the grammar accepts;
    * 1 - |mean log-probability + entropy| / entropy, of the accepted ones;
    * their distinct 3-grams by those of as many stories of the language, at most 1.

    The third factor sees what the second cannot: where the language chooses evenly between names, the likeliest name
    is as likely as the others, and a generator that always takes it is not too probable. A set has collapsed if it is
    too probable, by more than 2 % and beyond chance (an interval of 99 %), and has fewer distinct 3-grams.

    Args:
        num_stories (`int`): in each set.
    """

    columns: tuple[str, ...] = ("valid_share", "log_prob", "distinct_3")
    description = "Quality: share of accepted stories x nearness of their exact log-probability x variety."

    def __init__(self, num_stories: int) -> None:
        real = story_language.sample(num_stories, _REFERENCE_SEED)
        self._entropy = story_language.entropy_per_token()
        self.reference = {"valid_share": 1.0, "log_prob": -self._entropy, "distinct_3": _distinct_3(real)}

    def measure(self, texts: Sequence[str]) -> Measured:
        figures = story_figures(texts, confidence=0.99)
        variety = figures.distinct_3 / self.reference["distinct_3"]
        gap = 1.0 if figures.gap is None else figures.gap / self._entropy
        too_probable = figures.log_prob_interval is not None and figures.log_prob_interval[0] > self._entropy * (
            _TOLERANCE - 1
        )
        return Measured(
            quality=figures.valid_share * max(1 - gap, 0.0) * min(variety, 1.0),
            collapsed=too_probable and variety < 1,
            figures=asdict(figures),
        )


def writes_stories(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the built-in stories, so that what its model writes can be measured exactly."""
    return tokenizer.get_vocab() == story_language.tokenizer().get_vocab()
