"""Guidance by a score: candidates are put on the canvas one by one, and what a score says of it moves their logits.

What is asked for (a sentiment, a topic, a length, a rhyme) need not be known to the model that writes, and nothing is
trained. Guidance by the given text itself is a setting, `guidance_scale`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .denoising_step import GuideLogits
from .modeling import context_length, unwrap
from .sampling import keep_top_k

# canvases (n, L) int64 -> log-scores (n,), each row by itself
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CandidateGuidance:
    """Adds `scale` times the score of a canvas to the logit of the token that makes it so.

    Where a token is about to be drawn, each of the `num_candidates` most probable ones is put on the canvas in turn,
    the others are dropped, and the draw is from p(v) * exp(score) ** scale. If the score is log p(y | canvas), that is
    the exact p(v | y) among the candidates, for one token per step and `scale` 1 (D-CBG of Schiff et al. 2024,
    arXiv:2412.10193). Of tokens revealed in one step none sees the others.

    Which position comes next does not depend on it, nor does the confidence of a step. Temperature and truncation come
    after it. A step makes `num_candidates` canvases for each token it reveals (for each masked position, if tokens are
    drawn before places are chosen); `num_forwards` does not count them.

    Args:
        score (`Callable`): takes canvases `(n, L)`, int64, and returns log-scores `(n,)`: a higher one is better, -inf
            rules a candidate out. A canvas is a whole row as the model reads it: start token, prefix, new tokens,
            what closes the row, and the mask token for all that is still open; never padding. Rows must be judged
            one by one, for a text not to depend on its batch.
        num_candidates (`int`): at least 2.
        scale (`float`): above 0.
        batch_size (`int`): canvases per call of `score`.

    Raises:
        ValueError: at construction, if a value is impossible; when called, if scores have the wrong shape, are NaN or
            +inf, or rule out all candidates of a position.

    A score that wants token 2 wherever it can have it:

    >>> guidance = CandidateGuidance(lambda canvases: canvases.eq(2).sum(-1).float(), num_candidates=2)
    >>> guidance(torch.tensor([[0, 9, 9]]), torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.5]]))
    tensor([[1.0000,   -inf, 1.5000]])
    """

    score: Score
    num_candidates: int = 8
    scale: float = 1.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ValueError(f"`score` must be a function of canvases, not {type(self.score).__name__}.")
        for name, least in (("num_candidates", 2), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        if not number or not 0 < self.scale < math.inf:
            raise ValueError(
                f"`scale` must be a finite number above 0, got {self.scale!r}: to steer away, negate scores."
            )

    @classmethod
    def from_classifier(
        cls,
        classifier: nn.Module,
        label: int | str,
        num_candidates: int = 8,
        scale: float = 1.0,
        batch_size: int = 256,
    ) -> "CandidateGuidance":
        """Guidance towards a label of a sequence classifier of transformers, which goes into evaluation mode.

        It reads the ids of the model that writes, so it needs the same tokenizer: one fine-tuned from the same
        checkpoint has it. It reads masks too. One that has learned from clean text alone says little of a canvas of
        masks: fine-tune it on texts masked at all rates, or give `score` a function that fills the masks first.

        Args:
            classifier (`torch.nn.Module`): such as `RobertaForSequenceClassification`. With several labels at once
                (`problem_type` is `"multi_label_classification"`) the score is log sigmoid, else log softmax.
            label (`int` or `str`): its number, or its name in `config.label2id`.
            num_candidates, scale, batch_size: see `CandidateGuidance`.

        Raises:
            ValueError: there is no such label, or a single one (a regression); or, when called, the classifier has
                a smaller vocabulary or a shorter context than the canvases need.
        """
        return cls(_label_score(classifier, label), num_candidates, scale, batch_size)

    def __call__(self, canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
        """Guided logits `(N, V)`.

        Args:
            canvas (`torch.Tensor` of shape `(N, L)`, int64): of each row of logits.
            position (`torch.Tensor` of shape `(N,)`, int64): where its token will stand.
            logits (`torch.Tensor` of shape `(N, V)`).
        """
        # 1. The candidates, and their canvases, (n, L). What is impossible anyway is no candidate.
        guided = keep_top_k(logits, self.num_candidates).clone()
        row, token = guided.isfinite().nonzero().unbind(-1)
        scores = torch.zeros(len(row), dtype=guided.dtype, device=guided.device)
        for some in torch.arange(len(row), device=row.device).split(self.batch_size):
            canvases = canvas[row[some]]
            canvases[torch.arange(len(some), device=row.device), position[row[some]]] = token[some]
            scores[some] = _checked_scores(self.score(canvases), len(some)).to(guided)
        # 2. Their logits move.
        guided[row, token] += self.scale * scores
        lost = int(guided.isneginf().all(-1).sum())
        if lost:
            raise ValueError(
                f"`score` is -inf for all {self.num_candidates} candidates of {lost} positions: raise "
                f"`num_candidates`, or return finite scores."
            )
        return guided


def require_guidance(guidance: GuideLogits | None) -> None:
    """Raises ValueError unless it is None or a function of canvases, positions and logits."""
    if guidance is not None and (isinstance(guidance, PreTrainedModel) or not callable(guidance)):
        raise ValueError(
            f"`guidance` must be a function, not {type(guidance).__name__}: make one of a score by "
            f"`CandidateGuidance(score)`, of a classifier by `CandidateGuidance.from_classifier(classifier, label)`."
        )


def _checked_scores(scores: Tensor, expected: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (expected,):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"type {type(scores).__name__}"
        raise ValueError(f"`score` must return a tensor of shape ({expected},), one score per canvas, not of {found}.")
    if bool(scores.isnan().any() | scores.eq(math.inf).any()):
        raise ValueError("`score` returned NaN or +inf: return finite log-scores, or -inf to rule a candidate out.")
    return scores


def _label_score(classifier: nn.Module, label: int | str) -> Score:
    """The logarithm of the probability that a classifier gives to a label."""
    config = getattr(unwrap(classifier), "config", None)
    names = dict(getattr(config, "label2id", None) or {})
    number = names.get(label) if isinstance(label, str) else label
    known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names)
    if not known or len(names) < 2:
        described = ", ".join(f"{index} ({name!r})" for name, index in list(names.items())[:8]) or "none"
        raise ValueError(f"`label` is {label!r}, but must be one of two or more; this classifier's are {described}.")
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    vocab_size, limit = getattr(config, "vocab_size", None), context_length(unwrap(classifier))
    classifier.eval()
    parameter = next(classifier.parameters(), None)

    @torch.no_grad()
    def score(canvases: Tensor) -> Tensor:
        if canvases.shape[1] > limit:
            raise ValueError(
                f"The classifier reads {limit} tokens, a canvas has {canvases.shape[1]}: shorten the text."
            )
        if vocab_size is not None and int(canvases.max()) >= vocab_size:
            raise ValueError(
                f"The classifier knows {vocab_size} tokens, a canvas holds number {int(canvases.max())}: take one "
                f"with the tokenizer of the model that writes."
            )
        ids = canvases if parameter is None else canvases.to(parameter.device)
        logits = classifier(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        log_probs = nn.functional.logsigmoid(logits) if several else torch.log_softmax(logits, dim=-1)
        return log_probs[:, number]

    return score
