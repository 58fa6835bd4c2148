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

# Logits that are read at a time: 1 MB of float32 on a CPU; elsewhere calls cost more than memory.
_AT_ONCE, _AT_ONCE_ON_DEVICE = 2**18, 2**28


@dataclass(frozen=True)
class Reading:
    """What was read from N distributions, each `(N,)` and float32, or None where nobody asked.

    Attributes:
        score (`torch.Tensor`): by the order, higher is earlier; see `unmasking.position_scores`.
        confidence, entropy (`torch.Tensor`): max p, and nats, for a rule of `unmasking.AdaptiveCount`.
        log_probs (`torch.Tensor` of shape `(N, V)`): for the rule that compares distributions.
        likeliest (`torch.Tensor`): log-probability of the most probable token, deferred or not.
    """

    score: Tensor | None = None
    confidence: Tensor | None = None
    entropy: Tensor | None = None
    log_probs: Tensor | None = None
    likeliest: Tensor | None = None


def rows_at_once(logits: Tensor, count: int | None = None) -> Iterator[slice]:
    """Slices of `count` rows, by default all of `logits` (N, V), to be read in turn; at least one, if an empty one.

    >>> list(rows_at_once(torch.zeros(5, 2**17)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    at_once = _AT_ONCE if logits.device.type == "cpu" else _AT_ONCE_ON_DEVICE
    rows = max(at_once // max(logits.shape[1], 1), 1)
    return (slice(start, start + rows) for start in range(0, max(len(logits) if count is None else count, 1), rows))


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
    scores, likeliest, entropies = [], [], []
    for rows in rows_at_once(logits):
        log_probs = log_probabilities(logits[rows]) if whole is None else whole[rows]
        likeliest.append(log_probs.amax(-1))
        if counts:
            entropies.append(-position_scores("entropy", log_probs))
        if order is not None:
            if deferred_id is not None:
                log_probs = log_probs if whole is None else log_probs.clone()
                log_probs[:, deferred_id] = -torch.inf
            elif order == "confidence":
                scores.append(likeliest[-1])
                continue
            scores.append(position_scores(order, log_probs))
    top = torch.cat(likeliest)
    return Reading(
        score=torch.cat(scores) if scores else None,
        confidence=top.exp() if counts else None,
        entropy=torch.cat(entropies) if counts else None,
        log_probs=whole,
        likeliest=top,
    )


def draw_tokens(
    sampling: Sampling,
    logits: Tensor,
    u: Tensor | None = None,
    masked_share: Tensor | None = None,
    of_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A token for each row of `logits`, and its log-probability, neither tempered nor truncated: `(N,)` each.

    Arguments and errors as `Sampling.choose`; greedy sampling needs the logits alone. `of_rows` `(n,)` says for which
    rows, by default all; there are n numbers and shares then.
    """
    tokens, chosen = [], []
    for rows in rows_at_once(logits, None if of_rows is None else len(of_rows)):
        log_probs = log_probabilities(logits[rows if of_rows is None else of_rows[rows]])
        if u is None:
            token = sampling.choose_from(log_probs)
        else:
            token = sampling.choose_from(log_probs, u[rows], None if masked_share is None else masked_share[rows])
        tokens.append(token)
        chosen.append(log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1))
    return torch.cat(tokens), torch.cat(chosen)


def likeliest_tokens(logits: Tensor, of_rows: Tensor) -> Tensor:
    """The most probable token, `(n,)`, of the rows `of_rows` `(n,)` of `logits` (N, V); the lowest id of equals."""
    parts = rows_at_once(logits, len(of_rows))
    return torch.cat([logits[of_rows[rows]].float().argmax(-1) for rows in parts])
