"""The last layer of an encoder on chosen rows only: keys and values of all positions, all else where it is needed.

What the last layer makes of the other positions nobody reads, and it mixes positions in its attention alone, so this
is exact up to rounding. At half of the positions it saves five twelfths of the layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Architectures whose layers are BERT's: attention, a sum and a norm, feed-forward, a sum and a norm.
_ARCHITECTURES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")


def last_layer(base_model: nn.Module) -> nn.Module | None:
    """The last layer of an encoder if `on_rows` can stand in for it as it is now, else None.

    It must be transformers' own, with fused attention, neither compiled nor hooked into, nor run a second time in
    the backward pass.
    """
    config = getattr(base_model, "config", None)
    encoder: Any = getattr(base_model, "encoder", None)
    layers = getattr(encoder, "layer", None)
    if not is_like_bert(base_model) or not isinstance(layers, nn.ModuleList):
        return None
    layer: Any = layers[-1]
    # What sees other shapes, or is not called while its submodules are.
    on_the_way = (base_model, encoder, layer, layer.attention, layer.attention.self)
    as_shipped = (
        type(layer).__module__.startswith("transformers.models.")
        and "forward" not in vars(layer)
        and layer._compiled_call_impl is None
        and not any(module._forward_hooks or module._forward_pre_hooks for module in on_the_way)
    )
    fused = config._attn_implementation == "sdpa" and not config.is_decoder  # type: ignore[union-attr]
    again = layer.training and getattr(layer, "gradient_checkpointing", False)
    return layer if as_shipped and fused and not again else None


def is_like_bert(model: nn.Module) -> bool:
    """Whether a model is of an architecture known here, which sees all of a text without an `attention_mask`."""
    return getattr(getattr(model, "config", None), "model_type", None) in _ARCHITECTURES


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of a module are."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def places_of(chosen: Tensor, device: torch.device) -> Tensor:
    """Where `chosen` `(B, L)` is True, counted through all rows: `(N,)` int64, on its way to the device."""
    return chosen.flatten().nonzero().squeeze(-1).to(device, non_blocking=True)


def at_places(hidden_states: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """What stands at `places_of` of something of `shape` in `(B, L, H)`: `(1, N, H)`.

    Raises:
        IndexError: `shape` is not `(B, L)`.
    """
    if hidden_states.shape[:2] != shape:
        raise IndexError(f"Rows of shape {tuple(shape)} were chosen from states of {tuple(hidden_states.shape)}.")
    return hidden_states.flatten(0, 1).index_select(0, places.to(hidden_states.device)).unsqueeze(0)


@contextmanager
def on_rows(layer: nn.Module, rows: Tensor) -> Iterator[None]:
    """Has the last layer return the hidden states of `rows` alone: `(1, N, H)` for N positions of `(B, L)`, N > 0."""
    device = device_of(layer)
    count = rows.sum(-1)
    width = int(count.max())
    # The chosen positions of each row of the batch, in order, then some others, so that all have as many: (B, M).
    place = rows.byte().argsort(dim=-1, descending=True, stable=True)[:, :width]
    is_chosen = torch.arange(width, device=rows.device) < count.unsqueeze(-1)
    place, chosen, places = place.to(device, non_blocking=True), places_of(is_chosen, device), places_of(rows, device)

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        whole: Any = layer
        attention = whole.attention.self
        queries = hidden_states.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))

        mask = attention_mask
        if mask is not None and mask.shape[2] > 1:  # (B, 1, L, L): a line for each query
            mask = mask.gather(2, place[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

        mixed, _weights = ALL_ATTENTION_FUNCTIONS["sdpa"](
            attention,
            heads(attention.query(queries)),
            heads(attention.key(hidden_states)),
            heads(attention.value(hidden_states)),
            mask,
            dropout=attention.dropout.p if whole.training else 0.0,
            scaling=attention.scaling,
            is_causal=False,
        )
        attended = whole.attention.output(
            at_places(mixed.flatten(2), chosen, is_chosen.shape), at_places(hidden_states, places, rows.shape)
        )
        return whole.feed_forward_chunk(attended)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
