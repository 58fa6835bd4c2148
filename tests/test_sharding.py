"""What FSDP2 is refused, and which layers it divides; what it trains is in `test_processes.py`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion_mlm import DiffusionTrainingArguments
from diffusion_mlm.lora import add_lora
from diffusion_mlm.sharding import (
    all_finite,
    fsdp_was_asked_for,
    layers_to_shard,
    require_sharding,
    shard_model,
    whole_state_dict,
)


def plugin(**settings):
    defaults = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    return SimpleNamespace(**{**defaults, **settings})


@pytest.mark.parametrize(
    "settings, kind, message",
    [
        (None, "MULTI_CPU", "`fsdp` needs accelerators: with MULTI_CPU processes"),
        ({}, "MULTI_CPU", "`fsdp` needs accelerators"),
        ({"fsdp_version": 1}, "FSDP", "asks for version 1"),
        ({"cpu_ram_efficient_loading": True}, "FSDP", "`cpu_ram_efficient_loading` False"),
        ({"activation_checkpointing": True}, "FSDP", "Set `activation_checkpointing` of the training arguments"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused(settings, kind, message):
    with pytest.raises(ValueError, match=message):
        require_sharding(None if settings is None else plugin(**settings), kind)


def test_fsdp_of_version_2_on_accelerators_is_accepted():
    require_sharding(plugin(), "FSDP")


def test_fsdp_is_asked_for_by_argument_or_by_accelerate_launch(tmp_path, monkeypatch):
    plain = DiffusionTrainingArguments(str(tmp_path), use_cpu=True)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not fsdp_was_asked_for(plain)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert fsdp_was_asked_for(plain)


def test_the_layers_that_share_no_weight_are_divided(tiny_roberta):
    """RoBERTa names its embeddings, too, which must not be split; but the head shares their matrix."""
    assert set(tiny_roberta._no_split_modules) == {"RobertaEmbeddings", "RobertaLayer"}
    assert layers_to_shard(tiny_roberta) == list(tiny_roberta.roberta.encoder.layer)
    assert layers_to_shard(tiny_roberta, ["RobertaAttention"]) == [tiny_roberta.roberta.encoder.layer[0].attention]
    with pytest.raises(ValueError, match=r"is \['BertLayer'\], and RobertaForMaskedLM has no such layer"):
        layers_to_shard(tiny_roberta, ["BertLayer"])
    with pytest.raises(ValueError, match="Linear has no such layer"):
        layers_to_shard(nn.Linear(2, 2))


def test_a_model_that_is_whole_is_left_to_the_library(tiny_roberta):
    assert whole_state_dict(tiny_roberta) is None
    assert all_finite(torch.tensor([1.0, 2.0])) and not all_finite(torch.tensor([1.0, float("nan")]))


def test_lora_is_refused_before_training_and_not_after_it(tiny_roberta):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="`fsdp` and LoRA exclude one another"):
        shard_model(add_lora(tiny_roberta, rank=2), plugin())
