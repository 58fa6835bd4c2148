"""The last layer on chosen rows: the logits are the full ones, and what cannot be shortened is not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig

from diffusion_mlm.aligned_head import aligned_rows
from diffusion_mlm.last_layer import at_places, last_layer, on_rows, places_of
from diffusion_mlm.modeling import build_model, logits_at

SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
    "pad_token_id": 1,
}
CONFIGS = (BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig)


def model_of(config_class=RobertaConfig, **options):
    model = build_model(config_class(**{**SIZE, **options}), seed=2).eval()
    for parameter in model.parameters():  # norms and biases that are 1 and 0 would hide what is left out
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3, generator=torch.Generator().manual_seed(len(parameter)))
    return model


def example(padded):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (3, 12), generator=generator)
    attention_mask = torch.ones_like(ids)
    if padded:
        attention_mask[1, 8:], ids[1, 8:] = 0, 1
    rows = (torch.rand(3, 12, generator=generator) < 0.4) & attention_mask.bool()
    rows[2] = False  # one row of the batch has no chosen position
    return rows, {"input_ids": ids, "attention_mask": attention_mask}


class Seen:
    """The number of positions that reach the feed-forward part of the last layer."""

    def __init__(self, model):
        self.counts = []
        model.base_model.encoder.layer[-1].intermediate.register_forward_hook(self.see)

    def see(self, _module, args, _output):
        self.counts.append(args[0].shape[:-1].numel())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("config_class", CONFIGS)
@torch.no_grad()
def test_logits_of_chosen_rows_are_the_full_ones_and_the_others_pass_the_last_layer_by(config_class, padded):
    model = model_of(config_class)
    rows, inputs = example(padded)
    full = model(**inputs).logits
    seen = Seen(model)
    chosen = logits_at(model, rows, **inputs)
    assert seen.counts[-1] == int(rows.sum())
    torch.testing.assert_close(chosen, full[rows], rtol=1e-4, atol=1e-5)
    assert (chosen - full.roll(1, 1)[rows]).abs().max() > 0.02
    assert torch.equal(model(**inputs).logits, full)  # the layer is as it was


@torch.no_grad()
def test_all_rows_and_no_rows_are_rows_too():
    model = model_of()
    rows, inputs = example(padded=False)
    torch.testing.assert_close(
        logits_at(model, torch.ones_like(rows), **inputs), model(**inputs).logits.flatten(0, 1), rtol=1e-4, atol=1e-5
    )
    assert logits_at(model, torch.zeros_like(rows), **inputs).shape == (0, 40)


@pytest.mark.parametrize("config_class", [RobertaConfig, ElectraConfig])
def test_gradients_of_all_parameters_are_those_of_full_logits(config_class):
    model = model_of(config_class).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    rows, inputs = example(padded=True)

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients(model(**inputs).logits[rows])
    seen = Seen(model)
    found = gradients(logits_at(model, rows, **inputs))
    assert seen.counts[-1] == int(rows.sum())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_attention_dropout_acts_in_training_alone():
    model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.9)
    rows, inputs = example(padded=False)
    twice = [logits_at(model.train(), rows, **inputs) for _ in range(2)]
    assert not torch.equal(*twice)
    model.roberta.encoder.layer[0].attention.self.dropout.p = 0.0
    twice = [logits_at(model.train(), rows, **inputs) for _ in range(2)]  # that of the last layer alone
    assert not torch.equal(*twice)
    assert torch.equal(*[logits_at(model.eval(), rows, **inputs) for _ in range(2)])


def test_layers_that_run_again_in_the_backward_pass_run_on_all_rows():
    model = model_of().train()
    model.gradient_checkpointing_enable()
    rows, inputs = example(padded=False)
    seen = Seen(model)
    logits_at(model, rows, **inputs).sum().backward()
    assert set(seen.counts) >= {rows.numel()} and seen.counts[-1] == rows.numel()


@torch.no_grad()
def test_a_model_compiled_as_a_whole_is_not_compiled_anew_at_every_call():
    model = model_of()
    rows, inputs = example(padded=False)
    seen = Seen(model)
    wrapped = nn.Module()
    wrapped._orig_mod = model  # what `torch.compile` returns, without compiling
    wrapped.forward = model.forward
    logits_at(wrapped, rows, **inputs)
    assert seen.counts[-1] == rows.numel()


@torch.no_grad()
def test_each_query_keeps_its_own_line_of_a_mask():
    model = model_of()
    rows, inputs = example(padded=False)
    lines = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.7
    inputs["attention_mask"] = lines | torch.eye(12, dtype=torch.bool)
    seen = Seen(model)
    chosen = logits_at(model, rows, **inputs)
    assert seen.counts[-1] == int(rows.sum())
    torch.testing.assert_close(chosen, model(**inputs).logits[rows], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_threads_with_one_model_take_turns():
    model = model_of()
    cases = [torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) < 0.4 for seed in range(40)]
    _, inputs = example(padded=False)
    full = model(**inputs).logits

    @torch.no_grad()
    def found(rows):
        return logits_at(model, rows, **inputs)

    with ThreadPoolExecutor(4) as pool:
        for rows, logits in zip(cases, pool.map(found, cases), strict=True):
            torch.testing.assert_close(logits, full[rows], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_under_autocast_the_head_takes_the_format_of_autocast():
    model, (rows, inputs) = model_of(vocab_size=41), example(padded=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, full = logits_at(model, rows, **inputs), model(**inputs).logits[rows]
    torch.testing.assert_close(chosen, full, rtol=0.1, atol=0.1)


def hook_into_attention(model):
    model.roberta.encoder.layer[-1].attention.register_forward_hook(lambda *_: None)


def hook_into_encoder(model):
    model.roberta.register_forward_hook(lambda *_: None)


def replace_forward(model):
    layer = model.roberta.encoder.layer[-1]
    layer.forward = layer.forward


@pytest.mark.parametrize(
    "change",
    [
        hook_into_attention,
        hook_into_encoder,
        replace_forward,
        lambda model: model.roberta.encoder.layer[-1].compile(backend="eager"),
        lambda model: model.train().gradient_checkpointing_enable(),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: setattr(model.config, "model_type", "other"),
        lambda model: setattr(model.config, "is_decoder", True),
    ],
)
def test_a_layer_that_is_not_as_it_was_shipped_is_left_alone(change):
    model = model_of()
    assert last_layer(model.base_model) is model.roberta.encoder.layer[-1]
    change(model)
    assert last_layer(model.base_model) is None


@torch.no_grad()
def test_an_error_on_the_way_leaves_the_layer_as_it_was():
    model = model_of()
    rows, inputs = example(padded=False)
    layer = model.roberta.encoder.layer[-1]
    with pytest.raises(RuntimeError, match="on the way"), on_rows(layer, rows):
        raise RuntimeError("on the way")
    assert "forward" not in vars(layer)


# The head


@torch.no_grad()
def test_logits_of_aligned_rows_are_the_full_ones_and_may_be_written_to():
    model = model_of(vocab_size=43)
    rows, inputs = example(padded=True)
    chosen = logits_at(model, rows, **inputs)
    assert chosen.stride() == (48, 1)
    torch.testing.assert_close(chosen, model(**inputs).logits[rows], rtol=1e-4, atol=1e-5)
    assert chosen.index_fill_(-1, torch.tensor([0, 42]), -torch.inf).isneginf().sum() == 2 * len(chosen)
    assert "forward" not in vars(model.lm_head.decoder)


@torch.no_grad()
@pytest.mark.parametrize("change", [lambda model: model.double(), lambda model: model.lm_head.decoder.compile()])
def test_another_head_writes_the_rows_that_it_always_wrote(change):
    model = model_of(vocab_size=43)
    rows, inputs = example(padded=False)
    logits_at(model, rows, **inputs)
    change(model)
    head = model.get_output_embeddings()
    with aligned_rows(head):
        assert "forward" not in vars(head)


def test_with_gradients_rows_are_not_aligned():
    model = model_of(vocab_size=43)
    rows, inputs = example(padded=False)
    assert logits_at(model, rows, **inputs).stride() == (43, 1)


def test_states_of_another_shape_than_the_rows_are_refused():
    rows = torch.tensor([[True, False], [False, True], [True, True]])
    places, states = places_of(rows, torch.device("cpu")), torch.randn(3, 2, 4)
    assert torch.equal(at_places(states, places, rows.shape)[0], states[rows])
    with pytest.raises(IndexError, match=r"Rows of shape \(3, 2\) were chosen from states of \(2, 3, 4\)"):
        at_places(states.view(2, 3, 4), places, rows.shape)
