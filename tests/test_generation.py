"""Generation: what is promised of every text (guarantees 1, 2 and 3), and every way to ask for one wrongly."""

import copy
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    RobertaForMaskedLM,
    TextDiffusionStreamer,
    TextStreamer,
    TopKLogitsWarper,
)

from diffusion_mlm import Constraints, story_language
from diffusion_mlm.generation import DiffusionGenerationOutput, generate, generate_each, load_generator, stream
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.modeling import build_model
from diffusion_mlm.sampling import NonFiniteLogitsError
from diffusion_mlm.schedules import SCHEDULES
from diffusion_mlm.tokenization import train_bpe, train_characters
from diffusion_mlm.unmasking import ORDERS

SAMPLINGS = ("greedy", "topk", "nucleus")
STORIES = story_language.sample(20, seed=5)
AWKWARD = [
    "",
    " ",
    "  two  ",
    "end ",
    " <mask> </s><pad><s>",
    "<unk>",
    "naïve 😀🇫🇷",
    "nul\0bel\a",
    "a\r\nb\tc",
    "שלום עולם",
    "e\u0301",
]
properties = settings(deadline=None, derandomize=True, database=None, max_examples=25)


class Exact(story_language.ExactDenoiser):
    """The exact denoiser with the facts that a trained story model has in its configuration."""

    def __init__(self) -> None:
        super().__init__()
        facts = {"generates_end": True, "row_length": 40}
        self.config = SimpleNamespace(vocab_size=self.inference.vocab_size, diffusion=facts)


def random_roberta(
    tokenizer: PreTrainedTokenizerFast, template: RobertaForMaskedLM, **facts: Any
) -> RobertaForMaskedLM:
    config = template.config.__class__.from_dict({**template.config.to_dict(), "vocab_size": len(tokenizer)})
    model = build_model(config, seed=1).eval()
    model.config.diffusion = facts
    return model


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact()


@pytest.fixture(scope="module")
def writers(story_tokenizer: Any, shared_roberta: RobertaForMaskedLM, exact: Exact) -> dict[str, tuple[Any, Any]]:
    """Models of every kind with their tokenizers."""
    bpe = train_bpe(STORIES, vocab_size=300, model_max_length=32)
    characters = train_characters(STORIES, model_max_length=32)
    writing_end = random_roberta(story_tokenizer, shared_roberta, generates_end=True, row_length=16)
    return {
        "words": (shared_roberta, story_tokenizer),
        "words with end": (writing_end, story_tokenizer),
        "bpe": (random_roberta(bpe, shared_roberta), bpe),
        "characters": (random_roberta(characters, shared_roberta), characters),
        "exact": (exact, story_tokenizer),
    }


WRITERS = ("words", "words with end", "bpe", "characters", "exact")
prefixes = st.sampled_from(AWKWARD + [story[:length] for story in STORIES[:3] for length in (3, 12)]) | st.text(
    max_size=6
)


# Guarantee 1


@properties
@given(
    writer=st.sampled_from(WRITERS),
    prefix=prefixes,
    schedule=st.sampled_from(sorted(SCHEDULES)),
    sampling=st.sampled_from(SAMPLINGS),
    order=st.sampled_from(ORDERS),
    remask=st.sampled_from(["none", "renoise"]),
    steps=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1e-45, 0.5, 1.0, 50.0, 1e38]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_special_token_is_generated_and_the_prefix_stays(
    writers: dict[str, Any], writer: str, prefix: str, seed: int, **chosen: Any
) -> None:
    model, tokenizer = writers[writer]
    (sample,) = (output := generate(model, tokenizer, prefix, seed=seed, max_new_tokens=6, **chosen)).samples
    assert sample.text == prefix + sample.completion
    assert sample.prefix == prefix
    assert not set(sample.token_ids) & set(tokenizer.all_special_ids)
    assert tokenizer.mask_token_id not in output.sequences[0, -7:].tolist()
    assert len(sample.token_ids) == 6 or sample.finished
    assert json.loads(sample.to_json()) == vars(sample)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("remask", ["none", "renoise"])
def test_every_schedule_and_sampling_fills_the_canvas_in_the_planned_forwards(
    writers: dict[str, Any], schedule: str, sampling: str, remask: str
) -> None:
    for writer in ("words", "exact"):
        model, tokenizer = writers[writer]
        for steps, without_remasking in ((1, 1), (5, 5), (8, 8), (11, 8)):
            asked: dict[str, Any] = {"schedule": schedule, "sampling": sampling, "remask": remask, "steps": steps}
            (sample,) = generate(model, tokenizer, "One day", seed=0, max_new_tokens=8, **asked).samples
            assert sample.num_forwards == (without_remasking if remask == "none" else steps)
            assert sample.tokens_per_forward == 8 / sample.num_forwards


def test_num_forwards_counts_the_calls_of_the_model(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    generate(tiny_roberta, story_tokenizer, seed=0, max_new_tokens=2)  # the first use finds out about the head
    rows: list[int] = []
    tiny_roberta.register_forward_pre_hook(
        lambda _m, _a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    output = generate(tiny_roberta, story_tokenizer, ["", "One day"], seed=0, max_new_tokens=9, steps=4)
    assert rows == [2, 2, 2, 2]
    assert [sample.num_forwards for sample in output.samples] == [4, 4]


# Guarantee 2: a row depends on nothing but itself


@properties
@given(
    writer=st.sampled_from(WRITERS),
    texts=st.lists(prefixes, min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
    order=st.sampled_from(ORDERS),
    sampling=st.sampled_from(SAMPLINGS),
    steps=st.sampled_from([None, 3]),
)
def test_neighbours_and_batch_size_change_no_text(
    writers: dict[str, Any], writer: str, texts: list[str], batch_size: int, **chosen: Any
) -> None:
    model, tokenizer = writers[writer]
    chosen = {**chosen, "max_new_tokens": 5, "num_return_sequences": 2}
    together = generate(model, tokenizer, texts, seed=7, batch_size=64, **chosen)
    in_parts = generate(model, tokenizer, texts, seed=7, batch_size=batch_size, **chosen)
    assert in_parts.samples == together.samples
    assert torch.equal(in_parts.sequences, together.sequences)
    for sample in together.samples[:2]:
        alone = generate(model, tokenizer, sample.prefix, seed=sample.seed, **{**chosen, "num_return_sequences": 1})
        assert alone.samples == [sample]


def test_padding_that_is_the_end_token_hides_no_text(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    tokenizer = type(story_tokenizer)(
        tokenizer_object=story_tokenizer.backend_tokenizer, **story_tokenizer.special_tokens_map
    )
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["", "One day a fox", "The"]
    together = generate(tiny_roberta, tokenizer, texts, seed=3, max_new_tokens=6)
    alone = [generate(tiny_roberta, tokenizer, text, seed=3, max_new_tokens=6).samples[0] for text in texts]
    assert together.samples == alone


# Guarantee 3


@pytest.mark.parametrize("writer", WRITERS)
def test_same_seed_same_text_other_seed_other_text(writers: dict[str, Any], writer: str) -> None:
    model, tokenizer = writers[writer]
    first, again, other = (generate(model, tokenizer, "One", seed=seed, max_new_tokens=9).texts for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_greedy_is_the_same_for_every_seed(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    for setting, value in (("sampling", "greedy"), ("temperature", 0.0)):
        how: dict[str, Any] = {setting: value}
        outputs = [
            generate(tiny_roberta, story_tokenizer, seed=seed, max_new_tokens=9, **how).texts for seed in (1, 2)
        ]
        assert outputs[0] == outputs[1]


def test_global_random_state_is_untouched_with_a_seed_or_generator(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    before = torch.get_rng_state()
    generate(tiny_roberta, story_tokenizer, seed=1, max_new_tokens=4)
    generate(tiny_roberta, story_tokenizer, generator=torch.Generator().manual_seed(1), max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_and_global_state_decide_the_seed(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    def seed_of(**how: Any) -> int:
        return generate(tiny_roberta, story_tokenizer, max_new_tokens=2, **how).samples[0].seed

    assert seed_of(generator=torch.Generator().manual_seed(1)) == seed_of(generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        assert len({seed_of() for _ in range(4)}) == 4


def test_sample_j_has_seed_plus_j_and_replays_alone(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    many = generate(
        tiny_roberta, story_tokenizer, ["One", "The", "One"], seed=10, num_return_sequences=2, max_new_tokens=5
    )
    assert [sample.seed for sample in many.samples] == [10, 11, 10, 11, 12, 13]  # the third prefix repeats the first
    for sample in many.samples:
        assert generate(tiny_roberta, story_tokenizer, sample.prefix, seed=sample.seed, max_new_tokens=5).samples == [
            sample
        ]


def test_seeds_stay_in_range_at_the_upper_end(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    output = generate(tiny_roberta, story_tokenizer, seed=2**32 - 1, num_return_sequences=2, max_new_tokens=3)
    assert [sample.seed for sample in output.samples] == [2**32 - 1, 0]


# Prefixes


def test_space_at_the_end_of_a_prefix_belongs_to_the_next_word(exact: Exact, story_tokenizer: Any) -> None:
    """With the exact denoiser, a sentence goes on as the grammar has it, and with one space."""
    story = STORIES[0]
    prefix = " ".join(story.split(" ")[:3])
    asked: dict[str, Any] = {"seed": 2, "max_new_tokens": 12}
    impossible_before = exact.impossible_contexts
    (bare,), (spaced,) = (generate(exact, story_tokenizer, text, **asked).texts for text in (prefix, prefix + " "))
    assert spaced == bare
    assert exact.impossible_contexts == impossible_before


def test_unknown_words_are_kept_in_the_text_and_said(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        text = generate(tiny_roberta, story_tokenizer, "Zyzzyva day", seed=0, max_new_tokens=3).texts[0]
    assert text.startswith("Zyzzyva day ")
    assert "Zyzzyva" in caplog.text


def test_no_prefix_at_all_gives_nothing(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    output = generate(tiny_roberta, story_tokenizer, [], seed=0)
    assert (output.texts, output.sequences.numel()) == ([], 0)


@pytest.mark.parametrize(
    "bad, message",
    [
        (None, "`prefixes`.*NoneType"),
        (b"One", "`prefixes`.*bytes"),
        (3, "`prefixes`.*int"),
        (["One", None], r"`prefixes\[1\]`.*NoneType"),
        (["One", b"The"], r"`prefixes\[1\]`.*bytes"),
        (["One", "ab\ud800"], r"`prefixes\[1\]`.*surrogate at character 2"),
    ],
)
def test_prefix_that_is_no_text_is_refused(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, bad: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        generate(tiny_roberta, story_tokenizer, bad, seed=0)
    assert "\n" not in str(raised.value)


# How much fits


def test_prefix_that_leaves_too_little_room_is_refused_with_the_numbers(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    prefix = "One day " * 8  # 16 tokens, with <s> 17; the model reads 32, one of them </s>
    assert len(generate(tiny_roberta, story_tokenizer, prefix, seed=0, max_new_tokens=14).samples[0].token_ids) == 14
    with pytest.raises(ValueError, match=r"41 tokens.*reads 31.*Shorten"):
        generate(tiny_roberta, story_tokenizer, "One day " * 20, seed=0)


@pytest.mark.parametrize("stride", (None, 1, 7, 30))
def test_text_longer_than_the_context_is_written_window_by_window(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, stride: int | None
) -> None:
    seen = []
    tiny_roberta.roberta.register_forward_pre_hook(
        lambda _module, args, inputs: seen.append((args[0] if args else inputs["input_ids"]).shape[1]),
        with_kwargs=True,
    )
    output = generate(tiny_roberta, story_tokenizer, "One day", seed=0, max_new_tokens=100, stride=stride, top_p=1.0)
    (sample,) = output.samples
    assert len(sample.token_ids) == sample.num_forwards == 100 and max(seen) <= 32
    assert sample.text.startswith("One day")
    assert output.sequences.shape == (1, 1 + 2 + 100 + 1)
    again = generate(
        tiny_roberta, story_tokenizer, ["Poor", "One day"], seed=0, max_new_tokens=100, stride=stride, top_p=1.0
    )
    assert again.samples[1] == sample


def test_a_window_sees_the_text_before_it(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    """The last canvas begins with the end of what was written, so that no seam is blind."""
    asked: dict[str, Any] = {"seed": 3, "max_new_tokens": 60, "stride": 10, "order": "random"}
    *_, last = stream(tiny_roberta, story_tokenizer, "One day", **asked)
    (sample,) = generate(tiny_roberta, story_tokenizer, "One day", **asked).samples
    row = last.canvas[0].tolist()
    assert len(row) == 32 and row[1:-1] == sample.token_ids[-30:]


def test_a_text_that_ends_stops_its_windows(
    exact: Exact, story_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A story ends within 80 tokens: 200 are asked for, in windows of 100 at most."""
    monkeypatch.setattr("diffusion_mlm.continuation.context_length", lambda *_: 100)
    (sample,) = generate(exact, story_tokenizer, seed=4, max_new_tokens=200, stride=90, top_p=1.0).samples
    assert sample.finished and torch.isfinite(story_language.log_prob([sample.text])).all()
    assert sample.num_forwards < 90


def test_a_stride_that_leaves_no_room_is_refused(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="`stride` is 31, but a window of this model has room for 30"):
        generate(tiny_roberta, story_tokenizer, seed=0, max_new_tokens=40, stride=31)


def test_number_of_new_tokens_by_default_fits(writers: dict[str, Any]) -> None:
    packed, tokenizer = writers["words"]
    assert len(generate(packed, tokenizer, "One day", seed=0).samples[0].token_ids) == 32 - 3 - 1
    with_end, _ = writers["words with end"]
    assert generate(with_end, tokenizer, ["", "One day"], seed=0).sequences.shape == (2, 16)
    with pytest.raises(ValueError, match=r"17 tokens.*rows of training \(16\).*max_new_tokens.*15"):
        generate(with_end, tokenizer, "One day " * 8, seed=0)


def test_what_follows_the_end_token_is_not_text(exact: Exact, story_tokenizer: Any) -> None:
    (sample,) = generate(exact, story_tokenizer, seed=4, max_new_tokens=79).samples
    assert sample.finished
    assert len(sample.token_ids) < 79
    assert torch.isfinite(story_language.log_prob([sample.text])).all()


# Settings


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"stps": 3}, "`stps`.*`steps`"),
        ({"steps": 0}, "`steps`"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 10**6}, "`top_k` is 1000000.*vocabulary"),
        ({"do_sample": False}, "do_sample.*sampling='greedy'"),
        ({"seed": -1}, "`seed`.*-1"),
        ({"seed": 2**32}, "`seed`"),
        ({"seed": 1.0}, "`seed`"),
        ({"seed": True}, "`seed`"),
        ({"seed": 1, "generator": torch.Generator()}, "`seed` and `generator`"),
        ({"generation_config": object()}, "`generation_config`"),
    ],
)
@pytest.mark.parametrize("function", [generate, generate_each, stream])
def test_wrong_setting_is_refused_at_the_call(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, function: Any, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(tiny_roberta, story_tokenizer, "One", **{"max_new_tokens": 2, **asked})


def test_settings_of_the_call_win_over_given_over_the_models(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    def new_tokens(*args: Any, **kwargs: Any) -> int:
        return len(generate(tiny_roberta, story_tokenizer, "", *args, seed=0, **kwargs).samples[0].token_ids)

    tiny_roberta.generation_config = DiffusionGenerationConfig(max_new_tokens=2)
    assert new_tokens() == 2
    assert new_tokens(DiffusionGenerationConfig(max_new_tokens=3)) == 3
    assert new_tokens(DiffusionGenerationConfig(max_new_tokens=3), max_new_tokens=4) == 4


def test_mode_of_the_model_is_given_back(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    texts = []
    for training in (True, False):
        tiny_roberta.train(training)
        texts.append(generate(tiny_roberta, story_tokenizer, seed=0, max_new_tokens=8).texts)
        assert tiny_roberta.training is training
    assert texts[0] == texts[1]  # no dropout while generating


def test_logits_that_are_not_finite_are_an_error(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    tiny_roberta.lm_head.bias.data[7] = torch.nan
    for sampling in SAMPLINGS:
        with pytest.raises(NonFiniteLogitsError, match="NaN"):
            generate(tiny_roberta, story_tokenizer, seed=0, sampling=sampling, max_new_tokens=3)


def test_tokenizer_without_mask_token_is_refused(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    tokenizer = type(story_tokenizer)(tokenizer_object=story_tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(ValueError, match="no mask token"):
        generate(tiny_roberta, tokenizer, seed=0)


# Streams, streamers and logits processors


def test_stream_ends_where_generate_ends(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 7, "steps": 3}
    steps = list(stream(tiny_roberta, story_tokenizer, "One day", **asked))
    assert [int(step.is_masked.sum()) for step in steps][-1] == 0
    assert len(steps) == 3
    assert torch.equal(steps[-1].canvas, generate(tiny_roberta, story_tokenizer, "One day", **asked).sequences)


def test_text_streamers_print_the_text(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 5}
    (sample,) = generate(tiny_roberta, story_tokenizer, "One day", **asked).samples
    generate(tiny_roberta, story_tokenizer, "One day", streamer=TextStreamer(story_tokenizer), **asked)
    assert capsys.readouterr().out == sample.text + "\n"
    generate(
        tiny_roberta, story_tokenizer, "One day", streamer=TextStreamer(story_tokenizer, skip_prompt=True), **asked
    )
    assert capsys.readouterr().out == sample.completion.lstrip() + "\n"
    generate(tiny_roberta, story_tokenizer, "", streamer=TextStreamer(story_tokenizer, skip_prompt=True), **asked)
    assert capsys.readouterr().out == generate(tiny_roberta, story_tokenizer, "", **asked).texts[0] + "\n"


def test_text_diffusion_streamer_gets_every_draft(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextDiffusionStreamer(story_tokenizer)
    output = generate(tiny_roberta, story_tokenizer, "One day", seed=4, max_new_tokens=5, streamer=streamer)
    printed = capsys.readouterr().out
    assert printed.count("\033[33m") == 5  # one yellow draft per step
    assert [printed.count("<mask>") for printed in printed.split("\033[33m")] == [0, 4, 3, 2, 1, 0]
    assert printed.startswith("One ") and printed.endswith(output.samples[0].completion.split()[-1] + "\n")


class Recorder:
    """A streamer that writes down what it gets."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def put(self, value: Tensor) -> None:
        self.events.append(("put", value.numel()))

    def put_draft(self, value: Tensor) -> None:
        self.events.append(("draft", value.numel()))

    def end(self) -> None:
        self.events.append(("end", 0))


def test_streamer_gets_one_sample_after_another(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 3, "steps": 2, "num_return_sequences": 2}
    recorder: Any = Recorder()
    output = generate(tiny_roberta, story_tokenizer, "One day", streamer=recorder, **asked)
    assert recorder.events == [("put", 2), ("draft", 3), ("draft", 3), ("put", 3), ("end", 0)] * 2
    assert output.samples == generate(tiny_roberta, story_tokenizer, "One day", **asked).samples


def test_samples_come_batch_by_batch_and_progress_is_told(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    told: list[tuple[int, int]] = []
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 4, "steps": 2, "num_return_sequences": 3, "batch_size": 2}
    samples = generate_each(tiny_roberta, story_tokenizer, progress=lambda *seen: told.append(seen), **asked)
    first = next(samples)[0]
    assert told == [(4, 12), (8, 12)]
    rest = [sample for sample, _ in samples]
    assert told == [(4, 12), (8, 12), (10, 12), (12, 12)]
    assert [first, *rest] == generate(tiny_roberta, story_tokenizer, **asked).samples


def test_top_k_warper_as_processor_equals_topk_sampling(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 9, "order": "random"}
    warped = generate(
        tiny_roberta,
        story_tokenizer,
        logits_processor=LogitsProcessorList([TopKLogitsWarper(4)]),
        sampling="nucleus",
        top_p=1.0,
        **asked,
    )
    built_in = generate(tiny_roberta, story_tokenizer, sampling="topk", top_k=4, **asked)
    assert warped.samples == built_in.samples


class KeepOnly(LogitsProcessor):
    """Allows some tokens, and notes the shapes it is called with."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.shapes = tokens, []  # type: ignore[var-annotated]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape), int(input_ids.min())))
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.tokens] = scores[:, self.tokens].nan_to_num(neginf=9.0)  # tries to allow special tokens too
        return kept


def test_processor_sees_whole_canvases_and_cannot_allow_special_tokens(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    processor = KeepOnly([story_tokenizer.mask_token_id, story_tokenizer.pad_token_id, 9, 10])
    output = generate(
        tiny_roberta,
        story_tokenizer,
        ["", "One day"],
        seed=0,
        max_new_tokens=3,
        steps=1,
        logits_processor=LogitsProcessorList([processor]),
    )
    assert processor.shapes == [((6, 7), (6, len(story_tokenizer)), 0)]
    assert {token for sample in output.samples for token in sample.token_ids} <= {9, 10}


def test_repetition_penalty_uses_the_ids_of_its_own_row(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    penalty = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty=1e9)])
    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 12, "sampling": "greedy", "logits_processor": penalty}
    texts = ["One day a fox", ""]
    output = generate(tiny_roberta, story_tokenizer, texts, **asked)
    for sample in output.samples:
        ids = story_tokenizer(sample.prefix, add_special_tokens=False)["input_ids"] + sample.token_ids
        assert len(set(ids)) == len(ids)
    assert [generate(tiny_roberta, story_tokenizer, text, **asked).samples[0] for text in texts] == output.samples


# A callback that takes part


def seen_by(steps: Any) -> list[Any]:
    return [
        [step.index, step.num_forwards.tolist(), *(tensor.tolist() for tensor in (step.canvas, step.is_masked))]
        for step in steps
    ]


@pytest.mark.parametrize("batch_size", (1, 2, 64))
@pytest.mark.parametrize("max_new_tokens", (6, 60))  # within the context, and in windows
def test_on_step_gets_the_steps_of_each_text_as_stream_shows_them(
    writers: dict[str, Any], batch_size: int, max_new_tokens: int
) -> None:
    model, tokenizer = writers["words with end"]
    asked: dict[str, Any] = {"seed": 2, "max_new_tokens": max_new_tokens, "steps": 3}
    texts, steps = ["", "One day a fox", "The"], []  # type: ignore[var-annotated]
    generate(model, tokenizer, texts, on_step=steps.append, batch_size=batch_size, **asked)
    alone = [step for text in texts for step in stream(model, tokenizer, text, **asked)]
    assert sorted(seen_by(steps), key=repr) == sorted(seen_by(alone), key=repr)


@pytest.mark.parametrize("asked", [{}, {"order": "random", "remask": "remdm_cap"}, {"adaptive": "threshold"}])
def test_on_step_that_finishes_saves_the_other_forwards(writers: dict[str, Any], asked: dict[str, Any]) -> None:
    """Each text by itself: two of them stop where half of their tokens are there, the third goes on."""
    model, tokenizer = writers["words"]

    def stop_at_half(step: Any) -> str | None:
        third = step.canvas[0, 1] == tokenizer.convert_tokens_to_ids("ĠThe")
        return "finish" if not third and step.is_masked.sum() <= 8 else None

    asked = {"seed": 0, "max_new_tokens": 16, **asked}
    texts = ["One day", "Once upon", "The"]
    output = generate(model, tokenizer, texts, on_step=stop_at_half, **asked)
    whole = generate(model, tokenizer, texts, **asked)
    assert output.samples[2] == whole.samples[2]
    for sample, other in zip(output.samples[:2], whole.samples, strict=False):
        assert len(sample.token_ids) == 16 and sample.num_forwards <= 10
        assert sample.num_forwards < other.num_forwards or other.num_forwards <= 10
    for text, sample in zip(texts, output.samples, strict=True):
        assert generate(model, tokenizer, text, on_step=stop_at_half, **asked).samples == [sample]


def test_finish_is_about_the_window_at_hand(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    (sample,) = generate(
        tiny_roberta, story_tokenizer, seed=0, max_new_tokens=50, stride=10, on_step=lambda step: "finish"
    ).samples
    assert len(sample.token_ids) == 50 and sample.num_forwards == 5 * 2
    assert not set(sample.token_ids) & set(story_tokenizer.all_special_ids)


def test_on_step_that_changes_the_canvas_writes_along(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    """It puts a word in the fourth place, masks another once more, and the model writes the rest around them."""
    fox, mask = story_tokenizer.convert_tokens_to_ids(["Ġfox", "<mask>"])

    def change(step: Any) -> Tensor | None:
        canvas = step.canvas.clone()
        canvas[0, 1 + 2 + 3] = fox
        if step.index == 4:
            canvas[0, 1 + 2] = mask
        return canvas

    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 8, "order": "left_to_right"}
    steps = list(stream(tiny_roberta, story_tokenizer, "One day", on_step=change, **asked))
    assert steps[4].is_masked[0, 3] and steps[4].confidence[0, 3].isnan() and not steps[-1].is_masked.any()
    output = generate(tiny_roberta, story_tokenizer, ["The", "One day"], on_step=change, **asked)
    assert output.samples[1].token_ids == steps[-1].canvas[0, 3:11].tolist()
    assert output.samples[1].token_ids[3] == fox and output.samples[1].text.startswith("One day")


def test_on_step_that_masks_for_ever_ends_without_a_mask(writers: dict[str, Any]) -> None:
    for writer in ("words with end", "bpe"):
        model, tokenizer = writers[writer]

        def mask_all(step: Any, mask: int = tokenizer.mask_token_id) -> Tensor:
            places = step.is_masked | step.confidence.isfinite()
            return step.canvas.masked_fill(places, mask)

        output = generate(model, tokenizer, ["One", ""], seed=0, max_new_tokens=5, steps=3, on_step=mask_all)
        assert [sample.num_forwards for sample in output.samples] == [5, 5]
        assert not {token for sample in output.samples for token in sample.token_ids} & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda step: "stop", "`on_step` must return None.*got 'stop'"),
        (lambda step: step.canvas[:, :3], r"`on_step` must return None.*\(1, 7\).*got torch.int64 \(1, 3\)"),
        (lambda step: step.canvas.double(), "`on_step` must return None.*got torch.float64"),
        (lambda step: step.canvas + 1, "`on_step` returned a canvas that differs where nothing is generated"),
        (lambda step: step.canvas.masked_fill(step.is_masked, 1), "`on_step` put the token 1 into the text"),
        (lambda step: step.canvas.masked_fill(step.is_masked, 999), "`on_step` put the token 999"),
    ],
)
def test_wrong_answer_of_on_step_is_refused(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, answer: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny_roberta, story_tokenizer, ["One day", ""], seed=0, max_new_tokens=3, on_step=answer)


# Loading


def test_generator_loads_with_its_settings_and_writes_the_same(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_roberta.config.diffusion = {"generates_end": True, "row_length": 12}
    DiffusionGenerationConfig(sampling="topk", top_k=9).save_pretrained(tmp_path)
    tiny_roberta.save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_generator(str(tmp_path))
    assert (model.generation_config.sampling, model.generation_config.top_k) == ("topk", 9)
    expected = generate(tiny_roberta, story_tokenizer, seed=1, sampling="topk", top_k=9)
    output: DiffusionGenerationOutput = generate(model, tokenizer, seed=1)
    assert output.samples == expected.samples


@pytest.mark.parametrize(
    "content, message",
    [
        (None, None),
        ('{"max_length": 99, "pad_token_id": 1}', None),  # of transformers, which says nothing about diffusion
        ("{", "generation_config.json is no JSON"),
        ('{"schedule": "cosine", "steps": 0}', "generation_config.json `steps`"),
        ('{"schedule": "cosine", "stps": 4}', "`stps`.*`steps`"),
    ],
)
def test_generation_config_beside_a_model(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, tmp_path: Path, content: str | None, message: str | None
) -> None:
    tiny_roberta.save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    if message is None:
        assert load_generator(str(tmp_path))[0].generation_config == DiffusionGenerationConfig()
    else:
        with pytest.raises(ValueError, match=message):
            load_generator(str(tmp_path))


def test_model_without_tokenizer_is_refused(tiny_roberta: RobertaForMaskedLM, tmp_path: Path) -> None:
    tiny_roberta.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`--checkpoint`.*tokenizer"):
        load_generator(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="`--checkpoint`.*tokenizer") as raised:
        load_generator(str(tmp_path))
    assert "\n" not in str(raised.value)


# Constraints


@pytest.mark.parametrize(
    ("constraints", "holds"),
    [
        (Constraints(regex=r"( [a-z]+){3,}\."), lambda text: re.fullmatch(r"( [a-z]+){3,}\.", text)),
        (Constraints(banned_words=["the", "and", "a"]), lambda text: not re.search(r"\b(the|and|a)\b", text)),
        (
            Constraints(allowed_words=["the", "fox", "dog", "saw"]),
            lambda text: set(re.findall(r"\w+", text)) <= {"the", "fox", "dog", "saw"},
        ),
    ],
)
@pytest.mark.parametrize("asked", [{}, {"steps": 2}, {"sampling": "greedy", "steps": 3}, {"order": "random"}])
def test_constraints_hold_in_every_sample(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, constraints: Any, holds: Any, asked: dict[str, Any]
) -> None:
    output = generate(
        tiny_roberta,
        story_tokenizer,
        ["One day", "Once upon a time, Mia"],
        constraints=constraints,
        num_return_sequences=10,
        max_new_tokens=6,
        seed=0,
        **asked,
    )
    assert all(holds(sample.completion) for sample in output.samples)
    alone = generate(
        tiny_roberta,
        story_tokenizer,
        "One day",
        constraints=constraints,
        max_new_tokens=6,
        seed=3,
        batch_size=1,
        **asked,
    )
    assert alone.samples[0] == output.samples[3]


def test_stream_keeps_to_constraints(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    asked: dict[str, Any] = {"constraints": Constraints(allowed_words=["the", "fox"]), "max_new_tokens": 6, "seed": 0}
    *_, last = stream(tiny_roberta, story_tokenizer, "One day", **asked)
    assert torch.equal(last.canvas, generate(tiny_roberta, story_tokenizer, "One day", **asked).sequences)
    with pytest.raises(ValueError, match="`on_step` may only mask tokens again"):
        list(
            stream(
                tiny_roberta, story_tokenizer, on_step=lambda step: step.canvas.masked_fill(step.is_masked, 9), **asked
            )
        )


def test_constraints_that_no_text_can_keep_to_are_refused_before_anything_is_generated(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    asked: dict[str, Any] = {"constraints": Constraints(regex=" One day"), "seed": 0}
    assert generate(tiny_roberta, story_tokenizer, max_new_tokens=2, **asked | {"constraints": None})
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(tiny_roberta, story_tokenizer, "The", max_new_tokens=5, **asked)
    with pytest.raises(ValueError, match="No text of 50 new tokens.*`max_new_tokens=2`"):
        generate(tiny_roberta, story_tokenizer, "The", max_new_tokens=50, **asked)


WINDOWED = {
    "regex": (Constraints(regex=r"( [a-z]+){3,5}(, [A-Z][a-z]+( [a-z]+){3,5})*\."), None),
    "banned": (Constraints(banned_words=["the", "and", "a", "Give"], banned_strings=["er "]), None),
    "allowed": (Constraints(allowed_words=["the", "fox", "dog", "saw", "no"]), {"the", "fox", "dog", "saw", "no"}),
}


@pytest.mark.parametrize("name", sorted(WINDOWED))
@pytest.mark.parametrize("asked", [{"stride": 7}, {"steps": 3}, {"stride": 1, "sampling": "greedy"}])
def test_constraints_hold_over_all_windows_of_a_text_longer_than_the_context(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, name: str, asked: dict[str, Any]
) -> None:
    """The model reads 32 tokens, 30 of them new at most."""
    constraints, allowed = WINDOWED[name]
    settings: dict[str, Any] = {"constraints": constraints, "max_new_tokens": 75, "seed": 0, **asked}
    output = generate(
        tiny_roberta, story_tokenizer, ["One day", "Once upon a time, Mia"], num_return_sequences=2, **settings
    )
    for sample in output.samples:
        assert len(sample.token_ids) == 75
        if constraints.regex is not None:
            assert re.fullmatch(constraints.regex, sample.completion)
        assert not re.search(r"\b(the|and|a|Give)\b|er ", sample.completion) or not constraints.banned_words
        assert allowed is None or set(re.findall(r"\w+", sample.completion)) <= allowed
    alone = generate(tiny_roberta, story_tokenizer, "One day", batch_size=1, **settings)
    assert alone.samples[0] == output.samples[0]


def test_a_constrained_text_may_end_in_any_window(
    exact: Exact, story_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A story has 55 tokens or more, so that it ends in the second of windows of 40."""
    monkeypatch.setattr("diffusion_mlm.continuation.context_length", lambda *_: 100)
    constraints = Constraints(regex=r".*\.", banned_words=["Mia", "Ben", "Leo", "he"])
    asked: dict[str, Any] = {"max_new_tokens": 200, "stride": 40, "top_p": 1.0, "constraints": constraints}
    (sample,) = generate(exact, story_tokenizer, seed=4, **asked).samples
    assert sample.finished and 40 < len(sample.token_ids) < 80 and sample.text.endswith(".")
    assert not re.search(r"\b(Mia|Ben|Leo|he)\b", sample.text)
    assert torch.isfinite(story_language.log_prob([sample.text])).all()


def test_rows_without_padding_have_a_mask_unless_the_model_needs_none(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    def masks_of(model: Any, prefixes: list[str]) -> set[bool]:
        seen: set[bool] = set()
        hook = model.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.add("attention_mask" in kwargs), with_kwargs=True
        )
        generate(model, story_tokenizer, prefixes, max_new_tokens=4, steps=2, seed=0)
        hook.remove()
        return seen

    like_bert, other = copy.deepcopy(shared_roberta), story_language.ExactDenoiser()
    generate(like_bert, story_tokenizer, "Once", max_new_tokens=4, seed=0)  # what is found out once about a model
    assert masks_of(like_bert, ["Once", "One"]) == {False}
    assert masks_of(like_bert, ["Once", "Once upon a"]) == {True}
    assert masks_of(other, ["Once", "One"]) == {True}
