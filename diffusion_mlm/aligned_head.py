"""The output embedding with aligned rows: the CPU multiplies faster into rows that begin where a cache line does.

RoBERTa's vocabulary has 50,265 tokens, an odd number, so that the rows of its logits begin anywhere. Into rows that
are a little longer, of which only the logits are looked at, the same product takes three quarters of the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .packed_linear import CACHE_LINE, multiplies_bfloat16


@contextmanager
def aligned_rows(head: Any) -> Iterator[None]:
    """Has an output embedding return a view of longer rows, where that pays; for use without gradients."""
    if not _pays(head):
        yield
        return

    def forward(hidden_states: Tensor) -> Tensor:
        flat = hidden_states.flatten(0, -2)
        size = len(head.weight)
        line = CACHE_LINE // flat.element_size()
        logits = flat.new_empty(len(flat), -(-size // line) * line)[:, :size]
        if head.bias is None:
            torch.mm(flat, head.weight.T, out=logits)
        else:
            torch.addmm(head.bias, flat, head.weight.T, out=logits)
        return logits.unflatten(0, hidden_states.shape[:-1])

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _pays(head: Any) -> bool:
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and head.weight.device.type == "cpu"
        and _multiplies(head.weight.dtype)
        and not _has_aligned_rows(head)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")  # which would multiply in another format
        and head._compiled_call_impl is None
        and "forward" not in vars(head)
    )


def _has_aligned_rows(head: Any) -> bool:
    """Whether the rows of logits of an output embedding begin where cache lines do anyway."""
    return bool(len(head.weight) * head.weight.element_size() % CACHE_LINE == 0)


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether products of this format are not emulated: where they are, rows make no difference."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bfloat16())
