"""Encoders from scratch: sizes counted by hand, and what every masked language model here must do."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, EuroBertForMaskedLM

from diffusion_mlm import load_model, story_language
from diffusion_mlm.modeling import build_model, context_length
from diffusion_mlm.presets import PRESETS, ROBERTA_PRESETS, preset_config
from diffusion_mlm.qk_norm import QkNormForMaskedLM
from diffusion_mlm.tokenization import encode_text, train_characters

TOKENIZER = story_language.tokenizer()
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


def modern(qk_norm=False, seed=0, attn_implementation="sdpa", **settings):
    config = preset_config("modern-tiny", TOKENIZER, 64, qk_norm=qk_norm, **(TINY | settings))
    return build_model(config, seed, attn_implementation).eval()


def some_ids(rows=2, length=12, seed=0):
    return torch.randint(5, len(TOKENIZER) - 1, (rows, length), generator=torch.Generator().manual_seed(seed))


# Sizes


@pytest.mark.parametrize(
    # Counted by hand: token table + positions + encoder + head for a vocabulary of 362 and rows of 512.
    "preset, layers, width",
    [("roberta-tiny", 3, 128), ("roberta-mini", 4, 256), ("roberta-small", 6, 512), ("roberta-base", 12, 768)],
)
def test_a_roberta_preset_has_the_parameters_of_its_size(preset, layers, width):
    vocabulary = len(TOKENIZER)
    embeddings = (vocabulary + 514 + 1) * width + 2 * width
    layer = 4 * (width * width + width) + 2 * width + (4 * width * width + 4 * width) + (4 * width * width + width)
    head = width * width + width + 2 * width + vocabulary  # its matrix is that of the token table
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(preset_config(preset, TOKENIZER))
    assert model.num_parameters() == embeddings + layers * (layer + 2 * width) + head


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    # Counted by hand: the token table, which is the head too, four matrices of attention, three of the feed-forward.
    "preset, layers, width, inner, heads",
    [
        ("modern-tiny", 3, 128, 384, 4),
        ("modern-mini", 4, 256, 704, 4),
        ("modern-small", 6, 512, 1408, 8),
        ("modern-base", 12, 768, 2048, 12),
    ],
)
def test_a_modern_preset_has_the_parameters_of_its_size(preset, layers, width, inner, heads, qk_norm):
    layer = 4 * width * width + 3 * width * inner + 2 * width + qk_norm * 2 * (width // heads)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(preset_config(preset, TOKENIZER, qk_norm=qk_norm))
    assert model.num_parameters() == len(TOKENIZER) * width + layers * layer + width


@pytest.mark.parametrize("roberta", ROBERTA_PRESETS)
def test_presets_of_one_size_differ_by_at_most_2_percent_in_parameters_at_rows_of_128(roberta):
    with torch.device("meta"):
        sizes = [
            AutoModelForMaskedLM.from_config(preset_config(name, TOKENIZER, 128)).num_parameters()
            for name in (roberta, roberta.replace("roberta", "modern"))
        ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_presets_are_listed_and_a_wrong_one_is_refused():
    sizes = ("tiny", "mini", "small", "base")
    assert list(PRESETS) == [f"{family}-{size}" for family in ("roberta", "modern") for size in sizes]
    with pytest.raises(ValueError, match="`preset` must be one of roberta-tiny"):
        preset_config("roberta-huge", TOKENIZER)


@pytest.mark.parametrize("preset, inner", [("roberta-mini", 1536), ("modern-mini", 1024)])
def test_layers_heads_and_width_may_be_chosen_and_the_feed_forward_follows(preset, inner):
    config = preset_config(preset, TOKENIZER, num_hidden_layers=6, num_attention_heads=6, hidden_size=384)
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (6, 6, 384)
    assert config.intermediate_size == inner


@pytest.mark.parametrize(
    "preset, settings, message",
    [
        ("roberta-tiny", {"qk_norm": True}, "`qk_norm` needs a preset of today's parts, not 'roberta-tiny'"),
        ("roberta-tiny", {"hidden_size": 130}, "`hidden_size` is 130, which 4 attention heads cannot share: choose"),
        ("modern-tiny", {"hidden_size": 132}, "`hidden_size` is 132, which 4 attention heads cannot share in pairs"),
        ("modern-tiny", {"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, not 0"),
        ("modern-tiny", {"time_conditioning": "clock"}, "`time_conditioning` must be one of sinusoidal, learned"),
        ("modern-tiny", {"time_conditioning": "learned", "time_steps": 1}, "`time_steps` must be at least 2, not 1"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(preset, settings, message):
    with pytest.raises(ValueError, match=message):
        preset_config(preset, TOKENIZER, **settings)


@pytest.mark.parametrize("preset", ["roberta-tiny", "modern-tiny"])
def test_a_preset_reads_rows_of_the_length_asked_for(preset):
    model = build_model(preset_config(preset, TOKENIZER, max_length=20, **TINY))
    assert context_length(model) == 20
    assert model(torch.full((1, 20), 7)).logits.shape == (1, 20, len(TOKENIZER))


def test_dropout_is_that_of_hidden_layers_in_roberta_and_of_attention_in_eurobert():
    robertas = [preset_config("roberta-tiny", TOKENIZER, dropout=dropout) for dropout in (None, 0.0, 0.2)]
    moderns = [preset_config("modern-tiny", TOKENIZER, dropout=dropout) for dropout in (None, 0.0, 0.2)]
    assert [config.hidden_dropout_prob for config in robertas] == [0.1, 0.0, 0.2]
    assert [config.attention_dropout for config in moderns] == [0.0, 0.0, 0.2]


# First weights


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("preset", ["modern-tiny", "modern-mini"])
@pytest.mark.parametrize("num_masked", [1, 8, 16])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(preset, num_masked, qk_norm):
    model = build_model(preset_config(preset, TOKENIZER, 64, qk_norm=qk_norm)).eval()
    ids = some_ids(rows=4, length=16)
    ids[:, :num_masked] = TOKENIZER.mask_token_id
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :num_masked]
    loss = (logits.logsumexp(-1) - logits.mean(-1)).mean()  # the mean over all tokens that may stand there
    assert float(loss) == pytest.approx(math.log(len(TOKENIZER)), rel=0.02)


@pytest.mark.parametrize("preset", ["roberta-tiny", "roberta-mini", "modern-tiny"])
def test_the_first_loss_of_characters_is_the_logarithm_of_their_number(preset):
    text = "\n".join(story_language.sample(40, seed=1))
    tokenizer = train_characters([text], model_max_length=130)
    model = build_model(preset_config(preset, tokenizer, 130)).eval()
    ids = torch.tensor(encode_text(tokenizer, text)[: 16 * 128]).view(16, 128)
    is_masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        logits = model(input_ids=ids.masked_fill(is_masked, tokenizer.mask_token_id)).logits[is_masked]
    logits[:, tokenizer.all_special_ids] = -torch.inf
    loss = float(torch.nn.functional.cross_entropy(logits, ids[is_masked]))
    number = len(tokenizer) - len(tokenizer.all_special_ids)
    assert loss == pytest.approx(math.log(number), rel=0.02)


# What a modern encoder does


@pytest.mark.parametrize("qk_norm", [False, True])
def test_padding_changes_no_logits_of_a_modern_encoder(qk_norm):
    model, ids = modern(qk_norm), some_ids()
    attention_mask = torch.ones_like(ids)
    attention_mask[:, 8:] = 0
    padded = ids.masked_fill(attention_mask == 0, TOKENIZER.pad_token_id)
    with torch.no_grad():
        alone = model(input_ids=ids[:, :8], attention_mask=attention_mask[:, :8]).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=attention_mask).logits[:, :8], alone)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_modern_encoder_reads_both_sides_and_the_order(qk_norm, attn_implementation):
    model, ids = modern(qk_norm, attn_implementation=attn_implementation), some_ids(rows=1)
    changed, swapped = ids.clone(), ids.clone()
    changed[0, -1], swapped[0, 5:7] = 5 if ids[0, -1] != 5 else 6, ids[0, 5:7].flip(0)
    with torch.no_grad():
        before, after, turned = (model(input_ids=x).logits for x in (ids, changed, swapped))
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-5
    assert (before[0, 0] - turned[0, 0]).abs().max() > 1e-5


def test_normalised_queries_and_keys_do_not_care_how_large_their_weights_are():
    ids = some_ids()
    for qk_norm in (False, True):
        model = modern(qk_norm)
        with torch.no_grad():
            before = model(input_ids=ids).logits
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight *= 100
                layer.self_attn.k_proj.weight *= 100
            error = (model(input_ids=ids).logits - before).abs().max()
        assert (error < 1e-3) == qk_norm, error


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_modern_encoder_comes_back_from_its_directory(qk_norm, tmp_path):
    model, ids = modern(qk_norm), some_ids()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is (QkNormForMaskedLM if qk_norm else EuroBertForMaskedLM)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_attentions_of_normalised_queries_and_keys_can_be_looked_at():
    output = modern(True, attn_implementation="eager")(input_ids=some_ids(), output_attentions=True)
    assert [tuple(layer.shape) for layer in output.attentions] == [(2, 2, 12, 12)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 12))
