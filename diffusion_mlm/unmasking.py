"""Unmasking: which masked positions a step reveals, and which revealed ones it sends back to mask.

An order gives every masked position a score, higher is earlier; `take_highest` turns scores into positions. The scores
look at the distribution over tokens, never at a token drawn from it: with an exact model and one position per step,
every such order samples the true distribution, and ranking by the drawn token does not.
"""

import torch
from torch import Tensor

from .randomness import uniform

ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")
ORDERS_BEFORE_LOGITS = ("random", "left_to_right")  # need no forward to choose, so the forward can skip the other rows
REMASKS = ("none", "renoise")


def position_scores(order: str, log_probs: Tensor) -> Tensor:
    """Score of each position from the model's distribution there; higher is revealed earlier.

    | order | score | source |
    |---|---|---|
    | `confidence` | log max p | Chang et al. 2022, arXiv:2202.04200 |
    | `margin` | p1 - p2, the two largest | Kim et al. 2025, arXiv:2502.06768 |
    | `entropy` | sum of p log p: the surest first | Ben-Hamu et al. 2025, arXiv:2505.24857 |

    Args:
        order (`str`): one of the above.
        log_probs (`torch.Tensor` of shape `(rows, vocabulary)`): log-probabilities in nats, neither tempered nor
            truncated (truncation inflates max p), forbidden ids at -inf.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if order == "confidence":
        return log_probs.amax(-1)
    if order == "margin":
        largest = torch.softmax(log_probs, dim=-1).topk(min(2, log_probs.shape[-1])).values
        return largest[:, 0] - largest[:, 1:].sum(-1)
    if order == "entropy":
        return (torch.softmax(log_probs, dim=-1) * log_probs.masked_fill(log_probs.isneginf(), 0.0)).sum(-1)
    raise ValueError(f"`order` must be one of confidence, margin, entropy to be read from logits, got {order!r}.")


def scores_before_logits(order: str, keys: Tensor, length: int) -> Tensor:
    """Score of each position for the orders that do not look at the model.

    Args:
        order (`str`): `"random"`, uniformly random and keyed, or `"left_to_right"`.
        keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row.
        length (`int`): positions per row.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, float64.
    """
    if order == "random":
        return uniform(keys, length)
    if order == "left_to_right":
        return -torch.arange(length, dtype=torch.float64, device=keys.device).expand(len(keys), -1)
    raise ValueError(f"`order` must be one of {', '.join(ORDERS_BEFORE_LOGITS)} without logits, got {order!r}.")


def take_highest(scores: Tensor, eligible: Tensor, counts: Tensor) -> Tensor:
    """The `counts` highest-scoring eligible positions of each row; equal scores go by position, first the left.

    Args:
        scores (`torch.Tensor` of shape `(batch, length)`): anywhere, also where not eligible.
        eligible (`torch.Tensor` of shape `(batch, length)`, bool): positions that may be taken.
        counts (`torch.Tensor` of shape `(batch,)`, int64): how many to take; more than eligible takes them all.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, bool, with exactly min(count, eligible) per row.

    >>> scores, eligible = torch.tensor([[0.3, 0.9, 0.3, 0.7]]), torch.tensor([[True, False, True, True]])
    >>> take_highest(scores, eligible, counts=torch.tensor([2]))
    tensor([[ True, False, False,  True]])
    """
    ranking = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = eligible.gather(-1, ranking)
    taken = ranked & (ranked.cumsum(-1) <= counts.unsqueeze(-1))
    return torch.zeros_like(eligible).scatter(-1, ranking, taken)


def select_remasked(remask: str, to_fill: Tensor, is_masked: Tensor, num_visible: Tensor, keys: Tensor) -> Tensor:
    """Generated positions that this step sends back to mask.

    The step then reveals as many of the positions that were masked when it began as brings the visible ones to
    `num_visible`, so remasking changes which positions are visible, never how many.

    | remask | rule |
    |---|---|
    | `none` | nothing |
    | `renoise` | `num_visible` positions, uniformly random among all that are generated, stay or become visible |

    `renoise` with order `random` is "predict everything, then mask again at the next rate": each visible token returns
    to mask with probability sigma = 1 - alpha_s, alpha_s being the next visible share (equation 7 of Wang et al. 2025,
    ReMDM, arXiv:2503.00307). It ends by itself: at the last step `num_visible` is everything.

    Args:
        remask (`str`): the rule.
        to_fill (`torch.Tensor` of shape `(batch, length)`, bool): positions that are generated.
        is_masked (`torch.Tensor` of shape `(batch, length)`, bool): those of them that are masked now.
        num_visible (`torch.Tensor` of shape `(batch,)`, int64): how many of them shall be visible after the step.
        keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, bool: a part of `to_fill & ~is_masked`.
    """
    if remask == "none":
        return torch.zeros_like(to_fill)
    if remask == "renoise":
        stays = take_highest(uniform(keys, to_fill.shape[-1]), to_fill, num_visible)
        return to_fill & ~is_masked & ~stays
    raise ValueError(f"`remask` must be one of {', '.join(REMASKS)}, got {remask!r}.")
