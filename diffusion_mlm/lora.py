"""LoRA: small matrices are trained beside the frozen ones of a model, and added to them at the end."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling import unwrap


def require_peft() -> Any:
    """The package peft.

    Raises:
        ImportError: the extra `lora` is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs another package: pip install 'diffusion-mlm[lora]'.") from error
    return peft


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The model with all weights frozen and, beside each chosen matrix, the product of two that train (LoRA).

    It starts by predicting what `model` predicts. `DiffusionTrainer` takes it as any model; its checkpoints hold the
    small matrices alone.

    Args:
        model (`PreTrainedModel`): changed in place: its matrices are wrapped.
        rank (`int`): inner size of the products.
        alpha (`float`, *optional*): the products are multiplied by `alpha / rank`; twice the rank by default.
        targets (`Sequence[str]`, *optional*): ends of the names of the modules, such as `query` and `value`; every
            linear layer but the output embedding by default, as in QLoRA (arXiv:2305.14314, section 4).
        seed (`int`): of the small matrices.

    Returns:
        `peft.PeftModel`; `merge_lora` makes the ordinary model of it.

    Raises:
        ImportError: the extra `lora` is not installed.
        ValueError: a setting is out of range, no module has such a name, or it is the output embedding.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """
    peft = require_peft()
    alpha = 2.0 * rank if alpha is None else alpha
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, not {rank!r}.")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"`alpha` must be a finite number above 0, not {alpha!r}.")
    _require_targets(model, targets)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear" if targets is None else list(targets)
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by old names
        torch.default_generator.manual_seed(seed)
        wrapped: nn.Module = peft.get_peft_model(model, config)
    if Path(config.base_model_name_or_path or "").is_absolute():
        config.base_model_name_or_path = None  # trackers are given it; peft finds it again when it saves
    return wrapped


def _require_targets(model: PreTrainedModel, targets: Sequence[str] | None) -> None:
    if targets is None:
        return
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for target in targets:
        found = [name for name in names if name == target or name.endswith(f".{target}")]
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ValueError(f"`targets` has {target!r}, the name of no linear layer. The model has {known}.")
        if any(model.get_submodule(name) is model.get_output_embeddings() for name in found):
            raise ValueError(
                f"`targets` has {target!r}, the output embedding, whose weights may be those of the input too. Leave "
                f"it out."
            )


def has_lora(model: nn.Module) -> bool:
    """Whether matrices of LoRA are in the model."""
    return any(hasattr(module, "lora_A") for module in model.modules())


def merged_size(model: nn.Module) -> int:
    """How many numbers are in the weights of the ordinary model."""
    return sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" not in name)


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """The ordinary model with the products added to its matrices; a copy, so that `model` can be trained on.

    A model without LoRA is returned as it is.
    """
    if not has_lora(model):
        return unwrap(model)  # type: ignore[return-value]
    while not hasattr(type(model), "get_base_model"):  # `DistributedDataParallel` around it
        model = model.module  # type: ignore[assignment]
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator, no-any-return]
