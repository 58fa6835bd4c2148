"""A step on a CPU: dropout has the law of torch's, attention and gradients are torch's."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import cpu_training
from diffusion_mlm.cpu_training import attention, dropout, fast_step


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_and_the_mean_are_those_of_dropout(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(401, 1003, dtype=dtype)
    found = dropout(x, p)
    assert found.dtype == dtype
    assert found.shape == x.shape
    kept = found.ne(0)
    share = kept.double().mean()
    assert abs(float(share) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / x.numel()) + 2**-17
    assert found[kept].unique().tolist() == pytest.approx(
        [1 / (1 - p)], rel=1e-2 if dtype == torch.bfloat16 else 1e-2 * p
    )


@pytest.mark.parametrize("p", [1e-9, 7e-6, 1 - 7e-6, 1 - 1e-9])
def test_shares_too_small_for_sixteen_bits_are_left_to_torch(p):
    x = torch.ones(1_000_000)
    torch.manual_seed(0)
    found = dropout(x, p)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, p))


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = dropout(torch.ones(1_000_000), 0.3).ne(0).double() - 0.7
    for distance in (1, 2, 3, 4, 8, 16):
        assert abs(float((kept[distance:] * kept[:-distance]).mean())) < 5 * 0.21 / 1000


@given(shape=st.lists(st.integers(0, 5), max_size=3), seed=st.integers(0, 2**31))
def test_any_shape_is_dropped_and_its_gradient_is_what_was_kept(shape, seed):
    torch.manual_seed(seed)
    x = torch.randn(shape, requires_grad=True)
    found = dropout(x, 0.4)
    found.sum().backward()
    assert torch.equal(found, x.detach() * x.grad)
    torch.manual_seed(seed)
    assert torch.equal(dropout(torch.randn(shape), 0.4), found)


def masks():
    seen = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[..., 0] = True
    return [None, seen, torch.zeros(2, 1, 5, 7).masked_fill(~seen, -math.inf)]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_attention_is_that_of_torch_where_nothing_is_dropped(monkeypatch, number, scale):
    monkeypatch.setattr(cpu_training, "dropout", lambda x, p: x)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 4, generator=generator) for length in (5, 7, 7))
    mask = masks()[number]
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    assert torch.allclose(attention(query, key, value, mask, 0.1, scale), expected, atol=1e-6)
    rounded = attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, 0.1, scale)
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), expected, atol=5e-2)


def test_attention_has_the_mean_of_torch_over_what_is_dropped():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, length, 4) for length in (2, 6, 6))
    many = [x.expand(20_000, -1, -1, -1) for x in (query, key, value)]
    found = attention(*many, None, 0.3, 0.5).mean(0)
    assert torch.allclose(found, F.scaled_dot_product_attention(query, key, value, scale=0.5)[0], atol=3e-2)


@pytest.mark.parametrize("least", [None, -math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_without_any_key_is_finite_and_so_are_gradients(least, dtype):
    seen = torch.tensor([[[[True, False, True], [False, False, False]]]])
    mask = seen if least is None else torch.zeros(seen.shape).masked_fill(~seen, least)
    x = torch.randn(1, 1, 3, 4, dtype=dtype, requires_grad=True)
    found = attention(x[:, :, :2], x, x, mask, 0.1, 0.5)
    found.sum().backward()
    assert found.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_of_a_checkpoint_are_those_of_its_forward(reentrant):
    torch.manual_seed(0)
    linear, drop = nn.Linear(4, 4), nn.Dropout(0.5)
    model, x = nn.Sequential(linear, drop), torch.randn(64, 4, requires_grad=True)
    with fast_step(model):
        found = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        found.sum().backward()
    assert torch.equal(linear.bias.grad, 2.0 * found.ne(0).sum(0))


def test_emulated_products_are_done_in_float32(monkeypatch):
    monkeypatch.setattr(cpu_training, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(cpu_training, "dropout", lambda x, p: x)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x, x, x, None, 0.1, 0.5)
    exact = F.scaled_dot_product_attention(x.float(), x.float(), x.float(), scale=0.5)
    assert torch.equal(found, exact.bfloat16())


class Dropping(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.linear, self.drop = nn.Linear(2, 2), nn.Dropout(p)

    def forward(self, x):
        x = self.drop(x)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.drop.p if self.training else 0.0)


def counting(name, function, counts):
    def counted(*args):
        counts[name] += 1
        return function(*args)

    return counted


def calls(monkeypatch, model):
    """How often the functions of this module are called while `model` runs."""
    counts = {"dropout": 0, "attention": 0}
    for name in counts:
        monkeypatch.setattr(cpu_training, name, counting(name, getattr(cpu_training, name), counts))
    with fast_step(model):
        model(torch.ones(1, 1, 2, 2))
    return counts


def test_a_model_in_training_is_dropped_by_them(monkeypatch):
    assert calls(monkeypatch, Dropping()) == {"dropout": 2, "attention": 1}


def compiled():
    model = Dropping()
    model.linear.compile()
    return model


def test_an_evaluated_model_drops_nothing(monkeypatch):
    assert calls(monkeypatch, Dropping().eval()) == {"dropout": 0, "attention": 0}


@pytest.mark.parametrize("model", [compiled(), torch.compile(Dropping())], ids=["a compiled layer", "compiled"])
def test_compiled_models_are_left_to_torch(model):
    before = F.dropout, F.scaled_dot_product_attention
    with fast_step(model):
        assert (F.dropout, F.scaled_dot_product_attention) == before


def test_many_threads_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    before = F.dropout, F.scaled_dot_product_attention
    with fast_step(Dropping()):
        assert (F.dropout, F.scaled_dot_product_attention) == before


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("length", [256, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_rows_in_bfloat16_have_attention_of_their_own_where_gradients_are_wanted(
    monkeypatch, multiplies, length, dtype
):
    monkeypatch.setattr(cpu_training, "multiplies_bfloat16", lambda: multiplies)
    counts = {"attention": 0}
    monkeypatch.setattr(cpu_training, "attention", counting("attention", attention, counts))
    x = torch.randn(1, 2, length, 4, dtype=dtype, requires_grad=True)
    with fast_step(Dropping()):
        found = F.scaled_dot_product_attention(x, x, x)
        with torch.no_grad():
            torchs = F.scaled_dot_product_attention(x, x, x)
    assert counts == {"attention": int(multiplies and length == 256 and dtype == torch.bfloat16)}
    assert torch.allclose(found, torchs, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("change", [{"is_causal": True}, {"enable_gqa": True}, {"dropout_p": 0.0}])
def test_attention_that_is_not_known_is_torchs(monkeypatch, change):
    monkeypatch.setattr(cpu_training, "attention", None)
    x = torch.randn(1, 2, 3, 4)
    how, inside = {"dropout_p": 0.1, **change}, fast_step(Dropping())
    torch.manual_seed(0)
    expected = F.scaled_dot_product_attention(x, x, x, **how)
    torch.manual_seed(0)
    with inside:
        assert torch.equal(F.scaled_dot_product_attention(x, x, x, **how), expected)


def test_torch_is_as_before_when_the_last_one_is_done():
    before = F.dropout, F.scaled_dot_product_attention
    first, second = fast_step(Dropping()), fast_step(Dropping())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert F.dropout is not before[0]
    second.__exit__(None, None, None)
    assert (F.dropout, F.scaled_dot_product_attention) == before


def model_of(**how):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return RobertaForMaskedLM(RobertaConfig(vocab_size=40, **sizes, **how)).eval()


IDS = torch.tensor([[5, 6, 7, 7, 7, 1], [8, 39, 5, 9, 1, 1]])  # 1 is padding


def gradients(model, context, steps=1, dtype=None):
    with context:
        for _ in range(steps):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
def test_gradients_are_those_of_torch(tied, wrapped, steps, dtype):
    model = model_of(tie_word_embeddings=tied)
    around = nn.ModuleDict({"module": model}) if wrapped else model
    expected = gradients(copy.deepcopy(model), nullcontext(), steps, dtype)
    found = gradients(model, fast_step(around), steps, dtype)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6 if dtype is None else 5e-3), name
    assert "forward" not in vars(model.get_input_embeddings())


def test_gradients_of_an_embedding_alone_are_whole_too():
    model = model_of()
    embedding = model.get_input_embeddings()
    weights = torch.randn(*IDS.shape, 16)
    (embedding(IDS) * weights).sum().backward()
    expected, embedding.weight.grad = embedding.weight.grad, None
    with fast_step(model):
        (embedding(IDS) * weights).sum().backward()
    assert torch.allclose(embedding.weight.grad, expected)
    assert embedding.weight.grad[1].eq(0).all()


def takes_rows(model):
    with fast_step(model):
        return "forward" in vars(model.get_input_embeddings())


def changed(change):
    model = model_of()
    change(model.get_input_embeddings())
    return model


def test_rows_of_gradient_are_taken_only_where_the_head_has_the_rest(monkeypatch):
    assert takes_rows(model_of())
    assert not takes_rows(model_of(tie_word_embeddings=False))
    assert not takes_rows(changed(lambda embedding: embedding.weight.requires_grad_(False)))
    assert not takes_rows(changed(lambda embedding: embedding.weight.register_hook(lambda gradient: gradient)))
    assert not takes_rows(
        changed(lambda embedding: embedding.weight.register_post_accumulate_grad_hook(lambda weight: None))
    )
    for name, value in {"scale_grad_by_freq": True, "sparse": True, "max_norm": 1.0}.items():
        assert not takes_rows(changed(lambda embedding, name=name, value=value: setattr(embedding, name, value)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert not takes_rows(model_of())


def test_a_step_that_fails_leaves_the_embedding_as_it_was():
    model = model_of()
    with pytest.raises(RuntimeError, match="stop"), fast_step(model):
        raise RuntimeError("stop")
    assert "forward" not in vars(model.get_input_embeddings())
