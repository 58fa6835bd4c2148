"""Watching a run: what trackers, the log file and the trainer's history are given, and what is kept from them."""

import importlib.util
import json

import pytest
from transformers import TrainerCallback, TrainerState

from diffusion_mlm import DiffusionGenerationConfig, DiffusionTrainer, DiffusionTrainingArguments
from diffusion_mlm.callbacks import LogFileCallback, SampleTextCallback


class Recording(TrainerCallback):
    """What a tracker is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def watched(directory, tokenizer, model, steps, report_to="none"):
    """A run of `steps` steps that logs, evaluates and writes at each; its tracker, and its log file."""
    samples = SampleTextCallback(tokenizer, ["The", "One"], DiffusionGenerationConfig(max_new_tokens=3))
    recording = Recording()
    trainer = DiffusionTrainer(
        model,
        DiffusionTrainingArguments(
            str(directory),
            report_to=report_to,
            max_steps=steps,
            per_device_train_batch_size=4,
            eval_draws=10,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            hub_token="secret",
        ),
        processing_class=tokenizer,
        train_dataset=[{"input_ids": tokenizer("The old fox lived in a small house.")["input_ids"]}] * 4,
        eval_dataset=[{"input_ids": tokenizer("The old fox lived in a small house.")["input_ids"]}] * 2,
        callbacks=[samples, recording, LogFileCallback(directory / "log.jsonl")],
    )
    samples.log = trainer.log
    trainer.train()
    lines = (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return recording.logs, [json.loads(line) for line in lines]


SCALARS = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "eval_loss", "eval_loss_mask_rate_1.0"}


def test_a_tracker_and_the_log_file_get_losses_rates_speed_and_samples(tmp_path, story_tokenizer, tiny_roberta):
    logs, lines = watched(tmp_path, story_tokenizer, tiny_roberta, steps=2)
    names = {name for entry in logs for name in entry}
    assert names >= SCALARS and any(name.startswith("loss_mask_rate_") for name in names)
    samples = [entry for entry in logs if "eval_sample_1" in entry]
    assert len(samples) == 2
    assert samples[0]["eval_sample_1"].startswith("The ") and samples[0]["eval_sample_2"].startswith("One ")
    assert [{name: value for name, value in line.items() if name != "step"} for line in lines] == logs
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


def test_a_resumed_run_goes_on_in_its_log_file_and_a_new_one_begins_it_anew(tmp_path):
    path = tmp_path / "log.jsonl"

    def run(first, last):
        callback, state = LogFileCallback(path), TrainerState(global_step=first)
        callback.on_train_begin(None, state, None)
        for state.global_step in range(first + 1, last + 1):
            callback.on_log(None, state, None, logs={"loss": float(last)})
        return [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]

    assert run(0, 3) == [(1, 3.0), (2, 3.0), (3, 3.0)]
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while it wrote
    assert run(2, 4) == [(1, 3.0), (2, 3.0), (3, 4.0), (4, 4.0)]
    assert run(0, 1) == [(1, 1.0)]


def test_trackers_are_given_no_token_and_no_local_path(tmp_path):
    args = DiffusionTrainingArguments(str(tmp_path / "run"), use_cpu=True, hub_token="secret")
    given = args.to_json_string()
    assert "secret" not in given and str(tmp_path) not in given
    assert json.loads(given)["output_dir"] == "run"
    assert args.output_dir == str(tmp_path / "run")


def test_nothing_is_reported_unless_asked_for(tmp_path):
    assert DiffusionTrainingArguments(str(tmp_path), use_cpu=True).report_to == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_curves_and_samples(tmp_path, story_tokenizer, tiny_roberta):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(tmp_path, story_tokenizer, tiny_roberta, steps=1, report_to="tensorboard")
    (directory,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(directory)).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/tokens_per_second", "eval/loss", "eval/loss_mask_rate_1.0"} <= set(tags["scalars"])
    (sample,) = events.Tensors("eval/sample_1/text_summary")
    assert sample.tensor_proto.string_val[0].decode().startswith("The ")
    written = b"".join(path.read_bytes() for path in directory.iterdir())
    assert b"secret" not in written and str(tmp_path).encode() not in written
