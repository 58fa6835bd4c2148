"""What a causal language model says of texts, against sums worked out by hand and a judge that knows nothing."""

import copy
import math

import pytest
import torch

from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.evaluation.judge import Judge
from diffusion_mlm.tokenization import encode_text

CONTEXT = 16  # of `shared_llama`
SHORT = "Once upon a time, Mia lived near the lake."
LONG = " ".join([SHORT] * 5)


@pytest.fixture
def llama(shared_llama):
    return copy.deepcopy(shared_llama)


@pytest.fixture
def judge(llama, story_tokenizer):
    return Judge(llama, story_tokenizer)


@pytest.fixture
def ignorant(judge):
    """Finds every token equally likely, whatever came before: each costs log V, however a text is cut."""
    torch.nn.init.zeros_(judge.model.lm_head.weight)
    return judge


@torch.no_grad()
def nats_of(model, ids, num_given):
    log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(log_probs[place - 1, ids[place]]) for place in range(num_given, len(ids)))


def test_a_text_is_read_after_the_start_token(judge, story_tokenizer):
    ids = [story_tokenizer.bos_token_id, *encode_text(story_tokenizer, SHORT)]
    judged = judge.score([SHORT])
    assert float(judged.nats) == pytest.approx(nats_of(judge.model, ids, 1), rel=1e-5)
    assert int(judged.num_tokens) == len(ids) - 1
    assert int(judged.num_characters) == len(SHORT)


def test_an_end_is_a_token_of_a_text_that_ended(judge, story_tokenizer):
    ids = [story_tokenizer.bos_token_id, *encode_text(story_tokenizer, SHORT), story_tokenizer.eos_token_id]
    judged = judge.score([SHORT, SHORT], [True, False])
    assert float(judged.nats[0]) == pytest.approx(nats_of(judge.model, ids, 1), rel=1e-5)
    assert float(judged.end_nats[0]) == pytest.approx(nats_of(judge.model, ids, len(ids) - 1), rel=1e-4)
    assert float(judged.nats[0] - judged.nats[1]) == pytest.approx(float(judged.end_nats[0]), rel=1e-4)
    assert judged.end_nats[1].isnan()
    assert judged.num_tokens.tolist() == [len(ids) - 1, len(ids) - 2]


def test_another_token_may_be_the_end(llama, story_tokenizer):
    by_start = Judge(llama, story_tokenizer, end_token=story_tokenizer.bos_token).score([SHORT], [True])
    start = story_tokenizer.bos_token_id
    ids = [start, *encode_text(story_tokenizer, SHORT), start]
    assert float(by_start.nats) == pytest.approx(nats_of(llama, ids, 1), rel=1e-5)


def test_a_judge_without_a_start_token_reads_after_its_end_token(llama, story_tokenizer):
    tokenizer = copy.deepcopy(story_tokenizer)
    tokenizer.bos_token = tokenizer.cls_token = None
    ids = [tokenizer.eos_token_id, *encode_text(tokenizer, SHORT)]
    assert float(Judge(llama, tokenizer).score([SHORT]).nats) == pytest.approx(nats_of(llama, ids, 1), rel=1e-5)


def test_a_long_text_is_scored_in_windows_each_token_once(judge, story_tokenizer):
    """The first window is full, those after it hold half a window of new tokens behind half a window of old ones."""
    ids = [story_tokenizer.bos_token_id, *encode_text(story_tokenizer, LONG)]
    assert len(ids) > 3 * CONTEXT
    expected = nats_of(judge.model, ids[:CONTEXT], 1)
    for first in range(CONTEXT, len(ids), CONTEXT // 2):
        stop = min(first + CONTEXT // 2, len(ids))
        window = ids[stop - CONTEXT : stop]
        expected += nats_of(judge.model, window, CONTEXT - (stop - first))
    judged = judge.score([LONG])
    assert float(judged.nats) == pytest.approx(expected, rel=1e-5)
    assert int(judged.num_tokens) == len(ids) - 1


def test_the_score_of_a_text_does_not_depend_on_its_batch(judge):
    texts = [LONG, "", SHORT, "One", LONG[:80], SHORT + " " + SHORT]
    ended = [True, True, False, False, True, False]
    together = judge.score(texts, ended)
    for judge.batch_size in (1, 2, 5, 64):
        others = judge.score(texts, ended)
        torch.testing.assert_close(others.nats, together.nats, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(others.end_nats, together.end_nats, rtol=1e-5, atol=1e-5, equal_nan=True)
    for place, text in enumerate(texts):
        alone = judge.score([text], [ended[place]])
        torch.testing.assert_close(alone.nats, together.nats[place : place + 1], rtol=1e-5, atol=1e-5)


def test_figures_of_a_judge_that_knows_nothing(ignorant, story_tokenizer):
    texts = [SHORT, LONG, "", "One"]
    num_tokens = sum(len(encode_text(story_tokenizer, text)) for text in texts) + 2  # two ends
    figures = ignorant.score(texts, [True, False, True, False]).figures()
    log_v = math.log(len(story_tokenizer))
    assert figures["judge_nats_per_token"] == pytest.approx(log_v)
    assert figures["judge_perplexity"] == pytest.approx(len(story_tokenizer), rel=1e-5)
    assert figures["judge_end_nats"] == pytest.approx(log_v)
    assert figures["judge_standard_error"] == pytest.approx(0, abs=1e-6)
    bits = num_tokens * log_v / math.log(2) / sum(map(len, texts))
    assert figures["judge_bits_per_character"] == pytest.approx(bits)
    assert figures["judge_unknown_share"] == 0


def test_the_perplexity_is_that_of_all_tokens_and_no_mean_of_texts(judge):
    texts = [SHORT, LONG]
    alone = [judge.score([text]) for text in texts]
    nats, tokens = zip(*((float(found.nats), int(found.num_tokens)) for found in alone), strict=True)
    assert judge.score(texts).figures()["judge_perplexity"] == pytest.approx(math.exp(sum(nats) / sum(tokens)))


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_where_there_is_nothing_to_score_figures_are_none(judge, texts):
    assert set(judge.score(texts).figures().values()) == {None}


def test_unknown_words_are_counted(judge, story_tokenizer):
    unknown = encode_text(story_tokenizer, "Mia 太晚 😀")
    assert unknown.count(story_tokenizer.unk_token_id) == len(unknown) - 1 > 0
    judged = judge.score([SHORT, "Mia 太晚 😀"])
    assert judged.num_unknown.tolist() == [0, len(unknown) - 1]
    assert judged.figures()["judge_unknown_share"] == pytest.approx((len(unknown) - 1) / int(judged.num_tokens.sum()))


def test_the_string_of_an_end_in_a_text_is_no_end(judge):
    assert int(judge.score(["One day </s> a fox"]).num_tokens) > int(judge.score(["One day"]).num_tokens) + 1


def test_features_are_the_last_hidden_state_at_the_last_token(judge, story_tokenizer):
    features = judge.features([SHORT, "", LONG])
    for row, text in zip(features, [SHORT, "", LONG], strict=True):
        ids = [story_tokenizer.bos_token_id, *encode_text(story_tokenizer, text)][:CONTEXT]
        with torch.no_grad():
            expected = judge.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_a_judge_that_answers_nan_is_reported(judge):
    judge.model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="NaN or infinity"):
        judge.score([SHORT])


def test_ends_must_be_told_of_every_text(judge):
    with pytest.raises(ValueError, match="of each of the 2 texts whether it ended, not of 1"):
        judge.score([SHORT, LONG], [True])


def test_one_string_is_no_list_of_texts(judge):
    with pytest.raises(ValueError, match="`texts` must be several texts"):
        judge.score(SHORT)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 1.5}, {"end_token": "<end>"}])
def test_impossible_settings_are_refused(llama, story_tokenizer, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        Judge(llama, story_tokenizer, **options)


def test_a_judge_must_have_something_to_start_with(llama, story_tokenizer):
    tokenizer = copy.deepcopy(story_tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.cls_token = tokenizer.sep_token = None
    with pytest.raises(ValueError, match="neither a start nor an end token"):
        Judge(llama, tokenizer)


def save(directory, model, tokenizer):
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_a_judge_is_loaded_from_a_directory(tmp_path, judge, story_tokenizer):
    loaded = Judge.from_pretrained(save(tmp_path, judge.model, story_tokenizer), batch_size=1)
    torch.testing.assert_close(loaded.score([SHORT, LONG]).nats, judge.score([SHORT, LONG]).nats, rtol=1e-4, atol=0)


def test_a_model_that_sees_what_comes_next_is_no_judge(checkpoint):
    """RoBERTa loads as a causal model, and would find every text easy."""
    with pytest.raises(ValueError, match="`judge` is .* cannot judge: .*RobertaForCausalLM.* later tokens"):
        Judge.from_pretrained(checkpoint)


def test_a_model_without_its_head_is_no_judge(tmp_path, shared_llama, story_tokenizer):
    with pytest.raises(ValueError, match="`judge` is .* lacks lm_head.weight"):
        Judge.from_pretrained(save(tmp_path, shared_llama.model, story_tokenizer))


def test_only_safetensors_are_read(tmp_path, shared_llama, story_tokenizer):
    directory = save(tmp_path, shared_llama, story_tokenizer)
    torch.save(shared_llama.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="`judge` is .* cannot be loaded"):
        Judge.from_pretrained(directory)


def test_a_path_to_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`judge` is .*no such directory"):
        Judge.from_pretrained(str(tmp_path / "nothing"))
