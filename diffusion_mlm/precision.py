"""Precision: the number format of the weights that write, and compiled layers.

float32 is exact: greedy text is that of any other float32 implementation. bfloat16 halves the memory, and the time
where the processor has it. int8 keeps the matrices in 8 bits, each row with a scale of its own, and rounds what they
multiply, each position with a scale of its own, through torchao.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from .cuda_graphs import record_layers
from .last_layer import last_layer
from .modeling import unwrap
from .packed_linear import pack_linears, unpack_linears

DTYPES = ("float32", "bfloat16", "int8")

Model = TypeVar("Model", bound=nn.Module)


def set_precision(model: Model, dtype: str) -> Model:
    """The model, changed in place, with weights of the format `dtype`, one of `DTYPES`.

    On a CPU the matrices of linear layers are packed, which takes their memory twice, see `packed_linear`. int8 is for
    these matrices; embeddings stay float32, the one that the head shares with them included. It pays compiled only,
    see `compile_layers`.

    Raises:
        ValueError: another format, int8 on a GPU, or anything but float32 for embedding diffusion.
        ImportError: int8, and the extra `int8` is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if dtype != "float32" and getattr(unwrap(model), "float32_only", False):
        raise ValueError(f"`dtype` {dtype!r} is for masked models: noise on embeddings is computed in float32.")
    if dtype != "int8":
        model = model.to(getattr(torch, dtype))
        if next(model.parameters()).device.type == "cpu":
            pack_linears(model)
        return model
    unpack_linears(model)
    if next(model.parameters()).device.type != "cpu":
        raise ValueError("`dtype` 'int8' is for CPUs: choose 'bfloat16' on a GPU.")
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise ImportError("int8 weights need another package: pip install 'diffusion-mlm[int8]'.") from error
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def compile_layers(model: Model) -> Model:
    """The model, changed in place, with compiled layers and head; on a GPU, with layers recorded as CUDA graphs.

    Layer by layer: all have one shape, so one is compiled, in half a minute or so. Of the last layer the parts are
    compiled, so that it can still run on some rows alone. For generation, not to be saved or trained.

    Raises:
        ValueError: the encoder is not built of layers like RoBERTa's.
    """
    inner: Any = unwrap(model)
    layers = getattr(getattr(getattr(inner, "base_model", None), "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(inner).__name__} cannot be compiled layer by layer: leave out `torch_compile`.")
    if next(inner.parameters()).device.type == "cuda":
        record_layers(layers)
        return model
    *first, last = layers
    shortened: Any = last_layer(inner.base_model.eval())
    parts = [last]
    if shortened is not None:
        attention = shortened.attention
        parts = [attention.self.query, attention.self.key, attention.self.value, attention.output]
        parts += [shortened.intermediate, shortened.output]
    head = inner.get_output_embeddings()
    for module in [*first, *parts, *([] if head is None else [head])]:
        module.compile(dynamic=True)
    return model
