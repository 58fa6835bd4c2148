"""Text beyond the context: its length, and the measure of what is repeated where its windows meet."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import generate, story_language
from diffusion_mlm.modeling import build_model
from diffusion_mlm.tokenization import train_bpe
from experiments.long_text import longest_repeat_across, main, other_places, seams_of


def test_a_model_of_512_positions_writes_2000_tokens_in_one_call() -> None:
    tokenizer = train_bpe(story_language.sample(20, seed=5), vocab_size=300, model_max_length=512)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=514,  # 512 tokens: RoBERTa counts positions from the padding id + 1
        type_vocab_size=1,
        initializer_range=0.5,
    )
    model = build_model(config, seed=0).eval()
    seen: list[int] = []
    model.roberta.register_forward_pre_hook(
        lambda _module, args, inputs: seen.append((args[0] if args else inputs["input_ids"]).shape[1]),
        with_kwargs=True,
    )
    prefix = "Once upon a time,  Mia "
    output = generate(model, tokenizer, prefix, seed=0, max_new_tokens=2000, steps=4)
    (sample,) = output.samples
    assert len(sample.token_ids) == 2000 and max(seen) == 512
    assert sample.num_forwards == 4 * 8  # windows of 255 new tokens
    assert not set(sample.token_ids) & set(tokenizer.all_special_ids)
    assert sample.text.startswith(prefix) and sample.text == prefix + sample.completion
    start = [tokenizer.bos_token_id, *tokenizer(prefix, add_special_tokens=False)["input_ids"]]
    assert output.sequences[0].tolist() == [*start, *sample.token_ids, tokenizer.eos_token_id]


# The measure


@pytest.mark.parametrize(
    ("ids", "place", "length"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 4, 0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 4, 4),  # one on either side
        ([1, 2, 3, 1, 2, 3, 8, 9], 4, 3),  # the second spans the place
        ([8, 1, 2, 3, 4, 1, 2, 3], 3, 3),  # the first does
        ([7, 7, 7, 7, 7, 7, 7, 7], 4, 7),  # both, and they overlap
        ([1, 2, 3, 1, 2, 3, 8, 9], 6, 0),  # both before
        ([8, 9, 1, 2, 3, 1, 2, 3], 2, 0),  # both behind
    ],
)
def test_a_repeat_counts_if_it_lies_across_the_place(ids: list[int], place: int, length: int) -> None:
    assert longest_repeat_across(ids, place, reach=8).length == length


def test_what_lies_out_of_reach_does_not_count() -> None:
    ids = [1, 2, 3, 4, 9, 8, 1, 2, 3, 4]
    assert [longest_repeat_across(ids, 5, reach).length for reach in (5, 4, 3)] == [4, 2, 0]


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=10), st.integers(0, 10), st.integers(1, 9))
def test_the_longest_repeat_is_that_of_a_search_through_all(ids: list[int], place: int, reach: int) -> None:
    begin, end = max(place - reach, 0), min(place + reach, len(ids))
    lengths = [0]
    for p in range(begin, end):
        for q in range(p + 1, end):
            for n in range(1, end - q + 1):
                if ids[p : p + n] == ids[q : q + n] and p < place < q + n:
                    lengths.append(n)
    found = longest_repeat_across(ids, place, reach)
    assert found.length == max(lengths)
    assert ids[found.first :][: found.length] == ids[found.second :][: found.length]


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(st.integers(0, 20), st.integers(20, 400), st.integers(4, 100))
def test_other_places_lie_away_from_seams(num_prefix: int, num_tokens: int, stride: int) -> None:
    seams = [num_prefix, *seams_of(num_prefix, num_tokens, stride), num_prefix + num_tokens]
    for place in other_places(num_prefix, num_tokens, stride, number=30, key=1):
        assert num_prefix < place < num_prefix + num_tokens
        assert min(abs(place - seam) for seam in seams) >= stride // 4


# The script


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> str:
    tiny_roberta.save_pretrained(tmp_path / "model")
    story_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_script_writes_what_it_found(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "long_text.json"
    asked = ["--checkpoint", checkpoint, "--num-tokens", "100", "--num-samples", "2", "--prefix", "One day"]
    asked += ["--steps", "3", "--num-places", "20"]
    assert main([*asked, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    printed = json.loads(capsys.readouterr().out)
    assert {name: value for name, value in figures.items() if name != "texts"} == printed
    assert (figures["window"], figures["stride"]) == (32, 15)
    assert figures["seams"]["num_places"] == 2 * 6 and figures["elsewhere"]["num_places"] == 20
    for text in figures["texts"]:
        assert text["num_tokens"] == 100 and len(text["longest_across_each_seam"]) == 6
        assert text["passes"] == (max(text["longest_across_each_seam"]) < 8)
        assert text["text"].startswith("One day")


def test_script_refuses_a_text_without_seams(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="`--num-tokens` is 20, which one window of 32 holds"):
        main(["--checkpoint", checkpoint, "--num-tokens", "20"])
    with pytest.raises(ValueError, match="`--num-samples` must be at least 1"):
        main(["--checkpoint", checkpoint, "--num-samples", "0"])
