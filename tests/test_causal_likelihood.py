"""The likelihood under a causal model: exact values by hand, and rows and tokens as for a diffusion model."""

import math
import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from diffusion_mlm import evaluate_texts, story_language
from diffusion_mlm.causal_peer import build_causal_peer, load_causal_model
from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.evaluation.causal_likelihood import evaluate_causal_texts
from diffusion_mlm.evaluation.interval import ratio_estimate
from diffusion_mlm.evaluation.text_rows import windows
from diffusion_mlm.modeling import build_model, preset_config
from diffusion_mlm.tokenization import encode_text, train_characters

TOKENIZER = story_language.tokenizer()
STORIES = [" ".join(story.split()[: 6 + 9 * place]) for place, story in enumerate(story_language.sample(4, seed=5))]


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 24, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **sizes)).eval()


@pytest.fixture(scope="module")
def peer(shared_roberta):
    """The causal peer of the tiny RoBERTa."""
    return build_causal_peer(shared_roberta.config).eval()


@torch.no_grad()
def nats_by_hand(model, ids, scored):
    """-log p of the tokens at the places `scored`, each by a call of its own on what stands before it."""
    special, nats = torch.tensor(TOKENIZER.all_special_ids), 0.0
    for place in scored:
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        nats -= float(logits.index_fill(0, special, -torch.inf).log_softmax(-1)[ids[place]])
    return nats


@pytest.mark.parametrize("name", ["gpt2", "peer"])
def test_packed_rows_are_scored_as_token_by_token_by_hand(name, request):
    model = request.getfixturevalue(name)
    start, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    stream = [*encode_text(TOKENIZER, STORIES[0]), end, *encode_text(TOKENIZER, STORIES[2])]
    exact, tokens = [], 0
    for first in range(0, len(stream), 10):  # blocks of 12 with start and end
        ids = [start, *stream[first : first + 10]]
        scored = [place for place in range(1, len(ids)) if ids[place] != end]
        exact.append(nats_by_hand(model, ids, scored))
        tokens += len(scored)
    report = evaluate_causal_texts(model, TOKENIZER, [STORIES[0], STORIES[2]], max_length=12)
    assert report.num_tokens == tokens == len(stream) - 1
    assert report.bound.nats.tolist() == pytest.approx(exact, rel=1e-5)
    assert report.bound.nats_per_token == pytest.approx(sum(exact) / tokens, rel=1e-5)


def test_one_text_a_row_is_its_windows_each_token_once(peer):
    start, ids = TOKENIZER.bos_token_id, encode_text(TOKENIZER, STORIES[3])
    exact = sum(
        nats_by_hand(peer, [start, *ids[begin:stop]], range(1 + first - begin, 1 + stop - begin))
        for begin, first, stop in windows(len(ids), 0, 10)  # start and end token take two places of a row
    )
    report = evaluate_causal_texts(peer, TOKENIZER, STORIES[3:], packing="one_per_row", max_length=12)
    assert report.num_tokens == len(ids) and report.rows.num_split == 1
    assert float(report.bound.nats) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("packing", ["packed", "one_per_row"])
def test_batch_size_changes_nothing(peer, packing):
    reports = [
        evaluate_causal_texts(peer, TOKENIZER, STORIES, packing=packing, max_length=16, batch_size=batch_size)
        for batch_size in (1, 3, 32)
    ]
    first, *others = [report.bound.nats.tolist() for report in reports]
    assert all(other == pytest.approx(first, rel=1e-5) for other in others)


def test_rows_and_scored_tokens_are_those_of_the_diffusion_model(shared_roberta, peer):
    for options in ({"packing": "packed"}, {"packing": "packed", "separate_texts": False}, {"packing": "one_per_row"}):
        options |= {"max_length": 16}
        masked = evaluate_texts(shared_roberta, TOKENIZER, STORIES, draws=1, **options)
        causal = evaluate_causal_texts(peer, TOKENIZER, STORIES, **options)
        assert causal.rows == masked.rows and causal.num_tokens == masked.num_tokens
        assert set(masked.to_dict()) - set(causal.to_dict()) == {"draws", "seed"}
        assert len(causal.bound.nats) == len(masked.bound.nats)


def test_a_uniform_model_gives_the_logarithm_of_the_vocabulary_and_bits_of_the_bytes():
    characters = train_characters(["abcdé"])
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(characters), n_layer=1, n_embd=4, n_head=1, n_positions=16))
    torch.nn.init.zeros_(model.transformer.wte.weight)  # it is the head as well: all logits are 0
    for packing in ("packed", "one_per_row"):
        report = evaluate_causal_texts(model, characters, ["aé", "bcd🙂", "éé"], packing=packing, max_length=6)
        assert report.num_tokens == 7 and report.rows.num_unknown_bytes == 4
        assert report.bound.nats_per_token == pytest.approx(math.log(5), rel=1e-6)  # no special tokens
        assert report.bound.bits_per_byte == pytest.approx(7 * math.log2(5) / 10, rel=1e-6)  # 3 + 3 + 4 bytes


def test_the_end_of_a_text_is_scored_once_however_often_it_fills_the_row(gpt2):
    text = STORIES[0]
    short, long = (
        evaluate_causal_texts(gpt2, TOKENIZER, [text], packing="one_per_row", scores_end=True, max_length=length)
        for length in (len(encode_text(TOKENIZER, text)) + 2, 24)
    )
    without = evaluate_causal_texts(gpt2, TOKENIZER, [text], packing="one_per_row")
    assert short.num_tokens == long.num_tokens == without.num_tokens + 1
    assert float(short.bound.nats) == pytest.approx(float(long.bound.nats), rel=1e-5)
    assert float(short.bound.nats) > float(without.bound.nats)


def test_a_model_beside_itself_has_ratio_one_and_no_interval_around_it(peer):
    nats = evaluate_causal_texts(peer, TOKENIZER, STORIES, max_length=12).bound.nats
    assert ratio_estimate(nats, nats).value == pytest.approx(1)
    assert ratio_estimate(1.2 * nats, nats).interval == pytest.approx((1.2, 1.2))


# The peer


def test_a_later_token_does_not_change_what_the_peer_predicts_before_it(peer):
    ids = torch.tensor([[0, 20, 30, 40, 50, 60]])
    other = ids.clone()
    other[0, 4:] = torch.tensor([70, 80])
    assert peer.config._attn_implementation == "sdpa"
    with torch.no_grad():
        one, two = peer(input_ids=ids).logits, peer(input_ids=other).logits
    assert torch.allclose(one[:, :4], two[:, :4], atol=1e-6)
    assert not torch.allclose(one[:, 4:], two[:, 4:], atol=1e-2)


@pytest.mark.parametrize("preset", ["roberta-tiny", "roberta-mini"])
def test_the_peer_has_as_many_parameters_and_the_same_first_weights_but_where_it_looks(preset):
    config = preset_config(preset, TOKENIZER, 64)
    masked, causal = build_model(config, seed=3), build_causal_peer(config, seed=3)
    assert causal.num_parameters() == masked.num_parameters()
    named = dict(masked.named_parameters())
    other = [name for name, weight in causal.named_parameters() if not torch.equal(weight, named[name])]
    assert other == ["roberta.encoder.layer.0.attention.self.query.weight"]
    assert not config.is_decoder


def test_the_heads_of_the_peer_begin_one_two_three_and_four_places_to_the_left():
    model = build_causal_peer(preset_config("roberta-mini", TOKENIZER, 64), attn_implementation="eager").eval()
    ids = torch.randint(5, len(TOKENIZER), (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(input_ids=ids, output_attentions=True).attentions[0][0]  # (heads, L, L)
    for head, weights in enumerate(attention):
        assert (weights.diagonal(-1 - head)[5:] > 0.9).all()


def test_the_peer_comes_back_from_its_directory(peer, tmp_path):
    peer.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model, tokenizer = load_causal_model(str(tmp_path))
    found, expected = (
        evaluate_causal_texts(of, tokens, STORIES, max_length=12).bound.nats_per_token
        for of, tokens in ((model, tokenizer), (peer, TOKENIZER))
    )
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and found == expected


def test_a_masked_model_loaded_as_a_causal_one_is_refused(shared_roberta, tmp_path):
    shared_roberta.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model, tokenizer = load_causal_model(str(tmp_path))
    with pytest.raises(ValueError, match="sees the tokens it is to predict"):
        evaluate_causal_texts(model, tokenizer, STORIES)


def test_a_model_that_answers_nan_is_reported(shared_roberta):
    model = build_causal_peer(shared_roberta.config)
    torch.nn.init.constant_(model.lm_head.bias, math.nan)
    with pytest.raises(NonFiniteLossError, match="is not finite"):
        evaluate_causal_texts(model, TOKENIZER, STORIES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "`texts` is empty"),
        ({"texts": "one text"}, "`texts` must be several texts, not the string 'one text'"),
        ({"texts": ["zzz xxx"]}, "`texts` has no token that could be scored"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, not 0"),
        ({"packing": "pack"}, "`packing` must be one of"),
        ({"scores_end": True}, "`scores_end` is True, but packed rows"),
        ({"max_length": 33}, "`max_length` is 33, but this model reads 32 tokens"),
    ],
)
def test_mistakes_are_named(peer, options, message):
    options = {"texts": STORIES[:1], **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_causal_texts(peer, TOKENIZER, options.pop("texts"), **options)


def test_a_model_without_a_peer_is_named():
    with pytest.raises(ValueError, match="that of a 'gpt2', whose causal peer is unknown"):
        build_causal_peer(GPT2Config())
