"""What single texts cost in nats: estimates for each of many texts, from rows that go through the model in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import fold_in
from .likelihood import count_tokens
from .row_predictor import RowPredictor
from .text_rows import ScoredRow, TextRows, row_batches
from .trajectory import chain_of_rows, fixed_ranks, importance_bound, random_chains_of_rows

SCORES = ("bound", "chain", "importance")


@dataclass(frozen=True)
class TextNats:
    """What some texts cost.

    Attributes:
        groups (`torch.Tensor` of shape `(num_texts, G)`, float64): independent estimates of -log p of each text, or of
            a bound, in nats; 0 where nothing is scored. Their mean is the estimate.
        num_tokens, num_forwards (`torch.Tensor` of shape `(num_texts,)`, int64): tokens that were scored, a filling
            run of `</s>` as one, and calls of the model on a row of the text.
    """

    groups: Tensor
    num_tokens: Tensor
    num_forwards: Tensor


def require_estimator(estimator: str, draws: int, orders: int, batch_size: int) -> None:
    """Raises ValueError for an estimator that does not exist, or numbers that are impossible."""
    if estimator not in SCORES:
        raise ValueError(f"`estimator` must be one of {', '.join(SCORES)}, not {estimator!r}.")
    for name, value, least in (("draws", draws, 2), ("orders", orders, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, not {value!r}.")


def nats_of_texts(
    predictor: RowPredictor,
    texts: Sequence[TextRows],
    keys: Tensor,
    estimator: str,
    *,
    draws: int = 64,
    num_groups: int = 1,
    orders: int = 8,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> TextNats:
    """Estimates for each text by its rows, whatever rows of other texts stand beside them.

    Args:
        predictor (`RowPredictor`): of a model in evaluation mode.
        texts (sequence of `TextRows`): each one text, in one window or several.
        keys (`torch.Tensor` of shape `(num_texts,)`, int64): of the masks; texts of equal keys and equally many tokens
            at equal places get equal masks.
        estimator (`str`): `bound`, `chain` or `importance`, see `scoring.score`.
        draws (`int`), num_groups (`int`): of the bound: masks per window, rounded up to a multiple of the number of
            independent estimates, each of which has its share of them.
        orders (`int`): of `importance`.
        batch_size (`int`): rows per call of the model; no effect on the result.
        progress (callable, *optional*): called after each batch with its number of rows: as many for each window as
            there are estimates.
    """
    if estimator != "bound":
        predictor.require_masks("estimator", estimator)
    groups = num_groups if estimator == "bound" else 1
    draws = -(-draws // groups)
    # The place of a window in its text is part of the key, so that windows of one length get other masks.
    jobs = [(place, window, row) for place, rows in enumerate(texts) for window, row in enumerate(rows.rows)]
    nats = torch.zeros(len(texts), groups, dtype=torch.float64)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    forwards = torch.zeros_like(tokens)
    shared: dict[str, Any] = {"mask_id": predictor.mask_id, "forbidden_ids": predictor.forbidden_ids}
    # A row for each group of the bound; the other estimators make many rows of one by themselves.
    numbered = [
        ScoredRow(row.ids, row.first, job * groups + group)
        for job, (_, _, row) in enumerate(jobs)
        for group in range(groups)
    ]
    for ids, maskable, numbers in row_batches(numbered, predictor.never_scored, batch_size):
        job, group = numbers // groups, numbers % groups
        text = torch.tensor([jobs[index][0] for index in job.tolist()])
        window = torch.tensor([jobs[index][1] for index in job.tolist()])
        tokens.index_add_(0, text, count_tokens(ids, maskable, predictor.end_id) * (group == 0))
        steps = {"bound": torch.full_like(text, draws), "chain": maskable.sum(-1)}
        forwards.index_add_(0, text, steps.get(estimator, maskable.sum(-1) * orders))
        of_rows = fold_in(fold_in(keys[text], window), group).to(predictor.device)
        ids, maskable = ids.to(predictor.device), maskable.to(predictor.device)
        if estimator == "bound":
            found = predictor.bound_of_rows(ids, maskable, draws=draws, keys=of_rows).nats
        elif estimator == "chain":
            ranks = fixed_ranks("left_to_right", maskable)
            found = chain_of_rows(predictor, ids, maskable, ranks, batch_size=batch_size, **shared)
        else:
            few: dict[str, Any] = {"orders": orders, "batch_size": batch_size, "keys": of_rows}
            found = importance_bound(random_chains_of_rows(predictor, ids, maskable, **few, **shared))
        nats.index_put_((text, group), found.cpu(), accumulate=True)
        if progress is not None:
            progress(len(ids))
    return TextNats(nats, tokens, forwards)
