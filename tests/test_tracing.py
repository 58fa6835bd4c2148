"""Recording: a run with a recorder is the run without one, and its trace ends in its text."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import Constraints, Trace, TraceRecorder, edit, generate, infill, stream
from diffusion_mlm.modeling import build_model, preset_config
from diffusion_mlm.tokenization import encode_text, train_bpe
from diffusion_mlm.tracing import split_text
from diffusion_mlm.visualization.trace import frame_text

SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 3, "num_return_sequences": 3},
    {"remask": "renoise", "steps": 9},
    {"remask": "low_confidence", "order": "confidence", "steps": 5},
    {"order_from": "sample", "order": "confidence", "steps": 4},
    {"adaptive": "threshold", "adaptive_bound": 0.3},
    {"guidance_scale": 2.0, "steps": 4},
    {"no_repeat_ngram_size": 1, "steps": 3},
    {"max_new_tokens": 70, "stride": 20, "steps": 4},
]


def checked(recorder: TraceRecorder, texts: list[str]) -> Trace:
    """The trace, read back from its file; its last frames are the texts."""
    trace = Trace.from_json(recorder.trace().to_json())
    assert [sample.text for sample in trace.samples] == texts
    assert [frame_text(sample.last_frame()) for sample in trace.samples] == texts
    return trace


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(settings) or "default")
def test_generate_writes_the_same_and_the_trace_ends_in_it(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> None:
    asked = {"max_new_tokens": 8, "seed": 4, **settings}
    recorder = TraceRecorder(story_tokenizer, alternatives=3)
    out = generate(shared_roberta, story_tokenizer, ["One day", ""], recorder=recorder, **asked)
    plain = generate(shared_roberta, story_tokenizer, ["One day", ""], **asked)
    assert out.texts == plain.texts
    assert [s.num_forwards for s in out.samples] == [s.num_forwards for s in plain.samples]
    trace = checked(recorder, out.texts)
    for sample, made in zip(trace.samples, out.samples, strict=True):
        assert (sample.seed, sample.num_forwards) == (made.seed, made.num_forwards)
        assert sample.num_positions == asked["max_new_tokens"]
        for step in sample.steps:
            assert all(len(reveal.alternatives) == 3 for reveal in step.reveals if reveal.confidence is not None)


def test_steps_and_confidence_are_those_of_stream(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 6, "seed": 4, "steps": 8, "remask": "renoise"}
    recorder = TraceRecorder(story_tokenizer, alternatives=400)
    generate(shared_roberta, story_tokenizer, "One day", recorder=recorder, **asked)
    first = 3  # behind the start token and the prefix
    (sample,) = recorder.samples
    for step, kept in zip(stream(shared_roberta, story_tokenizer, "One day", **asked), sample.steps, strict=True):
        assert [reveal.position for reveal in kept.reveals] == (step.revealed[0].nonzero()[:, 0] - first).tolist()
        assert list(kept.remasks) == (step.remasked[0].nonzero()[:, 0] - first).tolist()
        for reveal in kept.reveals:
            token = int(step.canvas[0, first + reveal.position])
            assert reveal.text is not None and reveal.text.strip() == story_tokenizer.decode([token])
            assert reveal.confidence == pytest.approx(float(step.confidence[0, first + reveal.position]))
            (share,) = [c.probability for c in reveal.alternatives if c.text == reveal.text]
            assert share == pytest.approx(reveal.confidence, rel=1e-4)  # both are what the model said
            assert sum(c.probability for c in reveal.alternatives) == pytest.approx(1, abs=1e-4)
    assert any(step.remasks for step in sample.steps)


def test_constraints_are_kept_and_the_run_is_not_changed(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 5, "seed": 4, "constraints": Constraints(banned_words=["the", "a"])}
    recorder = TraceRecorder(story_tokenizer, alternatives=3)
    texts = generate(shared_roberta, story_tokenizer, "One day", recorder=recorder, **asked).texts
    assert texts == generate(shared_roberta, story_tokenizer, "One day", **asked).texts
    checked(recorder, texts)


def test_infill_and_edit_are_recorded_piece_by_piece(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = TraceRecorder(story_tokenizer, alternatives=2)
    templates = ["One <mask:2> day.", "<mask:1-3> fox <mask>"]
    asked: dict[str, Any] = {"seed": 3, "num_return_sequences": 2, "draws": 2}
    filled = infill(shared_roberta, story_tokenizer, templates, recorder=recorder, **asked)
    assert filled == infill(shared_roberta, story_tokenizer, templates, **asked)
    edited = edit(shared_roberta, story_tokenizer, "One day in May", strength=0.5, seed=3, recorder=recorder)
    assert edited == edit(shared_roberta, story_tokenizer, "One day in May", strength=0.5, seed=3)
    trace = checked(recorder, [text.text for text in [*filled, *edited]])
    assert trace.samples[0].layout == ("One ", 2, " day.")
    assert [s.num_positions for s in trace.samples] == [*(sum(t.lengths) for t in filled), edited[0].num_masked]
    assert all(len(s.steps) == s.num_positions for s in trace.samples)


def test_parts_of_characters_and_words_come_out_whole() -> None:
    tokenizer = train_bpe(["naïve 日本 words 👩 and more"] * 4, vocab_size=270)
    config = preset_config("roberta-tiny", tokenizer, 64)
    config.num_hidden_layers, config.initializer_range = 1, 0.6
    model = build_model(config, seed=0).eval()
    recorder = TraceRecorder(tokenizer)
    texts = generate(model, tokenizer, ["日本 👩 ", "na"], max_new_tokens=30, seed=1, recorder=recorder).texts
    checked(recorder, texts)


def test_a_character_of_several_tokens_belongs_to_the_last_of_them() -> None:
    written = ["", "\ufffd", "\ufffd", "日", "日 x"]
    assert split_text("日 x", 4, lambda number: written[number]) == ["", "", "日", " x"]
    assert split_text("", 0, lambda number: "") == []


def test_times_rise_if_they_are_kept(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = TraceRecorder(story_tokenizer, timed=True)
    generate(shared_roberta, story_tokenizer, "One day", max_new_tokens=4, seed=0, recorder=recorder)
    seconds = [step.seconds or 0.0 for step in recorder.samples[0].steps]
    assert len(seconds) == 4 and seconds[0] > 0 and seconds == sorted(seconds)


def test_what_on_step_changes_is_in_the_trace(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    mask = story_tokenizer.mask_token_id
    (word,) = encode_text(story_tokenizer, "fox")

    def on_step(step: Any) -> torch.Tensor | None:
        return step.canvas.masked_fill(step.revealed, mask if step.index == 0 else word) if step.index < 2 else None

    recorder = TraceRecorder(story_tokenizer)
    asked: dict[str, Any] = {"max_new_tokens": 4, "seed": 0, "on_step": on_step}
    texts = generate(shared_roberta, story_tokenizer, "One day", recorder=recorder, **asked).texts
    trace = checked(recorder, texts)
    assert not trace.samples[0].steps[0].reveals and "fox" in texts[0]
    assert {reveal.text for reveal in trace.samples[0].steps[1].reveals} == {" fox"}


def test_mistakes_are_named(story_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="`alternatives`.*-1"):
        TraceRecorder(story_tokenizer, alternatives=-1)
    with pytest.raises(ValueError, match="`recorder` has recorded nothing"):
        TraceRecorder(story_tokenizer).trace()
