"""Losses of masked diffusion, from logits and clean tokens.

Writing `l(u)` for the mean cross-entropy of a masked token when a share u of the tokens is masked, the objectives
estimate

* `elbo`: the integral of l(u) over u in (0, 1], which is the negative evidence lower bound per maskable token. Unit:
  the row. Each row contributes the mean over its masked tokens, times the weight of the forward process.
* `simple`: the integral of u l(u) divided by that of u, one mean over all masked tokens of the global batch. It
  stresses high rates and is *not* a bound; it is what `labels=-100` gives under the plain `Trainer`.
* `full`: the mean over all maskable tokens, visible ones included, which is dominated by copying.

A loss is a sum over this micro-batch divided by the number of units in the *global* batch (all accumulation steps and
processes), so that splitting a batch changes neither the loss nor its gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .corruption import CorruptedBatch

OBJECTIVES = ("elbo", "simple", "full")


def scored_positions(objective: str, batch: CorruptedBatch) -> Tensor:
    """The positions whose logits the objective reads, `torch.BoolTensor` of shape `(B, L)`."""
    return batch.maskable if objective == "full" else batch.is_masked


def token_negative_log_likelihood(logits: Tensor, targets: Tensor, forbidden_ids: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of each scored token, computed in float32.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): any float type. Those of a model in training get -inf at the
            forbidden ids, in place.
        targets (`torch.Tensor` of shape `(N,)`, int64): the clean tokens.
        forbidden_ids (`torch.Tensor`, *optional*): ids that text never holds (`<mask>`, padding, ...). They get
            probability 0 here as in the sampler: the zero-masking of SUBS (MDLM, arXiv:2406.07524, section 3.2.3).

    Returns:
        `torch.Tensor` of shape `(N,)`, float32.
    """
    logits = logits.float()
    if forbidden_ids is not None and forbidden_ids.numel():
        if logits.requires_grad and not logits.is_leaf:
            # Copies of this, the largest tensor of a step, cost time. Autograd need not know: a token of probability 0
            # has gradient 0 already.
            with torch.no_grad():
                logits.index_fill_(-1, forbidden_ids, -torch.inf)
        else:
            logits = logits.index_fill(-1, forbidden_ids, -torch.inf)
    return F.cross_entropy(logits, targets, reduction="none")


def objective_units(objective: str, batch: CorruptedBatch) -> Tensor:
    """How many units this micro-batch adds to the divisor of the loss: rows, masked tokens or maskable tokens."""
    if objective == "elbo":
        return batch.is_masked.any(-1).sum()
    return scored_positions(objective, batch).sum()


def objective_sum(objective: str, token_nll: Tensor, batch: CorruptedBatch) -> Tensor:
    """The sum over units that, divided by the units of the global batch, is the loss.

    Args:
        objective (`str`): `elbo`, `simple` or `full`.
        token_nll (`torch.Tensor` of shape `(N,)`): one value per scored position, in row-major order.
        batch (`CorruptedBatch`): the batch the values belong to.

    Returns:
        `torch.Tensor`, a float32 scalar; exactly 0, with a graph, when nothing is scored.

    Raises:
        ValueError: the objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, not {objective!r}.")
    if objective != "elbo":
        return token_nll.sum()
    per_token = batch.weight / batch.is_masked.sum(-1).clamp(min=1)  # mean over the row's masked tokens, times weight
    return (token_nll * per_token.to(token_nll)[batch.is_masked.nonzero()[:, 0]]).sum()


def row_means(token_nll: Tensor, is_masked: Tensor) -> Tensor:
    """Mean cross-entropy of the masked tokens of each row; NaN for a row without any.

    Args:
        token_nll (`torch.Tensor` of shape `(N,)`), is_masked (`torch.BoolTensor` of shape `(B, L)`, N of them True).

    Returns:
        `torch.Tensor` of shape `(B,)`, float64.
    """
    rows = is_masked.nonzero()[:, 0]
    total = torch.zeros(len(is_masked), dtype=torch.float64, device=is_masked.device)
    total.index_add_(0, rows, token_nll.detach().double())
    return total / is_masked.sum(-1)
