"""CUDA graphs: the layers of an encoder are recorded once for each shape, and then started by a single call.

A GPU is done with a layer of a small encoder long before Python has started the next one. The last layer is not
recorded, as it runs on other rows in every step; see `last_layer`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    hidden_states: Tensor
    attention_mask: Tensor | None
    output: Tensor


class RecordedLayers:
    """Layers that follow one another, called like one of them; recorded where no gradients are wanted.

    A batch is filled up to a power of two, so that few shapes are recorded while texts are finished one by one; rows
    do not see each other.

    Args:
        layers (sequence of `torch.nn.Module`): each takes hidden states `(B, L, H)` and a mask, None or `(B, ...)`.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.forwards = [layer.forward for layer in layers]
        self.recordings: dict[tuple[Any, ...], _Recording] = {}

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        if torch.is_grad_enabled() or self.layers[0].training:
            return self._run(hidden_states, attention_mask)
        rows = len(hidden_states)
        size = 1 << (rows - 1).bit_length()
        shape = None if attention_mask is None else attention_mask.shape[1:]
        key = (size, hidden_states.shape[1:], hidden_states.dtype, shape)
        if key not in self.recordings:
            self.recordings[key] = self._record(size, hidden_states, attention_mask)
        recording = self.recordings[key]
        recording.hidden_states[:rows].copy_(hidden_states)
        if recording.attention_mask is not None and attention_mask is not None:
            recording.attention_mask[:rows].copy_(attention_mask)
        recording.graph.replay()
        return recording.output[:rows]

    def _run(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        for forward in self.forwards:
            hidden_states = forward(hidden_states, attention_mask)
        return hidden_states

    def _record(self, size: int, like: Tensor, mask: Tensor | None) -> _Recording:
        hidden_states = like.new_zeros(size, *like.shape[1:])
        attention_mask = None if mask is None else mask.new_ones(size, *mask.shape[1:])
        stream = torch.cuda.Stream()  # libraries set themselves up here, which may not be recorded
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._run(hidden_states, attention_mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._run(hidden_states, attention_mask)
        return _Recording(graph, hidden_states, attention_mask, output)


def _passed_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def record_layers(layers: nn.ModuleList) -> None:
    """Has the layers of an encoder but the last run as `RecordedLayers`, from now on; their weights stay theirs."""
    first: list[nn.Module] = list(layers)[:-1]
    if not first:
        return
    first[0].forward = RecordedLayers(first)
    for layer in first[1:]:
        layer.forward = _passed_on
