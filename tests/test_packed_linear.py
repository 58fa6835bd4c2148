"""Packed linear layers compute what linear layers compute, whatever happens to their weights."""

import copy
import pickle
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import packed_linear
from diffusion_mlm.packed_linear import PackedLinear, multiplies_bfloat16, pack_linears, unpack_linears


@pytest.fixture
def model(monkeypatch):
    """Packed in float32, as small as it is: this processor may have no others."""
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.LayerNorm(64), nn.Linear(64, 33, bias=False))
    pack_linears(model)
    if type(model[0]) is nn.Linear:
        pytest.skip("this machine packs nothing")
    return model


def packs(monkeypatch):
    """Counts how often weights are packed."""
    found = []
    pack = packed_linear._pack

    def counted(weight):
        found.append(tuple(weight.shape))
        return pack(weight)

    monkeypatch.setattr(packed_linear, "_pack", counted)
    return found


def expected(model, x):
    for layer in model:
        x = F.linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
    return x


@pytest.mark.parametrize("rows", [1, 3, 80, 300])
def test_products_are_those_of_linear_layers_and_weights_are_packed_once(model, monkeypatch, rows):
    found = packs(monkeypatch)
    x = torch.randn(2, rows, 48)
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(model(x), expected(model, x), atol=1e-5)
    assert found == [(64, 48), (33, 64)]
    assert [type(layer) for layer in model] == [PackedLinear, nn.LayerNorm, PackedLinear]


def test_few_products_of_float32_take_the_usual_way(monkeypatch):
    found, model = packs(monkeypatch), nn.Sequential(nn.Linear(256, 512))
    pack_linears(model)
    with torch.no_grad():
        model(torch.randn(2**7 - 1, 256))
        assert found == [(512, 256)]  # to see whether this machine packs
        model(torch.randn(2**7, 256))
    assert found == [(512, 256)] * (2 if type(model[0]) is PackedLinear else 1)


@pytest.mark.parametrize("rows", [1, 80, 640])
def test_bfloat16_products_are_those_of_linear_layers(rows):
    if not multiplies_bfloat16():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 384)).bfloat16(), torch.randn(rows, 256).bfloat16()
    pack_linears(model)
    assert type(model[0]) is PackedLinear
    with torch.no_grad():
        exact = F.linear(x.float(), model[0].weight.float(), model[0].bias.float())
        assert torch.allclose(model(x).float(), exact, atol=2e-2)


def test_changed_weights_are_packed_anew(model):
    x = torch.randn(5, 48)
    with torch.no_grad():
        before = model(x)
        model[0].weight.mul_(2.0)
        assert torch.allclose(model(x), expected(model, x), atol=1e-5)
        assert not torch.allclose(model(x), before)
        model[0].weight = nn.Parameter(torch.randn(64, 48))
        assert torch.allclose(model(x), expected(model, x), atol=1e-5)
        model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
        assert torch.allclose(model(x), expected(model, x), atol=1e-5)


def test_gradients_and_other_formats_take_the_usual_way(model, monkeypatch):
    found = packs(monkeypatch)
    x = torch.randn(5, 48)
    model(x).sum().backward()
    assert model[0].weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model[0](x.bfloat16()).dtype == torch.bfloat16
    assert found == []


def test_weights_changed_by_way_of_data_are_packed_anew(model):
    x = torch.randn(5, 48)
    with torch.no_grad():
        before = model(x)
        version = model[0].weight._version
        model[0].weight.data.add_(0.1)
        assert model[0].weight._version == version
        assert torch.allclose(model(x), expected(model, x), atol=1e-5)
        assert not torch.allclose(model(x), before)


def test_a_row_of_an_output_embedding_changed_by_way_of_data_is_noticed(monkeypatch):
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    layer, x = nn.Linear(16, 400), torch.randn(3, 16)
    layer.__class__, layer.lengthens_rows = PackedLinear, True
    with torch.no_grad():
        for row in range(len(layer.weight)):
            layer(x)
            layer.weight.data[row] = 1.0
            assert torch.allclose(layer(x)[:, row], F.linear(x, layer.weight, layer.bias)[:, row], atol=1e-5)


def test_a_weight_that_lies_across_takes_the_usual_way(monkeypatch):
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    found, layer, x = packs(monkeypatch), nn.Linear(32, 16), torch.randn(3, 32)
    layer.__class__ = PackedLinear
    layer.weight = nn.Parameter(torch.randn(32, 16).T)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert found == []


def test_a_parametrized_layer_can_leave_the_cpu(model):
    torch.nn.utils.parametrizations.weight_norm(model[0])
    assert model.to("meta")[0].weight.device.type == "meta"


@pytest.mark.parametrize("shape", [(33, 64), (768, 768), (50, 3)])
def test_what_is_looked_at_for_changes_is_not_of_a_single_column(shape, monkeypatch):
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    layer = nn.Linear(shape[1], shape[0])
    layer.__class__ = PackedLinear
    with torch.no_grad():
        layer.weight.copy_(torch.arange(layer.weight.numel()).view(shape))
        layer(torch.randn(2, shape[1]))
    seen = layer._packed_probes[0].long()
    assert len(set((seen % shape[1]).tolist())) >= min(shape[1], 32)
    assert len(set((seen // shape[1]).tolist())) >= min(shape[0], 32)


def test_copies_are_whole_and_hold_no_packed_weights(model):
    x = torch.randn(5, 48)
    with torch.no_grad():
        before = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other[0]._packed is None
            assert torch.equal(other(x), before)
            other[0].weight.zero_()
            assert torch.equal(model(x), before)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}


def test_a_machine_that_packs_nothing_leaves_the_model_as_it_is(monkeypatch):
    def fails(weight, rows):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", fails)
    model = nn.Sequential(nn.Linear(4, 4))
    pack_linears(model)
    assert type(model[0]) is nn.Linear


def test_a_format_that_cannot_be_packed_takes_the_usual_way(model):
    x = torch.randn(5, 48)
    with torch.no_grad():
        model(x)
        model.double()
        assert torch.equal(model(x.double()), expected(model, x.double()))


def test_weights_of_inference_mode_autocast_and_tracing_take_the_usual_way(model, monkeypatch):
    found, x = packs(monkeypatch), torch.randn(5, 48)
    with torch.inference_mode():
        other = nn.Sequential(nn.Linear(48, 64))
        other[0].__class__ = PackedLinear
        assert torch.equal(other(x), F.linear(x, other[0].weight, other[0].bias))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model[0](x).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(
            torch.jit.trace(model[0], x, check_trace=False)(x), F.linear(x, model[0].weight, model[0].bias)
        )
    assert found == []


def test_a_layer_that_leaves_the_cpu_is_a_plain_one(model):
    with torch.no_grad():
        model(torch.randn(5, 48))
    assert model[0]._packed is not None
    assert type(model.double()[0]) is PackedLinear and model[0]._packed is None
    assert type(model.to("meta")[0]) is nn.Linear
    assert not any(name.startswith("_packed") for name in vars(model[0]))


def test_an_unpacked_model_is_as_before(model):
    x = torch.randn(5, 48)
    with torch.no_grad():
        model(x)
        unpack_linears(model)
        assert [type(layer) for layer in model] == [nn.Linear, nn.LayerNorm, nn.Linear]
        assert torch.equal(model(x), expected(model, x))
    assert not any(name.startswith("_packed") for name in vars(model[0]))


def test_merged_adapters_are_noticed(monkeypatch):
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    config = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    model = RobertaForMaskedLM(config).eval()
    pack_linears(model)
    ids = torch.arange(5, 15)[None]
    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value", "dense"], init_lora_weights=False))
    adapted.eval()
    if not any(type(module) is PackedLinear for module in model.modules()):
        pytest.skip("this machine packs nothing")
    with torch.no_grad():
        before, with_adapter = model(ids).logits, adapted(ids).logits  # both through the layers that it wrapped
        merged = adapted.merge_and_unload()
        assert torch.allclose(before, with_adapter)
        assert torch.allclose(merged(ids).logits, with_adapter, atol=1e-5)
        assert any(type(module) is PackedLinear and module._packed is not None for module in merged.modules())


def test_rows_of_logits_begin_where_cache_lines_do(monkeypatch):
    monkeypatch.setattr(packed_linear, "_LEAST", 0)
    config = RobertaConfig(
        vocab_size=41, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = RobertaForMaskedLM(config).eval()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = model(ids).logits
        pack_linears(model)
        if type(model.lm_head.decoder) is nn.Linear:
            pytest.skip("this machine packs nothing")
        logits = model(ids).logits
        assert logits.shape == before.shape and logits.stride(1) == 48
        assert torch.allclose(logits, before, atol=1e-5)
        model.lm_head.decoder.bias.add_(1.0)
        assert torch.allclose(model(ids).logits, before + 1, atol=1e-5)
        unpack_linears(model)
        assert torch.equal(model(ids).logits, before + 1)
        assert not hasattr(model.lm_head.decoder, "lengthens_rows")


def test_a_copy_that_would_take_half_of_the_free_memory_is_not_made(monkeypatch):
    model = nn.Sequential(nn.Linear(64, 64))  # 16 KiB
    for free, kind in ((2**15 - 1, nn.Linear), (2**15, PackedLinear)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        pack_linears(model)
        if packed_linear._pack(model[0].weight) is not None:
            assert type(model[0]) is kind


def test_layers_of_other_classes_stay_as_they_are():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(Other(4, 4))
    pack_linears(model)
    assert type(model[0]) is Other


def test_a_compiled_layer_is_compiled_as_a_linear_layer(model, monkeypatch):
    found = packs(monkeypatch)
    x = torch.randn(5, 48)
    with torch.no_grad():
        compiled = torch.compile(model[0], backend="eager")
        assert torch.allclose(compiled(x), F.linear(x, model[0].weight, model[0].bias), atol=1e-5)
    assert found == []
