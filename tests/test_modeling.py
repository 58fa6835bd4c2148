"""Models: logits at chosen positions equal the full ones, and what cannot be loaded is refused in one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)
from transformers.modeling_outputs import MaskedLMOutput

from diffusion_mlm import load_model, story_language
from diffusion_mlm.modeling import (
    build_model,
    context_length,
    end_token_id,
    forbidden_token_ids,
    logits_at,
    require_mask_token,
    selects_rows,
    unwrap,
)
from diffusion_mlm.presets import preset_config

TOKENIZER = story_language.tokenizer()
SIZE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONFIGS = {
    "roberta": RobertaConfig(**SIZE, max_position_embeddings=82, pad_token_id=1),
    "bert": BertConfig(**SIZE, max_position_embeddings=80),
    "distilbert": DistilBertConfig(
        vocab_size=len(TOKENIZER), dim=32, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=80
    ),
    "modernbert": ModernBertConfig(**SIZE, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0),
    "modern": preset_config("modern-tiny", TOKENIZER, 80, num_hidden_layers=1, num_attention_heads=2, hidden_size=32),
    "modern, told the time": preset_config(
        "modern-tiny",
        TOKENIZER,
        80,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=32,
        qk_norm=True,
        time_conditioning="adaln",
    ),
}


def model_of(name, seed=0):
    return build_model(CONFIGS[name], seed).eval()


def ids_and_rows(num_rows=3, length=12):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(TOKENIZER), (num_rows, length), generator=generator)
    return ids, torch.rand(num_rows, length, generator=generator) < 0.4


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# Logits at chosen positions


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_at_equal_the_full_logits_and_their_gradients(name):
    ids, rows = ids_and_rows()
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": attention_mask}
    chosen, full = model_of(name), model_of(name)
    weight = torch.randn(int(rows.sum()), len(TOKENIZER), generator=torch.Generator().manual_seed(1))

    assert selects_rows(chosen)
    logits, expected = logits_at(chosen, rows, **inputs), full(**inputs).logits[rows]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert gradients(chosen).keys() == gradients(full).keys()
    for key, gradient in gradients(full).items():
        torch.testing.assert_close(gradients(chosen)[key], gradient, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_chosen_position_gives_no_logits_but_a_graph(name):
    ids, rows = ids_and_rows()
    logits = logits_at(model_of(name), torch.zeros_like(rows), input_ids=ids)
    assert logits.shape == (0, len(TOKENIZER))
    logits.sum().backward()


def test_the_forward_after_logits_at_is_the_full_one_again():
    ids, rows = ids_and_rows()
    model = model_of("roberta")
    logits_at(model, rows, input_ids=ids)
    assert model(input_ids=ids).logits.shape == (*ids.shape, len(TOKENIZER))
    with pytest.raises(IndexError):
        logits_at(model, rows, input_ids=ids + len(TOKENIZER))
    assert model(input_ids=ids).logits.shape == (*ids.shape, len(TOKENIZER))


def test_a_model_without_a_separate_head_computes_all_logits():
    denoiser = story_language.ExactDenoiser()
    ids = story_language.sample_ids(2, seed=0)
    rows = torch.zeros_like(ids).bool()
    rows[0, 3] = rows[1, 5] = True
    ids = ids.masked_fill(rows, TOKENIZER.mask_token_id)
    assert not selects_rows(denoiser)
    assert torch.equal(logits_at(denoiser, rows, input_ids=ids), denoiser(ids).logits[rows])


class MixingHead(nn.Module):
    """A masked language model whose head looks at neighbouring positions, which selecting rows would tear apart."""

    def __init__(self):
        super().__init__()
        self.base_model = model_of("roberta").roberta
        self.mix = nn.Conv1d(32, len(TOKENIZER), 3, padding=1)
        self.config = CONFIGS["roberta"]

    def forward(self, input_ids):
        hidden = self.base_model(input_ids=input_ids).last_hidden_state
        return MaskedLMOutput(logits=self.mix(hidden.transpose(1, 2)).transpose(1, 2))


def test_a_head_that_mixes_positions_is_found_out(caplog):
    torch.manual_seed(0)
    model = MixingHead().eval()
    ids, rows = ids_and_rows()
    with torch.no_grad():  # however small its logits are
        model.mix.weight *= 1e-4
    assert not selects_rows(model) and "MixingHead" in caplog.text
    assert torch.equal(logits_at(model, rows, input_ids=ids), model(ids).logits[rows])


def test_the_search_for_the_head_leaves_training_mode_and_random_state_alone():
    model = build_model(CONFIGS["roberta"]).train()
    model.lm_head.eval()
    state = torch.get_rng_state()
    assert selects_rows(model)
    assert model.training and model.roberta.encoder.training and not model.lm_head.training
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_models_select_rows_too():
    assert selects_rows(model_of("roberta").bfloat16())


def test_unwrap_finds_the_model_inside_its_wrappers():
    model = model_of("roberta")
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model, backend="eager")) is model


# Building


def test_attention_of_a_new_roberta_copies_what_it_attends_to():
    model = build_model(preset_config("roberta-tiny", TOKENIZER), seed=0)
    hidden = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    for layer in model.roberta.encoder.layer:
        copied = layer.attention.output.dense(layer.attention.self.value(hidden))
        torch.testing.assert_close(copied, hidden, rtol=0, atol=1e-5)


def test_a_built_model_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = build_model(CONFIGS["roberta"], seed=3).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = build_model(CONFIGS["roberta"], seed=3), build_model(CONFIGS["roberta"], seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.state_dict().items())
    name = "roberta.embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], other.state_dict()[name])


def test_a_built_model_is_float32_and_leaves_its_configuration_alone():
    config = RobertaConfig(**SIZE, dtype="bfloat16")
    config._attn_implementation = "sdpa"
    assert build_model(config, attn_implementation="eager").dtype == torch.float32
    assert config._attn_implementation == "sdpa"


# Loading


@pytest.fixture
def saved(tmp_path):
    """A directory as `RobertaForMaskedLM.save_pretrained` writes it."""
    RobertaForMaskedLM(CONFIGS["roberta"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def cut_weights(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def lfs_pointer(directory):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 498818054\n"
    (directory / "model.safetensors").write_text(text)


def pickle_only(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def change_tensors(change):
    def damage(directory):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


@change_tensors
def nan_weight(tensors):
    tensors["roberta.embeddings.word_embeddings.weight"][7, 3] = float("nan")


@change_tensors
def lost_weights(tensors):
    for name in [name for name in tensors if ".attention." in name]:
        del tensors[name]


@change_tensors
def other_shape(tensors):
    tensors["lm_head.dense.weight"] = torch.zeros(5, 5)


def gpt2(directory):
    shutil.rmtree(directory)
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)).save_pretrained(directory)


def classifier(directory):
    RobertaForSequenceClassification(CONFIGS["roberta"]).save_pretrained(directory)


def more_layers(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))


def no_config(directory):
    (directory / "config.json").unlink()


def no_json(directory):
    (directory / "config.json").write_text("{")


def no_weights(directory):
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, says",
    [
        (gpt2, "no masked-language-model class"),
        (classifier, "lacks lm_head."),
        (lost_weights, "and 5 more; it is no complete masked language model"),
        (more_layers, "lacks roberta.encoder.layer.1."),
        (other_shape, "weights of another shape for lm_head.dense.weight"),
        (cut_weights, "no valid safetensors file"),
        (lfs_pointer, "Git LFS pointer"),
        (pickle_only, "no model.safetensors"),
        (no_weights, "no model.safetensors"),
        (nan_weight, "roberta.embeddings.word_embeddings.weight are not finite"),
        (no_config, "without config.json"),
        (no_json, "cannot be loaded"),
    ],
)
def test_what_is_no_masked_language_model_is_refused_in_one_sentence(saved, damage, says):
    damage(saved)
    with pytest.raises(ValueError) as raised:
        load_model(str(saved), argument="--checkpoint")
    message = str(raised.value)
    assert message.startswith(f"`--checkpoint` is {str(saved)!r}") and says in message
    assert "\n" not in message and len(message) < 1000


@pytest.mark.parametrize("name", ["./missing", "/no/such/place", "../../../etc/nothing", "", "~/nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    with pytest.raises(ValueError, match="there is no such directory"):
        load_model(name)


def test_a_bfloat16_file_is_loaded_in_float32(tmp_path):
    build_model(CONFIGS["roberta"]).bfloat16().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["lm_head.bias"].dtype == torch.bfloat16
    assert load_model(str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_comes_back_as_it_was(tmp_path, name):
    """Nothing is called missing that only stands there twice, as tied weights do."""
    model = model_of(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).eval()
    ids, _ = ids_and_rows()
    assert type(loaded) is type(model)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_loading_leaves_the_random_state_alone(saved):
    state = torch.get_rng_state()
    load_model(str(saved))
    assert torch.equal(torch.get_rng_state(), state)


# Facts about models and tokenizers


def test_roberta_with_514_positions_reads_512_tokens():
    config = RobertaConfig(**{**SIZE, "hidden_size": 16}, max_position_embeddings=514, pad_token_id=1)
    model = build_model(config)
    assert context_length(model) == 512
    model(torch.full((1, 512), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 513), 7))


def test_context_length_follows_the_model_and_its_tokenizer():
    assert context_length(model_of("bert")) == 80
    assert context_length(model_of("distilbert")) == 80
    assert context_length(model_of("modernbert")) == CONFIGS["modernbert"].max_position_embeddings
    assert context_length(model_of("modernbert"), TOKENIZER) == TOKENIZER.model_max_length
    assert context_length(story_language.ExactDenoiser()) == 2**31


def test_forbidden_ids_are_special_tokens_and_rows_without_a_token():
    special, end = TOKENIZER.all_special_ids, TOKENIZER.eos_token_id
    surplus = [len(TOKENIZER), len(TOKENIZER) + 1]
    assert forbidden_token_ids(TOKENIZER, False, len(TOKENIZER) + 2) == sorted(special) + surplus
    assert forbidden_token_ids(TOKENIZER, True, len(TOKENIZER)) == sorted(set(special) - {end})


def test_the_end_token_is_the_separator_where_there_is_no_other():
    tokenizer = story_language.tokenizer()
    assert end_token_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.sep_token = "</s>"
    assert end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("</s>")
    tokenizer.sep_token = None
    assert end_token_id(tokenizer) == -1


def test_a_tokenizer_without_mask_token_is_refused():
    tokenizer = story_language.tokenizer()
    assert require_mask_token(tokenizer) == tokenizer.mask_token_id
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="`--model-name` .* no mask token"):
        require_mask_token(tokenizer)
