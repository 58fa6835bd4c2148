"""The picture scripts: files that open, and figures behind them that are right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm.visualization.trace import Reveal, Trace, TraceSample, TraceStep, frame_text
from experiments import layer_activations, order_viz, schedule_viz, side_by_side, training_viz


def opened(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        picture.load()
        assert file.stat().st_size < 300_000
        return picture.size


def test_schedules_are_drawn(tmp_path: Path) -> None:
    assert schedule_viz.main(["--output", str(tmp_path / "new" / "s.png"), "--tokens", "20", "--steps", "5"]) == 0
    assert opened(tmp_path / "new" / "s.png")[0] > 1000


def test_an_order_is_drawn_from_a_trace(tmp_path: Path) -> None:
    steps = (
        TraceStep((Reveal(1, " b", 0.5),)),
        TraceStep((Reveal(0, " a", None),), remasks=(1,)),
        TraceStep((Reveal(1, None, 0.5),)),
    )
    Trace((TraceSample((2,), steps, " a"),), {"order": "random"}).save(tmp_path / "t.json")
    assert order_viz.main([str(tmp_path / "t.json"), "--output", str(tmp_path / "o.png")]) == 0
    assert opened(tmp_path / "o.png")[0] > 500
    with pytest.raises(ValueError, match="5 texts, and 4 are the most"):
        order_viz.main([*[str(tmp_path / "t.json")] * 5, "--output", str(tmp_path / "o.png")])


def test_a_training_is_drawn_from_its_logs(tmp_path: Path) -> None:
    logs: list[dict[str, Any]] = [
        {"step": step, "epoch": 0.5, "loss": 9 / step, "loss_mask_rate_0.5": 3 / step, "loss_mask_rate_1.0": 9 / step}
        for step in (1, 2, 3)
    ]
    logs.append({"step": 3, "eval_loss": 2.5, "eval_loss_mask_rate_1.0": 3.5})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logs}), encoding="utf-8")
    curves = training_viz.read_logs(str(tmp_path))
    assert curves["loss"] == [(1, 9.0), (2, 4.5), (3, 3.0)]
    assert training_viz.by_mask_rate(curves) == ("held-out text", [(1.0, [(3, 3.5)])])
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(log)}\n" for log in logs), encoding="utf-8")
    assert training_viz.read_logs(str(tmp_path / "log.jsonl")) == training_viz.read_logs(str(tmp_path)) == curves
    del curves["eval_loss_mask_rate_1.0"]
    assert [rate for rate, _ in training_viz.by_mask_rate(curves)[1]] == [0.5, 1.0]
    assert training_viz.main([str(tmp_path), "--output", str(tmp_path / "t.png")]) == 0
    assert opened(tmp_path / "t.png")[0] > 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no log.jsonl and no trainer_state.json"),
        ("{}", "no logs"),
        ('{"log_history": []}', "no loss was logged"),
    ],
)
def test_logs_that_are_none_are_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        training_viz.main([str(tmp_path), "--output", str(tmp_path / "t.png")])


@pytest.mark.parametrize("script", [schedule_viz, order_viz, training_viz, layer_activations])
def test_a_picture_of_an_unknown_kind_is_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="`--output` must end in .png, .pdf, .svg, unlike 'a.bmp'"):
        script.main(["--output", "a.bmp"])


def test_attention_to_masks_goes_with_them_and_states_end_as_they_are(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    args = layer_activations.LayerActivationsArguments(prefix="One day", steps=4)
    canvases, generated = layer_activations.canvases_of(tiny_roberta, story_tokenizer, args)
    mask_id = story_tokenizer.mask_token_id
    assert canvases[0].eq(mask_id).equal(generated) and not canvases[-1].eq(mask_id).any() and len(canvases) == 5
    found = layer_activations.look_inside(tiny_roberta, canvases, generated, mask_id)
    assert found.to_masks.shape == (5, 1) and found.settled.shape == (5, 2)
    assert ((found.to_masks >= 0) & (found.to_masks <= 1)).all() and found.to_masks[-1] == 0
    torch.testing.assert_close(found.settled[-1], torch.ones(2))
    assert all(weights.sum(-1).allclose(torch.ones(len(weights))) for _, weights in found.maps)
    layer_activations.draw(found, str(tmp_path / "l.png"), "")
    assert opened(tmp_path / "l.png")[0] > 1000


def test_both_write_at_their_own_pace(
    shared_roberta: RobertaForMaskedLM,
    shared_llama: LlamaForCausalLM,
    story_tokenizer: PreTrainedTokenizerFast,
) -> None:
    args = side_by_side.SideBySideArguments(autoregressive="x", prefix="One day", new_tokens=6, steps=3)
    for write, model, steps in (
        (side_by_side.write_by_diffusion, shared_roberta, 3),
        (side_by_side.write_causally, shared_llama, 6),
    ):
        sample = write(model, story_tokenizer, args)
        seconds = [step.seconds for step in sample.steps]
        assert len(seconds) == sample.num_forwards == steps and seconds == sorted(seconds)
        assert frame_text(sample.last_frame()) == sample.text and sample.text.startswith("One day")
        assert all(0 < reveal.confidence <= 1 for step in sample.steps for reveal in step.reveals)
    causal = [step.reveals[0].position for step in sample.steps]
    assert causal == list(range(6))


def test_side_by_side_needs_a_causal_model() -> None:
    with pytest.raises(ValueError, match="`--autoregressive` is missing"):
        side_by_side.main([])
