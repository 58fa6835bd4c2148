"""Linear layers with packed weights: bfloat16 products on a CPU, without reordering the weights at every call.

oneDNN multiplies matrices in blocks and brings the weights into that order first, each time, which takes as long as
the product where there are a few hundred rows. What is packed once is a second copy of the weights.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 256  # for which the order of blocks is chosen; it hardly depends on them


def multiplies_bfloat16() -> bool:
    """Whether this processor and its torch have matrix products of bfloat16 numbers, as far as oneDNN says."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """`torch.nn.Linear`, faster without gradients: packed at the first call, and again when the weight has changed.

    A change by way of `weight.data` is not noticed.
    """

    _packed: Tensor | None = None
    _packed_of: tuple[int, int, torch.dtype] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self._may_pack(input):
            return F.linear(input, self.weight, self.bias)
        now = (self.weight.data_ptr(), self.weight._version, self.weight.dtype)
        if self._packed_of != now:
            self._packed, self._packed_of = _pack(self.weight), now
        if self._packed is None:
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")

    def _may_pack(self, input: Tensor) -> bool:
        weight = self.weight
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[no-untyped-call]
        plain = type(weight) is nn.Parameter and not weight.is_inference() and weight.device.type == "cpu"
        alike = input.device == weight.device and input.dtype == weight.dtype
        return plain and alike and not recorded and not torch.is_autocast_enabled("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Moves the layer; what was packed does not come along."""
        self._packed = self._packed_of = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_packed")}


def pack_linears(model: nn.Module, except_for: nn.Module | None = None) -> None:
    """Makes the linear layers of a model `PackedLinear`, in place, if this machine and its torch can pack them.

    Those of other classes stay as they are, and those inside layers of peft, which changes them by `weight.data`: wrap
    a model first and pack it then.
    """
    chosen = [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not except_for
        and not any(part == "base_layer" or part.startswith("lora_") for part in name.split("."))
    ]
    if chosen and _pack(chosen[0].weight) is not None:
        for module in chosen:
            module.__class__ = PackedLinear


def unpack_linears(model: nn.Module) -> None:
    """Makes every `PackedLinear` of a model a `torch.nn.Linear` again, in place."""
    for module in model.modules():
        if type(module) is PackedLinear:
            module._packed = module._packed_of = None
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in blocks; None where there are none for this processor, this format or this version of torch."""
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    except (RuntimeError, AttributeError):
        return None
    return packed if packed.is_mkldnn else None
