"""Reading: what a step wants to know of the distributions at its masked positions, a few rows at a time.

Logits are `(rows, vocabulary)`, the largest tensor of a step by far. Taken a few rows at a time, whatever is made of
them stays in the cache of the processor, and log-probabilities of all positions are never in memory together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .sampling import Sampling, log_probabilities
from .unmasking import AdaptiveCount, position_scores

# Logits that are read at a time: 4 MB of float32 on a CPU; elsewhere calls cost more than memory.
_AT_ONCE, _AT_ONCE_ON_DEVICE = 2**20, 2**28


@dataclass(frozen=True)
class Reading:
    """What was read from N distributions, each `(N,)` and float32, or None where nobody asked.

    Attributes:
        score (`torch.Tensor`): by the order, higher is earlier; see `unmasking.position_scores`.
        confidence, entropy (`torch.Tensor`): max p, and nats, for a rule of `unmasking.AdaptiveCount`.
        log_probs (`torch.Tensor` of shape `(N, V)`): for the rule that compares distributions.
    """

    score: Tensor | None = None
    confidence: Tensor | None = None
    entropy: Tensor | None = None
    log_probs: Tensor | None = None


def rows_at_once(logits: Tensor) -> Iterator[slice]:
    """Slices of `logits` (N, V) to be read one after another; at least one, if an empty one.

    >>> list(rows_at_once(torch.zeros(5, 2**19)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    at_once = _AT_ONCE if logits.device.type == "cpu" else _AT_ONCE_ON_DEVICE
    rows = max(at_once // max(logits.shape[1], 1), 1)
    return (slice(start, start + rows) for start in range(0, max(len(logits), 1), rows))


def read_distributions(
    logits: Tensor, order: str | None, adaptive: AdaptiveCount | None, deferred_id: int | None
) -> Reading:
    """Reads the distributions for the order and for the adaptive rule, whichever are given.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): any floating dtype, forbidden ids at -inf.
        order (`str`, *optional*): one that looks at the distribution.
        adaptive (`AdaptiveCount`, *optional*).
        deferred_id (`int`, *optional*): left out of the score, as if it had no probability.

    Raises:
        NonFiniteLogitsError: see `sampling.log_probabilities`.
    """
    if order is None and adaptive is None:
        return Reading()
    compares = adaptive is not None and adaptive.rule == "independent"
    counts = adaptive is not None and not compares
    whole = log_probabilities(logits) if compares else None
    columns: list[list[Tensor]] = [[], [], []]
    for rows in rows_at_once(logits):
        log_probs = log_probabilities(logits[rows]) if whole is None else whole[rows]
        if counts:
            columns[1].append(log_probs.amax(-1).exp())
            columns[2].append(-position_scores("entropy", log_probs))
        if order is not None:
            if deferred_id is not None:
                log_probs = log_probs.clone()
                log_probs[:, deferred_id] = -torch.inf
            columns[0].append(position_scores(order, log_probs))
    score, confidence, entropy = (torch.cat(column) if column else None for column in columns)
    return Reading(score, confidence, entropy, whole)


def draw_tokens(
    sampling: Sampling, logits: Tensor, u: Tensor | None = None, masked_share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A token for each row of `logits`, and its log-probability, neither tempered nor truncated: `(N,)` each.

    Arguments and errors as `Sampling.choose`; greedy sampling needs the logits alone.
    """
    tokens, chosen = [], []
    for rows in rows_at_once(logits):
        log_probs = log_probabilities(logits[rows])
        if u is None:
            token = sampling.choose_from(log_probs)
        else:
            token = sampling.choose_from(log_probs, u[rows], None if masked_share is None else masked_share[rows])
        tokens.append(token)
        chosen.append(log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1))
    return torch.cat(tokens), torch.cat(chosen)
