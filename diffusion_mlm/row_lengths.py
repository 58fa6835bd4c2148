"""Rows cut to a random length, so that a model trained on full rows knows shorter ones.

SMDM (arXiv:2410.18514) and LLaDA (arXiv:2502.09992, section 2.2) cut one row in a hundred.
"""

import torch
from torch import Tensor

from .randomness import fold_in, uniform

_LENGTH_STREAM = 4  # beside those of `corruption`, so that cutting moves no mask of another row


def cut_rows(
    input_ids: Tensor, attention_mask: Tensor, maskable: Tensor, keys: Tensor, share: float, pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts a share of the rows behind a maskable token, each of its n ones with the same probability.

    What stands before the first maskable token (start token, prompt) stays. A row that ends with a token that is never
    masked, as the `</s>` of a packed block, ends with it again; one that ends with a maskable token breaks off.

    Args:
        input_ids (`torch.Tensor` of shape `(B, L)`): clean tokens, padded on the right if at all.
        attention_mask (`torch.Tensor` of shape `(B, L)`), maskable (`torch.BoolTensor` of shape `(B, L)`).
        keys (`torch.Tensor` of shape `(B,)`, int64): one key per row; a cut is a function of key and row alone.
        share (`float`): the probability that a row is cut, in [0, 1].
        pad_id (`int`): takes the place of what is cut off.

    Returns:
        `input_ids`, `attention_mask` and `maskable` of the same shapes. Rows without a maskable token are never cut.
    """
    if share == 0:
        return input_ids, attention_mask, maskable
    u = uniform(fold_in(keys, _LENGTH_STREAM), 2)
    total = maskable.sum(-1)
    kept = 1 + (u[:, 1] * total).long()  # uniform on {1, ..., n}
    is_cut = (u[:, 0] < share) & (kept < total)
    columns = torch.arange(input_ids.size(1), device=input_ids.device)
    # The place behind the last maskable token that is kept.
    end = ((maskable.cumsum(-1) < kept[:, None]).sum(-1) + 1).where(is_cut, input_ids.size(1))
    last = (attention_mask.sum(-1) - 1).clamp(min=0)[:, None]
    closes = ~maskable.gather(-1, last)[:, 0] & is_cut
    input_ids = torch.where((columns == end[:, None]) & closes[:, None], input_ids.gather(-1, last), input_ids)
    gone = columns >= (end + closes)[:, None]
    return (
        input_ids.masked_fill(gone, pad_id),
        attention_mask.masked_fill(gone, 0),
        maskable & (columns < end[:, None]),
    )
