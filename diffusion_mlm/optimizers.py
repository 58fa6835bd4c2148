"""`--optim muon`: Muon for the matrices of the hidden layers, AdamW for embeddings, head, norms and biases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's own Muon and fused AdamW behind one optimizer, so that schedules, checkpoints and accelerate see one.

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
            self._parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
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
