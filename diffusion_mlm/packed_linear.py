"""Linear layers with packed weights: bfloat16 products on a CPU, without reordering the weights at every call.

oneDNN multiplies matrices in blocks and brings the weights into that order first, each time, which takes as long as
the product where there are few hundred rows. What this packs once is a second copy of the weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 256  # for which the order of blocks is chosen; it hardly depends on them


class PackedLinear(nn.Linear):
    """`torch.nn.Linear`, faster without gradients; packed at the first call, and again when the weight has changed."""

    _packed: Tensor | None = None
    _packed_of: tuple[int, int, torch.dtype] | None = None

    def forward(self, input: Tensor) -> Tensor:
        usual = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if usual or input.device.type != "cpu" or input.dtype != self.weight.dtype:
            return F.linear(input, self.weight, self.bias)
        now = (self.weight.data_ptr(), self.weight._version, self.weight.dtype)
        if self._packed_of != now:
            self._packed, self._packed_of = _pack(self.weight), now
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_packed")}


def pack_linears(model: nn.Module, except_for: nn.Module | None = None) -> None:
    """Makes the linear layers of a model `PackedLinear`, in place, if this machine and its torch can pack them.

    Those of other classes, such as layers of peft, stay as they are.
    """
    chosen = [module for module in model.modules() if type(module) is nn.Linear and module is not except_for]
    if not chosen or torch.is_autocast_enabled("cpu"):
        return
    try:
        _pack(chosen[0].weight.detach())
    except (RuntimeError, AttributeError):  # a processor without such products, or another version of torch
        return
    for module in chosen:
        module.__class__ = PackedLinear


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
