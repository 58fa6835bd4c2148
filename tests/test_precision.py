"""Precision: formats of weights, and compiled layers, which write the text that others write."""

import importlib.util

import pytest
import torch
from torch import nn

from diffusion_mlm import generate, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.generation import load_generator
from diffusion_mlm.last_layer import last_layer
from diffusion_mlm.precision import compile_layers, set_precision

PREFIXES = ["Once upon a time, Mia", "A clever boy named Ben"]


def texts(model, tokenizer, **settings):
    return generate(model, tokenizer, PREFIXES, preset="greedy", steps=4, max_new_tokens=12, seed=0, **settings).texts


@pytest.fixture
def generator():
    return load_generator(STORIES_GENERATOR)


def test_float32_is_the_model_as_it_is(generator):
    model, tokenizer = generator
    before = texts(model, tokenizer)
    assert texts(set_precision(model, "float32"), tokenizer) == before


def test_bfloat16_writes_whole_texts_without_special_tokens(generator):
    model, tokenizer = generator
    set_precision(model, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for settings in ({"preset": "greedy"}, {"order": "random", "top_p": 1.0}, {"preset": "fast"}):
        output = generate(model, tokenizer, PREFIXES, max_new_tokens=12, seed=0, **settings)
        for sample in output.samples:
            assert not set(sample.token_ids) & set(tokenizer.all_special_ids)
            assert 0 < sample.num_forwards <= 12


def test_another_format_is_refused_in_one_sentence(generator):
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, int8, got 'int4'"):
        set_precision(generator[0], "int4")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_int8_names_the_extra_that_it_needs(generator):
    with pytest.raises(ImportError, match=r"diffusion-mlm\[int8\]"):
        set_precision(generator[0], "int8")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra int8")
@torch.no_grad()
def test_int8_predicts_nearly_what_float32_predicts(generator):
    model, _ = generator
    ids = story_language.sample_ids(4, seed=1)
    before = model(input_ids=ids).logits.log_softmax(-1)
    after = set_precision(model, "int8")(input_ids=ids).logits.log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1)
    assert 0 < divergence.mean() < 0.02


def test_compiled_layers_write_the_same_text(generator, monkeypatch):
    model, tokenizer = generator
    before = texts(model, tokenizer)
    ours = nn.Module.compile
    compiled = []

    def traced(self, **options):  # by the compiler's front end alone, which takes seconds instead of a minute
        compiled.append(self)
        ours(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    assert compile_layers(model) is model
    layers = model.base_model.encoder.layer
    assert set(layers[:-1]) < set(compiled)
    assert last_layer(model.base_model) is layers[-1]  # its parts are compiled
    assert texts(model, tokenizer) == before


def test_an_encoder_of_another_build_is_not_compiled():
    with pytest.raises(ValueError, match="ExactDenoiser cannot be compiled layer by layer"):
        compile_layers(story_language.ExactDenoiser())
