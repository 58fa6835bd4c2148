"""How likely continuations are, each given a context of its own: what benchmarks ask of a language model."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import NonFiniteLossError
from ..randomness import make_key
from .row_predictor import RowPredictor, make_predictor, writes_ends
from .text_likelihood import default_row_length, require_row_length
from .text_nats import nats_of_texts, require_estimator
from .text_rows import MASKS_BEHIND, ScoredRow, TextRows, before_masks, row_batches
from .trajectory import greedy_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredContinuation:
    """How likely one continuation is.

    Attributes:
        nats (`float`): -log p of its known tokens, or a bound; 0 if it has none, infinite for what the model excludes.
        is_greedy (`bool`): whether filling its masks from left to right, each with the likeliest token, gives it. A
            masked model can be asked in any order, and a sampler with another order may write something else. False if
            some of it is unknown.
        num_tokens (`int`): that were scored; never a special one.
        num_unknown (`int`): words or characters that the tokenizer does not know. They are seen and not scored.
    """

    nats: float
    is_greedy: bool
    num_tokens: int
    num_unknown: int

    @property
    def log_probability(self) -> float:
        """Of the whole continuation, in nats: -inf if the tokenizer does not know some of it.

        The model cannot write what it has no token for; without that, an answer would be the likelier the less of it
        is known. Nothing, and what a tokenizer makes nothing of, is certain: 0.
        """
        return -math.inf if self.num_unknown else -self.nats


def score_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    groups: Sequence[str] | None = None,
    estimator: str = "bound",
    draws: int = 32,
    orders: int = 8,
    masks_behind: int | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScoredContinuation]:
    """How likely each continuation is after its context: only its own tokens are masked and scored.

    Context and continuation are one text for the tokenizer; a token that holds characters of both is scored. A
    context too long to stand before its continuation is cut from the left, with one warning for all; a continuation
    too long for that is scored window by window, each token once.

    Args:
        model, tokenizer: a masked language model, or anything called like one, and its tokenizer.
        pairs (sequence of (context, continuation)): a context may be empty.
        groups (sequence of `str`, *optional*): one name for each pair. Pairs of a group, such as the answers to a
            question, have the same masks if they are equally long, so that what they have in common plays little part
            in which is likelier; other groups have other masks. By default pairs with one context are a group.
        estimator (`str`), draws (`int`), orders (`int`): see `scoring.score`. A continuation of one token takes one
            forward by any of them, and is exact.
        masks_behind (`int`, *optional*): how many masks stand behind the continuation, so that nothing tells the model
            where it ends. By default 16, and for a model that writes ends of texts as many as fill a row. With 0 a row
            ends there (with `</s>`, unless the model writes ends), which says that the text does.
        max_length (`int`, *optional*): tokens of a row; as the model was trained by default.
        batch_size (`int`): rows per call of the model; it changes nothing else.
        seed (`int`): another one gives other masks and orders.
        progress (callable, *optional*): called with the number of rows done and that of all.

    Returns:
        `list[ScoredContinuation]`, in the order of `pairs`.

    Raises:
        ValueError: an argument is impossible, or a text is no valid string.
        NonFiniteLossError: the model answers NaN.

    Example:
        >>> from diffusion_mlm import story_language
        >>> exact = story_language.ExactDenoiser()
        >>> pair = ("Once upon a time,", " Mia lived near the lake")
        >>> (scored,) = score_continuations(exact, story_language.tokenizer(), [pair], estimator="chain")
        >>> scored.num_tokens, scored.is_greedy
        (5, False)
    """
    require_estimator(estimator, draws, orders, batch_size)
    if groups is not None and len(groups) != len(pairs):
        raise ValueError(f"`groups` names {len(groups)} groups for {len(pairs)} `pairs`: name one for each.")
    if masks_behind is not None and (type(masks_behind) is not int or masks_behind < 0):
        raise ValueError(f"`masks_behind` must be a whole number of at least 0, not {masks_behind!r}.")
    scores_end = writes_ends(model)
    length = default_row_length(model, tokenizer) if max_length is None else max_length
    length = require_row_length(model, tokenizer, length)
    predictor = make_predictor(model, tokenizer, scores_end)
    if masks_behind is None and not scores_end:
        masks_behind = MASKS_BEHIND
    behind: dict[str, Any] = {"mask_id": predictor.mask_id, "num_masks": masks_behind}
    cut = [
        before_masks(continuation, tokenizer, length, scores_end, context, **behind) for context, continuation in pairs
    ]
    _warn_if_cut(cut, length)
    names = [context for context, _ in pairs] if groups is None else groups
    keys = torch.tensor([make_key("continuations", seed, name) for name in names], dtype=torch.int64)
    # What is one token long has no order, and every mask of it is the same: all estimators agree on its chain.
    num_maskable = torch.tensor([_num_maskable(rows, predictor.never_scored) for rows in cut])
    by_chain = num_maskable <= 1
    nats = torch.zeros(len(cut), dtype=torch.float64)
    is_greedy = torch.ones(len(cut), dtype=torch.bool)
    planned, done = 2 * sum(len(rows.rows) for rows in cut), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, planned)

    was_training = model.training
    model.eval()
    try:
        for name, chosen in (("chain", by_chain), (estimator, ~by_chain)):
            places = chosen.nonzero().squeeze(-1)
            found = nats_of_texts(
                predictor,
                [cut[place] for place in places.tolist()],
                keys[places],
                name,
                draws=draws,
                orders=orders,
                batch_size=batch_size,
                progress=advance,
            )
            nats[places] = found.groups.mean(-1)
        windows = [ScoredRow(row.ids, row.first, place) for place, rows in enumerate(cut) for row in rows.rows]
        for ids, maskable, place in row_batches(windows, predictor.never_scored, batch_size):
            of_rows = _greedy(predictor, ids, maskable)
            is_greedy[place[~of_rows]] = False
            advance(len(ids))
    finally:
        model.train(was_training)
    if nats.isnan().any():
        context, continuation = pairs[int(nats.isnan().nonzero()[0])]
        raise NonFiniteLossError(
            f"The likelihood of {continuation!r} after {context[-40:]!r} is NaN: the model's logits are. Take another "
            f"one."
        )
    return [
        ScoredContinuation(
            nats=float(nats[place]),
            is_greedy=bool(is_greedy[place]) and not rows.num_unknown,
            num_tokens=int(num_maskable[place]),
            num_unknown=rows.num_unknown,
        )
        for place, rows in enumerate(cut)
    ]


def _warn_if_cut(texts: Sequence[TextRows], length: int) -> None:
    cut = sum(rows.num_cut for rows in texts)
    if cut:
        logger.warning(
            "%d of %d contexts do not fit into rows of %d tokens with what follows them, and are cut from the left.",
            cut,
            len(texts),
            length,
        )


def _num_maskable(rows: TextRows, never_scored: Tensor) -> int:
    never = set(never_scored.tolist())
    return sum(token not in never for row in rows.rows for token in row.ids[row.first :])


def _greedy(predictor: RowPredictor, ids: Tensor, maskable: Tensor) -> Tensor:
    found = greedy_rows(
        predictor,
        ids.to(predictor.device),
        maskable.to(predictor.device),
        mask_id=predictor.mask_id,
        forbidden_ids=predictor.forbidden_ids,
    )
    return found.cpu()
