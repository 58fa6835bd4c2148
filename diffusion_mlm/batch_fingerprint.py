"""The rows behind a batch, in words that lead back to them: their places in the data set, and digests of their ids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .data_sampler import WholeBatchSampler
from .randomness import make_key

_MAX_NAMED = 8


def row_fingerprint(input_ids: Any) -> str:
    """16 hexadecimal digits that stand for the token ids of a row, padding left out; the same on every machine.

    Example:
        >>> [row["input_ids"] for row in [{"input_ids": [0, 7, 2]}] if row_fingerprint(row["input_ids"])[:4] == "f711"]
        []
    """
    ids = torch.as_tensor(input_ids).to("cpu", torch.int64)
    return f"{make_key('row', ids.numpy().tobytes()) & (2**64 - 1):016x}"


def rows_of_step(sampler: Any, step: int, places: Sequence[int]) -> list[int] | None:
    """Indices in the data set of the rows at `places` of the global batch of an optimizer step, the first being 0.

    Returns:
        `list[int]`, or None where the order of rows is not that of `WholeBatchSampler`, such as that of a stream.
    """
    if not isinstance(sampler, WholeBatchSampler):
        return None
    epoch, step_of_epoch = divmod(step, len(sampler) // sampler.global_batch)
    sampler.set_epoch(epoch)
    order = list(sampler)
    return [order[step_of_epoch * sampler.global_batch + place] for place in places]


def name_rows(indices: Sequence[int] | None, fingerprints: Sequence[str]) -> str:
    """Such as "rows 7, 12 of the training set, with the fingerprints ab.., cd..", of at most 8 rows."""
    parts = []
    if indices is not None:
        parts.append(f"rows {_listed([str(index) for index in indices])} of the training set")
    if fingerprints:
        parts.append(f"with the fingerprints {_listed(fingerprints)} (`diffusion_mlm.batch_fingerprint`)")
    return ", ".join(parts) or "rows that are not known"


def bad_rows(token_nll: Tensor, rows: Tensor) -> list[int]:
    """Rows of a micro-batch with a token whose nats are not finite; all of them if there is no such token.

    Args:
        token_nll (`torch.Tensor` of shape `(N,)`): nats of the scored tokens.
        rows (`torch.Tensor` of shape `(B, L)`, bool): where they are scored.
    """
    counts = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    counts.index_add_(0, rows.nonzero()[:, 0], (~torch.isfinite(token_nll)).long())
    return counts.nonzero()[:, 0].tolist() or list(range(len(rows)))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
