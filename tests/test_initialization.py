"""The first weights of an encoder from scratch."""

import pytest
import torch

from diffusion_mlm import story_language
from diffusion_mlm.modeling import build_model, preset_config

TOKENIZER = story_language.tokenizer()


@pytest.fixture(scope="module", params=["roberta-tiny", "roberta-mini"])
def model(request):
    config = preset_config(request.param, TOKENIZER, max_length=512, dropout=0.0)
    return build_model(config, seed=0, attn_implementation="eager").eval()


@torch.no_grad()
def test_heads_of_the_first_layer_attend_to_neighbors(model):
    ids = torch.randint(5, len(TOKENIZER), (2, 512), generator=torch.Generator().manual_seed(1))
    attention = model(ids, output_attentions=True).attentions[0]  # (2, heads, 512, 512)
    for head, offset in enumerate([-1, 1, -2, 2]):
        at_neighbor = attention[:, head].diagonal(offset, -2, -1)
        assert at_neighbor.mean() > 0.4, (head, offset)
        assert attention[:, head].diagonal(-offset, -2, -1).mean() < 0.02


@torch.no_grad()
def test_attention_adds_what_it_attends_to_unchanged(model):
    hidden = torch.randn(7, model.config.hidden_size)
    for layer in model.roberta.encoder.layer:
        added = layer.attention.output.dense(layer.attention.self.value(hidden))
        torch.testing.assert_close(added, hidden, rtol=1e-4, atol=1e-5)


def test_the_padding_keeps_its_zero_embedding(model):
    assert not model.roberta.embeddings.position_embeddings.weight[TOKENIZER.pad_token_id].any()


@pytest.fixture(scope="module", params=[False, True], ids=["", "qk_norm"])
def rotary(request):
    config = preset_config("modern-tiny", TOKENIZER, max_length=256, qk_norm=request.param)
    return build_model(config, seed=0, attn_implementation="eager").eval()


@torch.no_grad()
def test_heads_of_the_first_rotary_layer_attend_to_neighbors_whatever_stands_there(rotary):
    ids = torch.randint(5, len(TOKENIZER), (2, 256), generator=torch.Generator().manual_seed(1))
    ids[:, ::3] = TOKENIZER.mask_token_id
    attention = rotary(ids, output_attentions=True).attentions[0]  # (2, heads, 256, 256)
    for head, offset in enumerate([-1, 1, -2, 2]):
        assert attention[:, head].diagonal(offset, -2, -1).mean() > 0.6, (head, offset)
        assert attention[:, head].diagonal(-offset, -2, -1).mean() < 0.02


@torch.no_grad()
def test_rotary_attention_adds_the_embedding_that_it_attends_to(rotary):
    embedded = rotary.model.embed_tokens(torch.arange(5, 300))
    layer = rotary.model.layers[0]
    added = layer.self_attn.o_proj(layer.self_attn.v_proj(layer.input_layernorm(embedded)))
    error = (added - embedded).norm(dim=-1) / embedded.norm(dim=-1)
    assert error.max() < 0.3 and error.mean() < 0.1  # an embedding differs in size from the mean of them
    assert not rotary.model.embed_tokens.weight[TOKENIZER.pad_token_id].any()
