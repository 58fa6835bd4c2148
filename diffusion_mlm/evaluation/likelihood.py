"""The likelihood bound of a masked diffusion model: exact-count draws, stratified over the draws of each row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..corruption import ForwardProcess, content_keys
from ..objectives import row_means, token_negative_log_likelihood
from ..randomness import fold_in, uniform

PredictLogits = Callable[[Tensor, Tensor], Tensor]  # (input_ids, rows) -> logits at these positions, (N, V)

NUM_BUCKETS = 10


def bucket_of(mask_rate: Tensor) -> Tensor:
    """The bucket, 0 to 9, of each mask rate in [0, 1]; its upper end belongs to it."""
    return (torch.ceil(mask_rate * NUM_BUCKETS).long() - 1).clamp(0, NUM_BUCKETS - 1)


@dataclass
class RowBounds:
    """What evaluation knows of B rows; sums of it over rows are what a corpus figure is made of.

    Attributes:
        nats (`torch.Tensor` of shape `(B,)`, float64): estimate of the negative ELBO of the row, in nats.
        num_tokens (`torch.Tensor` of shape `(B,)`): maskable tokens, of a filling run of `</s>` only the first.
        bucket_nats, bucket_counts (`torch.Tensor` of shape `(B, 10)`): sum of the mean cross-entropies of the draws
            whose mask rate lies in the bucket, and their number: the curve of loss against mask rate.
    """

    nats: Tensor
    num_tokens: Tensor
    bucket_nats: Tensor
    bucket_counts: Tensor


def count_tokens(input_ids: Tensor, maskable: Tensor, end_id: int) -> Tensor:
    """Maskable tokens of each row, where a run of `</s>` that fills the row counts once.

    All of the run is predicted and paid for; but it is one statement, "the text ends here", and a longer fill must not
    make the figure per token look better.
    """
    ends_here = (input_ids == end_id) | ~maskable
    trailing = ends_here.flip(-1).long().cumprod(-1).flip(-1).bool() & maskable  # from here on nothing but ends
    before = torch.nn.functional.pad(trailing[:, :-1], (1, 0))
    return (maskable & ~(trailing & before)).sum(-1)


def row_keys(seed: int, input_ids: Tensor, maskable: Tensor) -> Tensor:
    """A key for each row, int64 of shape `(B,)`, by its content up to the last maskable token, padding left out."""
    return content_keys(seed, input_ids, maskable.cumsum(-1).argmax(-1) + 1)


@torch.no_grad()
def bound_of_rows(
    predict_logits: PredictLogits,
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    end_id: int = -1,
    forbidden_ids: Tensor | None = None,
    draws: int = 8,
    seed: int = 0,
    keys: Tensor | None = None,
) -> RowBounds:
    """Estimates the negative ELBO of each row with `draws` masks, the same for every model and every batch.

    Draw i of a row with n maskable tokens masks `m = ceil(n u_i)` of them, `u_i = 1 - frac(u_0 + i / draws)`, and
    contributes n times the mean cross-entropy of the masked tokens (LLaDA, arXiv:2502.09992, eq. 14). Masks are keyed
    by the row's content: two checkpoints are compared on the same draws, and neither the batch size nor the number of
    processes matters.

    Args:
        predict_logits: `(input_ids, rows)` to logits at the positions `rows`, `(N, V)`.
        input_ids (`torch.Tensor` of shape `(B, L)`), maskable (`torch.BoolTensor` of shape `(B, L)`).
        mask_id, end_id (`int`), forbidden_ids (`torch.Tensor`, *optional*): ids with probability 0.
        draws (`int`): masks per row; 8 to 16 during training, 128 for a published figure.
        seed (`int`): another seed gives other masks.
        keys (`torch.Tensor` of shape `(B,)`, int64, *optional*): of the masks, instead of `seed` and the content; rows
            of equal keys and equal maskable positions get equal masks.
    """
    process = ForwardProcess(mask_id, prefix_length=0)
    keys = row_keys(seed, input_ids, maskable) if keys is None else keys
    offset = uniform(fold_in(keys, -1), 1)[:, 0]
    total = maskable.sum(-1)
    nats = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
    bucket_nats = nats.new_zeros(len(input_ids), NUM_BUCKETS)
    bucket_counts = torch.zeros_like(bucket_nats)
    for draw in range(draws):
        t = 1 - torch.frac(offset + draw / draws)
        batch = process(input_ids, maskable, fold_in(keys, draw), t)
        logits = predict_logits(batch.input_ids, batch.is_masked)
        token_nll = token_negative_log_likelihood(logits, input_ids[batch.is_masked], forbidden_ids)
        mean = row_means(token_nll, batch.is_masked)
        mean = torch.where(total > 0, mean, torch.zeros_like(mean))  # nothing to predict costs 0 nats; a NaN stays
        nats += mean * total / draws
        bucket = bucket_of(t)[:, None]
        bucket_nats.scatter_add_(1, bucket, mean[:, None])
        bucket_counts.scatter_add_(1, bucket, (total > 0).double()[:, None])
    return RowBounds(nats, count_tokens(input_ids, maskable, end_id), bucket_nats, bucket_counts)
