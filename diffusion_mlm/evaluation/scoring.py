"""How likely single texts are, and which of several is the likelier."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import NonFiniteLossError
from ..randomness import make_key
from .interval import group_standard_error
from .row_predictor import make_predictor, writes_ends
from .text_likelihood import default_row_length, require_row_length
from .text_nats import nats_of_texts, require_estimator
from .text_rows import one_per_row

_GROUPS = 8  # independent estimates of the bound, whose spread is its standard error


@dataclass(frozen=True)
class ScoredText:
    """How likely one text is.

    Attributes:
        text, prefix (`str`): `prefix` stood before it, given.
        nats (`float`): -log p of the text, or a bound that is no smaller; infinite for what the model excludes.
        standard_error (`float`, *optional*): of `nats`, from the masks that were drawn; 0 for `chain`, None for
            `importance`.
        num_tokens (`int`): scored; a run of `</s>` that fills a row counts once.
        num_bytes (`int`, *optional*): UTF-8 bytes of the text, without those of unknown words; None if that cannot be
            told.
        num_unknown (`int`): words or characters that the tokenizer does not know, which are not scored.
        num_forwards (`int`): calls of the model on a row of this text.
        scores_end (`bool`): whether the end of the text is one of the tokens.
        estimator (`str`): `bound`, `chain` or `importance`.
        groups (`tuple[float, ...]`): independent estimates whose mean is `nats`; of two texts with as many tokens the
            same group has the same masks.
    """

    text: str
    prefix: str
    nats: float
    standard_error: float | None
    num_tokens: int
    num_bytes: int | None
    num_unknown: int
    num_forwards: int
    scores_end: bool
    estimator: str
    groups: tuple[float, ...] = field(repr=False)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None

    def nats_above(self, other: "ScoredText") -> tuple[float, float | None]:
        """By how many nats this text is less likely than `other`, and the standard error of that.

        Where both have as many tokens, much of the noise of the masks, which are the same, goes out.
        """
        difference = self.nats - other.nats
        if self.estimator == "chain":
            return difference, 0.0
        if len(self.groups) < 2 or not math.isfinite(difference):
            return difference, None
        groups = torch.tensor(self.groups, dtype=torch.float64) - torch.tensor(other.groups, dtype=torch.float64)
        return difference, float(group_standard_error(groups))

    def to_json(self) -> str:
        """One line of strict JSON, in ASCII; what is infinite is null."""
        found = {name: value for name, value in vars(self).items() if name != "groups"}
        found |= {"nats_per_token": self.nats_per_token, "bits_per_byte": self.bits_per_byte}
        finite = {
            name: None if isinstance(value, float) and math.isinf(value) else value for name, value in found.items()
        }
        return json.dumps(finite, allow_nan=False)


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    *,
    prefix: str = "",
    beginning: bool = False,
    estimator: str = "bound",
    draws: int = 64,
    orders: int = 8,
    max_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[ScoredText]:
    """How likely each text is; the likeliest has the least `nats`.

    The same masks are used for all texts of one length, so that what they have in common plays little part in which of
    them is likelier. A text that does not fit into a row is scored window by window, each token once.

    Args:
        model, tokenizer: a masked language model, or anything called like one, and its tokenizer.
        texts (`str` or sequence of them): alternatives, or texts that have nothing to do with each other.
        prefix (`str`): stands before each text, given and not scored: "The capital of France is" for the texts
            " Paris" and " London".
        beginning (`bool`): the texts are beginnings of something longer, and what follows is left open: no end is
            scored, and masks stand behind the text up to the length of a row. Of use for sentences, where a model
            has learned the ends of whole documents.
        estimator (`str`): `bound` is the negative ELBO by `draws` masks; `chain` the exact -log p of writing from left
            to right, a forward for every token; `importance` lies between -log p and the bound, by `orders` random
            orders, a forward for every token of each.
        draws (`int`): at least 2, rounded up to a multiple of 8 from there on.
        max_length (`int`, *optional*): tokens of a row; as the model was trained by default.
        batch_size (`int`): rows per call of the model; it changes nothing else.
        seed (`int`): another one gives other masks and orders.

    Returns:
        `list[ScoredText]`, in the order of `texts`.

    Raises:
        ValueError: an argument is impossible, or a text has no token that could be scored.
        NonFiniteLossError: the model answers NaN.

    Example:
        >>> from diffusion_mlm import score, story_language
        >>> first, second = story_language.sample(2, seed=0)
        >>> exact = story_language.ExactDenoiser()
        >>> scored = score(exact, story_language.tokenizer(), [first, second], estimator="chain")
        >>> [abs(text.nats + float(story_language.log_prob([text.text]))) < 1e-3 for text in scored]
        [True, True]
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    _require(texts, prefix)
    require_estimator(estimator, draws, orders, batch_size)
    scores_end = writes_ends(model)
    length = default_row_length(model, tokenizer) if max_length is None else max_length
    length = require_row_length(model, tokenizer, length)
    predictor = make_predictor(model, tokenizer, scores_end)
    if beginning:
        predictor.require_masks("beginning", beginning)
    open_with = predictor.mask_id if beginning else None
    cut = [one_per_row([text], tokenizer, length, scores_end, prefix, open_with) for text in texts]
    keys = torch.full((len(texts),), make_key("score", seed))
    was_training = model.training
    model.eval()
    try:
        found = nats_of_texts(
            predictor,
            cut,
            keys,
            estimator,
            draws=draws,
            num_groups=min(_GROUPS, draws),
            orders=orders,
            batch_size=batch_size,
        )
    finally:
        model.train(was_training)
    scored = []
    for place, (text, rows) in enumerate(zip(texts, cut, strict=True)):
        if not found.num_tokens[place]:
            raise ValueError(
                f"`texts` holds {text!r}, which has no token that could be scored: it is empty, or unknown to this "
                f"tokenizer."
            )
        values = found.groups[place]
        if values.isnan().any():
            raise NonFiniteLossError(f"The likelihood of {text!r} is NaN: the model's logits are. Take another one.")
        error = float(group_standard_error(values)) if estimator == "bound" else 0.0
        scored.append(
            ScoredText(
                text=text,
                prefix=prefix,
                nats=float(values.mean()),
                standard_error=error if estimator != "importance" and math.isfinite(error) else None,
                num_tokens=int(found.num_tokens[place]),
                num_bytes=rows.num_bytes,
                num_unknown=rows.num_unknown,
                num_forwards=int(found.num_forwards[place]),
                scores_end=scores_end and not beginning,
                estimator=estimator,
                groups=tuple(values.tolist()),
            )
        )
    return scored


def _require(texts: Sequence[object], prefix: object) -> None:
    if not texts:
        raise ValueError("`texts` is empty: pass at least one text.")
    if not isinstance(prefix, str):
        raise ValueError(f"`prefix` must be a string, not {type(prefix).__name__}.")
