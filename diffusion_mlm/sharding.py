"""FSDP2: the weights, gradients and optimizer states of a masked language model divided among processes."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .lora import has_lora


def require_sharding(plugin: Any, distributed_type: str) -> None:
    """Refuses what accelerate would do silently, or wrongly, instead of FSDP2.

    Args:
        plugin (`accelerate.utils.FullyShardedDataParallelPlugin`, *optional*): as accelerate has set it up.
        distributed_type (`str`): of the accelerator, such as `"FSDP"` or `"MULTI_CPU"`.

    Raises:
        ValueError: accelerate trains copies of the model although FSDP was asked for, or the settings are those of
            FSDP1, load weights in one process only, or recompute activations with other dropout.
    """
    if plugin is None or distributed_type != "FSDP":
        raise ValueError(
            f"`fsdp` needs accelerators: with {distributed_type} processes accelerate would train a whole copy of the "
            f"model in each of them and not say so. Leave it out."
        )
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_config` asks for version {plugin.fsdp_version}: only version 2 works here.")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "`fsdp_config` must leave `cpu_ram_efficient_loading` False: weights that are tied would come apart."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "`fsdp_config` must leave `activation_checkpointing` False: it recomputes with other dropout than the "
            "forward had, so gradients would be wrong. Set `activation_checkpointing` of the training arguments."
        )


def fsdp_was_asked_for(args: Any) -> bool:
    """Whether the training arguments, or `accelerate launch` through the environment, ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_model(model: nn.Module, plugin: Any, mesh: Any = None) -> None:
    """Divides the weights among the processes, in place: a group for each layer, and one for all the rest.

    accelerate would do so by itself, but with RoBERTa and its relatives it fails (a group for the embeddings and
    another for the head, which share a matrix) or, told to leave the embeddings alone, takes `lm_head.bias` apart from
    `lm_head.decoder.bias`, which is the same one: the trained bias would not be saved. What is tied must lie in one
    group. A model that is sharded here is left alone there.

    Args:
        model (`torch.nn.Module`): whole, in every process.
        plugin (`accelerate.utils.FullyShardedDataParallelPlugin`): the settings; `transformer_cls_names_to_wrap` names
            the layers, by default those that the model must not split.
        mesh (`torch.distributed.DeviceMesh`, *optional*): the processes that share; all by default.

    Raises:
        ValueError: no layer has one of the names, or the model has LoRA.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if isinstance(model, FSDPModule):
        return
    if has_lora(model):
        raise ValueError(
            "`fsdp` and LoRA exclude one another: no process could merge the matrices into weights that it has a part "
            "of. Leave one of them out."
        )
    # Gradients are summed over processes in float32, as without sharding; accelerate would sum them in bfloat16.
    policy = replace(plugin.mixed_precision_policy or MixedPrecisionPolicy(), reduce_dtype=torch.float32)
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": policy,
        "offload_policy": plugin.cpu_offload,
    }
    for layer in layers_to_shard(model, plugin.transformer_cls_names_to_wrap):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(model, **settings)
    plugin.auto_wrap_policy = None  # accelerate has nothing left to wrap, and knows classes by the names they had


def layers_to_shard(model: nn.Module, names: list[str] | None = None) -> list[nn.Module]:
    """The outermost modules of these classes that share no weight with anything outside them.

    Args:
        names (`list[str]`, *optional*): of classes; by default `_no_split_modules` of the model.

    Raises:
        ValueError: there is none of these names.
    """
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted]
    if not found:
        raise ValueError(
            f"`transformer_layer_cls_to_wrap` is {sorted(wanted)}, and {type(model).__name__} has no such layer. Name "
            f"the class of its layers in `fsdp_config`."
        )
    inside = {id(inner) for module in found for inner in module.modules() if inner is not module}
    outermost = [module for module in found if id(module) not in inside]
    places = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    return [
        module
        for module in outermost
        if all(places.count(id(parameter)) == 1 for _, parameter in module.named_parameters(remove_duplicate=False))
    ]


def is_sharded(model: Any) -> bool:
    """Whether the weights are divided, so that a forward is the work of all processes together."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def all_finite(parameter: Tensor) -> bool:
    """Whether every number is finite; of a divided tensor all processes ask, and get the same answer."""
    from torch.distributed.tensor import DTensor

    finite = torch.isfinite(parameter).all()
    return bool(finite.full_tensor() if isinstance(finite, DTensor) else finite)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights of a divided model in the first process, on the CPU, tied ones once; all processes must ask.

    Returns:
        `dict[str, torch.Tensor]` for `save_pretrained(state_dict=...)`; empty in the other processes, and None where
        the model is not divided and `save_pretrained` knows what to do.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: weight for name, weight in weights.items() if name not in tied}
