"""Linear layers with packed weights: products on a CPU, without reordering the weights at every call.

Matrices are multiplied in blocks, and the weights brought into that order first, each time. Where there are a few
hundred rows that takes a third of the time of the product in float32, and as long as the product in bfloat16. What is
packed once is a second copy of the weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 256  # for which the order of blocks is chosen; it hardly depends on them
_LEAST = 2**24  # multiplications of float32 numbers; for fewer a call of oneDNN takes longer than it saves
_PROBES = 64  # numbers of a weight that tell whether it has changed
CACHE_LINE = 64  # bytes of a cache line


def multiplies_bfloat16() -> bool:
    """Whether this processor and its torch have matrix products of bfloat16 numbers, as far as oneDNN says."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """`torch.nn.Linear`, faster without gradients: packed at the first call, and again when the weight has changed.

    A change by way of `weight.data` is noticed by some of the numbers (of an output embedding, by one or more in each
    row), and not if it spares all of these.
    """

    lengthens_rows = False  # whether results are views of rows that begin where a cache line does, see `aligned_head`
    _packed: Tensor | None = None
    _packed_of: tuple[int, int, torch.dtype] | None = None
    _packed_probes: tuple[Tensor, Tensor] | None = None  # a view of the weight, and what it showed

    def forward(self, input: Tensor) -> Tensor:
        packed = self._pack_if_new() if self._may_pack(input) else None
        if packed is None:
            return F.linear(input, self.weight, self.bias)
        more = self._more_rows()
        bias = self.bias if self.bias is None or not more else F.pad(self.bias, (0, more))
        output = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
        return output[..., : len(self.weight)] if more else output

    def _more_rows(self) -> int:
        return -len(self.weight) % (CACHE_LINE // self.weight.itemsize) if self.lengthens_rows else 0

    def _may_pack(self, input: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return False
        weight = self.weight
        plain = type(weight) is nn.Parameter and weight.is_contiguous() and not weight.is_inference()
        plain = plain and weight.device.type == "cpu"
        alike = input.device == weight.device and input.dtype == weight.dtype
        pays = weight.dtype != torch.float32 or input.numel() * len(weight) >= _LEAST
        return plain and alike and pays and not torch.is_autocast_enabled("cpu")

    def _pack_if_new(self) -> Tensor | None:
        weight = self.weight
        now = (weight.data_ptr(), weight._version, weight.dtype)
        if self._packed_of != now or self._packed_probes is None or not torch.equal(*self._packed_probes):
            one_per_row = max(self.in_features - 1, 1)
            distance = one_per_row if self.lengthens_rows else max(weight.numel() // _PROBES, 1)
            while math.gcd(distance, self.in_features) > 1:  # all would be of the same few columns
                distance += 1
            seen, more = weight.detach().view(-1)[::distance], self._more_rows()
            self._packed = _pack(F.pad(weight.detach(), (0, 0, 0, more)) if more else weight)
            self._packed_of, self._packed_probes = now, (seen, seen.clone())
        return self._packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Linear:  # type: ignore[override]
        """Moves the layer, to be a plain one where it is not on a CPU; what was packed does not come along."""
        self._packed = self._packed_of = self._packed_probes = None
        super()._apply(fn, recurse)
        if type(self) is PackedLinear and self.weight.device.type != "cpu":
            _unpack(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_packed")}


def pack_linears(model: nn.Module) -> None:
    """Makes the linear layers of a model `PackedLinear`, in place, if this machine and its torch can pack them.

    Those of other classes stay as they are; all do if the copy would take more than half of the memory that is free.
    """
    chosen = [module for module in model.modules() if type(module) is nn.Linear]
    size = sum(module.weight.nbytes for module in chosen)
    if chosen and 2 * size <= _free_memory() and _pack(chosen[0].weight) is not None:
        for module in chosen:
            module.__class__ = PackedLinear
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if type(head) is PackedLinear:
            head.lengthens_rows = True


def unpack_linears(model: nn.Module) -> None:
    """Makes every `PackedLinear` of a model a `torch.nn.Linear` again, in place."""
    for module in model.modules():
        if type(module) is PackedLinear:
            _unpack(module)


def _unpack(module: nn.Linear) -> None:
    for name in ("_packed", "_packed_of", "_packed_probes", "lengthens_rows"):
        vars(module).pop(name, None)
    module.__class__ = nn.Linear


def _free_memory() -> float:
    """In bytes, as far as it can be told."""
    try:
        import psutil
    except ImportError:  # where the file that a repository carries (`remote_code`) runs
        return math.inf
    return float(psutil.virtual_memory().available)


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in blocks; None where there are none for this processor, this format or this version of torch."""
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    except (RuntimeError, AttributeError):
        return None
    return packed if packed.is_mkldnn else None
