"""What makes a step of training fast on a CPU: dropout, attention and the gradient of a tied embedding.

PyTorch draws the numbers of a dropout one by one, at ten nanoseconds each, and attention with dropout has no fused
kernel there: it computes in float32 and looks at its scores several times more than it must. Together that is a third
of a training step of a small model. In bfloat16 the fused kernel without dropout is slow too, in the backward pass.

The gradient of an embedding is as large as its table, zero but for the few rows that were looked up. Where the head
has the same weight, whose gradient is whole, these rows are added to that one instead.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modeling import unwrap
from .packed_linear import multiplies_bfloat16

_BITS = 16  # of a random number: p is kept to within 2**-17
_SHORT = 256  # keys, for which scores in memory cost less than the backward pass of the fused kernel in bfloat16
_MOST_THREADS = 4  # beyond, PyTorch's numbers, which it draws with all threads, come faster than these with one


@contextmanager
def fast_step(model: nn.Module) -> Iterator[None]:
    """Has a step of training on a CPU, forward and backward, done as this module does it.

    For a whole step: layers whose activations are not kept run again in the backward pass, and must drop the same.
    Gradients of a tied embedding are whole when it ends.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or _is_compiled(model):
        yield
        return
    few = torch.get_num_threads() <= _MOST_THREADS
    with _in_place_of_torchs() if few else nullcontext(), _rows_of_gradient(unwrap(model)):
        yield


def _is_compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def dropout(x: Tensor, p: float) -> Tensor:
    """`torch.nn.functional.dropout` in training: each number is 0 with probability `p`, else divided by 1 - `p`.

    `p` is rounded to a multiple of 2**-16, and the rest divided by one minus that, so that the mean stays. The numbers
    are those of torch's global generator.
    """
    kept = round((1 - p) * 2**_BITS)
    if not 0 < kept < 2**_BITS:
        return _DROPOUT(x, p)
    of_four = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = of_four.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits < kept - 2 ** (_BITS - 1)).to(x.dtype).mul_(2**_BITS / kept)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float) -> Tensor:
    """Scaled dot-product attention, with dropout of its weights if `p` > 0; shapes as torch's, `(B, H, L, D)`.

    Scores are in the format of the inputs, as in the `eager` attention of transformers, and their softmax in float32,
    where a fused kernel has both. A query that sees no key gets a mean of values.

    Args:
        mask (`torch.Tensor`, *optional*): bool, True where a key is seen, or numbers that are added to the scores.
        p (`float`): share of the weights that is dropped.
    """
    if query.dtype == torch.bfloat16 and not multiplies_bfloat16():  # it is emulated, and slow
        with torch.autocast("cpu", enabled=False):
            return attention(query.float(), key.float(), value.float(), mask, p, scale).bfloat16()
    scores = torch.matmul(query * scale, key.mT)
    least = torch.finfo(scores.dtype).min
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, least)
    elif mask is not None:
        scores = (scores + mask.to(scores.dtype)).clamp(min=least)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(dropout(weights, p) if p > 0 else weights, value)


# Put into the module itself: a mode of torch's would be off in the backward pass, where layers may run again.
_DROPOUT, _ATTENTION = F.dropout, F.scaled_dot_product_attention
_lock, _users = threading.Lock(), 0


@contextmanager
def _in_place_of_torchs() -> Iterator[None]:
    """In all threads meanwhile, where `dropout` and `attention` can stand in."""
    global _users
    with _lock:
        _users += 1
        F.dropout, F.scaled_dot_product_attention = _dropout, _attention
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                F.dropout, F.scaled_dot_product_attention = _DROPOUT, _ATTENTION


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or inplace or not 0 < p < 1 or not _is_plain(input):
        return _DROPOUT(input, p, training, inplace)
    return dropout(input, p)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    known = query.dim() == 4 and not is_causal and not enable_gqa and all(map(_is_plain, (query, key, value)))
    fused_is_slow = query.dtype == torch.bfloat16 and key.shape[-2] <= _SHORT and torch.is_grad_enabled()
    pays = 0 < dropout_p < 1 or (dropout_p == 0 and fused_is_slow and multiplies_bfloat16())
    if not known or not pays:
        return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return attention(query, key, value, attn_mask, dropout_p, query.shape[-1] ** -0.5 if scale is None else scale)


def _is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


class _LookUp(torch.autograd.Function):
    """Rows of a table; their gradients go to a list, not into one of the size of the table."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.ids, ctx.found = ids, found
        return weight.detach()[ids]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.found.append((ctx.ids, gradients[0]))
        return None, None, None


@contextmanager
def _rows_of_gradient(model: Any) -> Iterator[None]:
    """Adds the gradient of a tied embedding to that of the head when the backward pass is over.

    In one process only, and where nobody else looks at the gradient as it comes.
    """
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or not _is_tied(embedding, head):
        yield
        return
    weight = embedding.weight
    found: list[tuple[Tensor, Tensor]] = []

    def forward(ids: Tensor) -> Tensor:
        return _LookUp.apply(weight, ids, found)  # type: ignore[no-untyped-call,no-any-return]

    embedding.forward = forward
    try:
        yield
    finally:
        del embedding.forward
    with torch.no_grad():
        for ids, gradient in found:
            if weight.grad is None:  # the head had no part in it
                weight.grad = torch.zeros_like(weight)
            if embedding.padding_idx is not None:
                gradient = gradient.masked_fill(ids.eq(embedding.padding_idx).unsqueeze(-1), 0)
            weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2).to(weight.dtype))


def _is_tied(embedding: Any, head: Any) -> bool:
    """Whether a plain embedding has the weight of a plain head, which is trained."""
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or head.weight is not embedding.weight:
        return False
    weight = embedding.weight
    alone = not weight._backward_hooks and not weight._post_accumulate_grad_hooks
    as_usual = embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse
    return (
        type(weight) is nn.Parameter
        and weight.requires_grad
        and alone
        and as_usual
        and "forward" not in vars(embedding)
    )
