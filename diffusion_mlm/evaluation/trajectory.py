"""Likelihoods of generation in steps: a fixed order, random orders, several tokens a step.

A trajectory reveals the n maskable tokens of a row in some order. What stands on the way are canvases: the first v
tokens of the order are visible, the rest is masked. All canvases of a text are known beforehand, so they go through
the model in batches.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..objectives import token_negative_log_likelihood
from ..randomness import fold_in, uniform
from ..schedules import Schedule, unmask_counts
from .likelihood import PredictLogits, row_keys

FIXED_ORDERS = ("left_to_right", "right_to_left")


def fixed_ranks(order: str, maskable: Tensor) -> Tensor:
    """When each maskable position is revealed in an order that is the same for all rows: 0 is first.

    Args:
        order (`str`): `left_to_right` or `right_to_left`.
        maskable (`torch.BoolTensor` of shape `(B, L)`).

    Returns:
        `torch.Tensor` of shape `(B, L)`, int64; what stands at other positions has no meaning.

    Raises:
        ValueError: the order is unknown.
    """
    if order not in FIXED_ORDERS:
        raise ValueError(f"`order` must be one of {', '.join(FIXED_ORDERS)}, not {order!r}.")
    ranks = maskable.cumsum(-1) - 1
    return ranks if order == "left_to_right" else maskable.sum(-1, keepdim=True) - 1 - ranks


def random_ranks(keys: Tensor, maskable: Tensor) -> Tensor:
    """When each maskable position is revealed in a uniformly random order, one for each key; shapes as there."""
    noise = uniform(keys, maskable.size(1)).masked_fill(~maskable, 2.0)
    return noise.argsort(dim=-1, stable=True).argsort(-1)


@torch.no_grad()
def canvas_nats(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    ranks: Tensor,
    canvases: Tensor,
    *,
    mask_id: int,
    forbidden_ids: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Summed cross-entropy of some masked tokens of each of C canvases.

    Args:
        predict_logits: `(input_ids, rows)` to logits at the positions `rows`, `(N, V)`.
        input_ids (`torch.Tensor` of shape `(B, L)`), maskable (`torch.BoolTensor` of shape `(B, L)`), ranks
            (`torch.Tensor` of shape `(B, L)`): rows and the order in which each is revealed.
        canvases (`torch.Tensor` of shape `(C, 3)`, int64): the row of each canvas, how many of its maskable tokens are
            visible, and up to which rank the masked ones are scored.
        batch_size (`int`): canvases per call of the model.

    Returns:
        `torch.Tensor` of shape `(C,)`, float64, in nats.
    """
    nats = torch.zeros(len(canvases), dtype=torch.float64, device=input_ids.device)
    for first in range(0, len(canvases), batch_size):
        row, visible, stop = canvases[first : first + batch_size].to(input_ids.device).unbind(-1)
        ids, rank = input_ids[row], ranks[row]
        is_masked = maskable[row] & (rank >= visible[:, None])
        is_scored = is_masked & (rank < stop[:, None])
        logits = predict_logits(ids.masked_fill(is_masked, mask_id), is_scored)
        token_nll = token_negative_log_likelihood(logits, ids[is_scored], forbidden_ids)
        nats.index_add_(0, first + is_scored.nonzero()[:, 0], token_nll.double())
    return nats


def chain_of_rows(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    ranks: Tensor,
    *,
    mask_id: int,
    forbidden_ids: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """-log probability of each row when its tokens are revealed one at a time in the order of `ranks`.

    That is exact for the sampler that follows this order at temperature 1 without truncation; left to right it can be
    compared with an autoregressive model. It takes as many forwards as there are maskable tokens.

    Args: as for `canvas_nats`; `ranks` from `fixed_ranks` or `random_ranks`.

    Returns:
        `torch.Tensor` of shape `(B,)`, float64, in nats per row; 0 where nothing is maskable.

    Source: autoregressive diffusion (Hoogeboom et al., arXiv:2110.02037, eq. 2); with a fixed order, `chain_rule` of
        SMDM (arXiv:2410.18514).
    """
    totals = maskable.sum(-1).tolist()
    canvases = torch.tensor([(row, seen, seen + 1) for row, total in enumerate(totals) for seen in range(total)])
    nats = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
    if len(canvases) == 0:
        return nats
    of_canvas = canvas_nats(
        predict_logits,
        input_ids,
        maskable,
        ranks,
        canvases,
        mask_id=mask_id,
        forbidden_ids=forbidden_ids,
        batch_size=batch_size,
    )
    return nats.index_add_(0, canvases[:, 0].to(nats.device), of_canvas)


@torch.no_grad()
def greedy_rows(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    forbidden_ids: Tensor | None = None,
) -> Tensor:
    """Whether filling the maskable positions from left to right, each with its likeliest token, gives the row.

    Every position is asked about with what stands before it visible and the rest masked, as `chain_of_rows` does. A
    row is asked about until it takes another way, so that a wrong one mostly takes one forward.

    Args: as for `chain_of_rows`; all rows go through the model together.

    Returns:
        `torch.BoolTensor` of shape `(B,)`; True where nothing is maskable. Of equally likely tokens the lowest id
        counts, as in `sampling`.
    """
    ranks, totals = fixed_ranks("left_to_right", maskable), maskable.sum(-1)
    is_greedy = torch.ones_like(totals, dtype=torch.bool)
    for rank in range(int(totals.max())):
        going = is_greedy & (totals > rank)
        if not going.any():
            break
        ids, of_text, place = input_ids[going], maskable[going], ranks[going]
        asked = of_text & place.eq(rank)
        logits = predict_logits(ids.masked_fill(of_text & place.ge(rank), mask_id), asked)
        if forbidden_ids is not None:
            logits = logits.index_fill(-1, forbidden_ids, -torch.inf)
        is_greedy[going] = logits.argmax(-1) == ids[asked]
    return is_greedy


def random_chains_of_rows(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    forbidden_ids: Tensor | None = None,
    orders: int = 8,
    seed: int = 0,
    keys: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """`chain_of_rows` for `orders` random orders of each row, `(B, orders)`; what `importance_bound` is made of.

    The mean over orders estimates the negative ELBO (its any-order form, ARDM, arXiv:2110.02037). `seed` and
    `keys` as for `likelihood.bound_of_rows`.
    """
    keys = row_keys(seed, input_ids, maskable) if keys is None else keys
    chains = []
    for index in range(orders):
        ranks = random_ranks(fold_in(keys, index), maskable)
        chains.append(
            chain_of_rows(
                predict_logits,
                input_ids,
                maskable,
                ranks,
                mask_id=mask_id,
                forbidden_ids=forbidden_ids,
                batch_size=batch_size,
            )
        )
    return torch.stack(chains, dim=-1)


def importance_bound(chains: Tensor) -> Tensor:
    """`-log mean over orders of exp(-chain)`: a bound that lies between -log p and the negative ELBO.

    -log p is that of the random-order sampler. With one order it is the negative ELBO in expectation, with more it
    falls towards -log p.

    Args:
        chains (`torch.Tensor` of shape `(..., N)`): nats, one per order.

    Source: importance-weighted autoencoders (Burda et al., arXiv:1509.00519, eq. 8), over orders as in Eso-LM
        (arXiv:2506.01928).
    """
    return torch.log(torch.tensor(float(chains.size(-1)))) - torch.logsumexp(-chains, dim=-1)


def sampler_bound_of_rows(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    *,
    steps: int,
    schedule: str | Schedule = "linear",
    mask_id: int,
    forbidden_ids: Tensor | None = None,
    orders: int = 1,
    seed: int = 0,
    keys: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Negative ELBO of the sampler that writes a row in `steps` steps, tokens of one step independently of each other.

    With a_k tokens revealed in step k and n_k visible after it, `sum over k of a_k h(n_{k-1})`, h(j) being the mean
    cross-entropy of a masked token when j are visible. With as many steps as tokens it is the negative ELBO; fewer
    cost more. It is about random order, temperature 1, no truncation and no remasking.

    Only the tokens that a step reveals are scored in it. Scoring all that are masked has the same mean but more noise:
    a surprising token costs much before others have told it, and little after, and one order counts it once.

    Args:
        steps (`int`), schedule (`str` or `Schedule`): the plan, see `schedules.unmask_counts`.
        orders (`int`): random orders per row that are averaged. The others as for `random_chains_of_rows`.

    Returns:
        `torch.Tensor` of shape `(B,)`, float64, in nats per row.

    Raises:
        ValueError: `steps` is no whole number of at least 1, or the schedule is unknown.

    Source: Lavenant and Zanella, arXiv:2510.25544; Chen, Cong and Li, arXiv:2511.04647.
    """
    keys = row_keys(seed, input_ids, maskable) if keys is None else keys
    totals = maskable.sum(-1).tolist()
    plans = {total: _plan(unmask_counts(schedule, total, steps)) for total in set(totals)}
    canvases = torch.tensor([(row, *step) for row, total in enumerate(totals) for step in plans[total]])
    nats = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
    if len(canvases) == 0:
        return nats
    for index in range(orders):
        of_canvas = canvas_nats(
            predict_logits,
            input_ids,
            maskable,
            random_ranks(fold_in(keys, index), maskable),
            canvases,
            mask_id=mask_id,
            forbidden_ids=forbidden_ids,
            batch_size=batch_size,
        )
        nats.index_add_(0, canvases[:, 0].to(nats.device), of_canvas / orders)
    return nats


def _plan(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens visible before each step and after it."""
    return list(itertools.pairwise(itertools.accumulate(counts, initial=0)))
