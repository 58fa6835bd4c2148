"""`--optim muon`: Muon for the matrices of the hidden layers, AdamW for embeddings, head, norms and biases."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Brings the singular values of each matrix near 1 by Newton-Schulz iterations (Jordan et al. 2024, Muon).

    Args:
        matrices (`torch.Tensor` of shape `(count, rows, columns)`), coefficients: of the odd quintic polynomial that
            is applied to the singular values, steps (`int`): how often, eps (`float`): least norm to divide by.
    """
    a, b, c = coefficients
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)  # no singular value above 1
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide


class Muon(torch.optim.Muon):
    """torch's Muon with the iteration in float32 where bfloat16 is emulated, and for all matrices of a shape at once.

    torch iterates in bfloat16, one matrix after another, which is slower than a whole training step of a small model
    on a CPU without bfloat16 units. State and update rule are torch's, with `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters: list[Tensor] = []
            grads: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, grads, buffers)
            if not parameters:
                continue
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            alike: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
            for index, parameter in enumerate(parameters):
                alike[parameter.shape, parameter.device].append(index)
            for (shape, device), indices in alike.items():
                stacked = torch.stack([updates[index] for index in indices])
                if device.type == "cuda":
                    stacked = stacked.bfloat16()
                directions = orthogonalize(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scale = 0.2 * math.sqrt(max(shape))  # `match_rms_adamw`
                for index, direction in zip(indices, directions.unbind(), strict=True):
                    parameters[index].add_(direction, alpha=-group["lr"] * scale)
        return loss


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and fused AdamW behind one optimizer, so that schedules, checkpoints and accelerate see one.

    Muon's update is scaled to the root mean square of AdamW's (Moonlight, arXiv:2502.16982, eq. 4), so both share one
    learning rate and one weight decay.

    Args:
        model (`torch.nn.Module`): parameters that do not require gradients are left out.
        lr (`float`): peak learning rate of both.
        weight_decay (`float`): of both, but norms and biases have none.
        betas (`tuple[float, float]`): of AdamW.
        eps (`float`): of AdamW.
    """

    def __init__(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        matrices, tables, vectors = [], [], []
        embedding = {
            id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
        }
        head = _output_head(model)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() < 2:
                vectors.append(parameter)
            elif parameter.dim() == 2 and id(parameter) not in embedding | head:
                matrices.append(parameter)
            else:
                tables.append(parameter)
        groups: list[dict[str, Any]] = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                groups,
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                fused=True,
            )
        ]
        if matrices:
            self._parts.append(Muon(matrices, lr, weight_decay))
        super().__init__(tables + vectors + matrices, {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        """Shows the groups of both parts as this optimizer's own: a schedule that sets `lr` here sets it there."""
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _output_head(model: nn.Module) -> set[int]:
    """Parameters behind the encoder: they read and write the vocabulary and are no hidden layers."""
    base = getattr(model, "base_model", model)
    inside = {id(parameter) for parameter in base.parameters()} if isinstance(base, nn.Module) else set()
    return {id(parameter) for parameter in model.parameters()} - inside
