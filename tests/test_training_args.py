"""The training arguments: what is refused, and whether the documented defaults are the real ones."""

import re
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from diffusion_mlm import DiffusionTrainingArguments
from diffusion_mlm.cli import main
from diffusion_mlm.corruption import ForwardProcess

BAD_VALUES = [
    ("schedule", "lineer"),
    ("masking", "some"),
    ("objective", "mean"),
    ("levels_per", "token"),
    ("mask_levels", []),
    ("mask_levels", [0.5, 0.0]),
    ("mask_levels", [float("nan")]),
    ("prefix_length", "-1"),
    ("prefix_length", "2.5"),
    ("prefix_length", "often"),
    ("no_prefix_share", 1.5),
    ("no_prefix_share", float("nan")),
    ("span_length", 0.5),
    ("span_length", float("inf")),
    ("rate_distribution", "gamma"),
    ("rate_parameters", [1.0]),
    ("token_weights", "common"),
    ("random_length_share", -0.1),
    ("random_length_share", float("nan")),
    ("ema_decay", 1.0),
    ("ema_decay", float("nan")),
    ("early_stopping_patience", 0),
    ("early_stopping_patience", 2),  # nothing is evaluated
    ("learning_rate", 0.0),
    ("learning_rate", -1e-4),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")),
    ("weight_decay", -0.1),
    ("warmup_steps", float("nan")),
    ("max_grad_norm", float("inf")),
    ("per_device_train_batch_size", 0),
    ("per_device_eval_batch_size", -1),
    ("gradient_accumulation_steps", 0),
    ("max_steps", 0),
    ("max_steps", -5),
    ("num_train_epochs", 0.0),
    ("num_train_epochs", float("nan")),
    ("logging_steps", 0),
    ("save_steps", -5),
    ("eval_steps", 0),
    ("eval_draws", 0),
    ("seed", -1),
    ("seed", 2**32),
    ("label_smoothing_factor", 0.1),
    ("remove_unused_columns", True),
]


@pytest.mark.parametrize("name, value", BAD_VALUES)
def test_a_bad_value_is_named(tmp_path, name, value):
    with pytest.raises(ValueError) as raised:
        DiffusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
    assert f"`{name}`" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"rate_distribution": "importance", "objective": "simple"}, "`rate_distribution` is 'importance'"),
        ({"rate_distribution": "importance", "schedule": "cosine"}, "`rate_distribution` is 'importance'"),
        ({"token_weights": "rare", "masking": "bernoulli"}, "`token_weights` need exact counts"),
        ({"ema_decay": 0.9, "save_only_model": True}, "`save_only_model` must be False with `ema_decay`"),
    ],
)
def test_settings_that_exclude_one_another_are_refused(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        DiffusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_the_docstring_names_every_changed_default_and_both_values():
    """The docstring says `name` new (was old); the dataclasses say what is true."""
    stock = {field.name: field.default for field in fields(TrainingArguments)}
    ours = {field.name: field.default for field in fields(DiffusionTrainingArguments)}
    changed = {name for name in stock if stock[name] != ours[name]}
    text = " ".join(DiffusionTrainingArguments.__doc__.split("Changed defaults:")[1].split("Raises:")[0].split())
    told = {name: (new.rstrip(","), old) for name, new, old in re.findall(r"`(\w+)` (\S+)[^(`]*?\(was ([^):]+)", text)}
    assert set(told) == changed

    def same(written, value):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(written) == float(value)
        return written.strip('"') == {None: "none"}.get(value, str(getattr(value, "value", value)))

    for name, (new, old) in told.items():
        assert same(new, ours[name]), (name, new, ours[name])
        # The stock `output_dir` is None and becomes "trainer_output" when the arguments are built.
        assert same(old, "trainer_output" if name == "output_dir" else stock[name]), (name, old, stock[name])


def test_the_stock_output_directory_is_what_the_docstring_says():
    assert TrainingArguments(use_cpu=True).output_dir == "trainer_output"


@pytest.mark.parametrize("written, meant", [("random", "random"), ("0", 0), ("12", 12), (3, 3)])
def test_prefix_is_what_the_forward_process_takes(tmp_path, written, meant):
    assert DiffusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, prefix_length=written).prefix == meant


def test_masking_settings_build_the_forward_process_they_describe(tmp_path):
    args = DiffusionTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, masking="levels", mask_levels=[0.5], prefix_length="7", span_length=2.0
    )
    process = ForwardProcess(mask_id=4, **args.masking_settings())
    assert (process.masking, process.levels, process.prefix_length, process.span_length) == ("levels", (0.5,), 7, 2.0)


def test_a_schedule_is_kept_under_its_own_name(tmp_path):
    assert DiffusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, schedule="cosine").schedule == "cosine"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_several_processes_without_an_accelerator_train_one_model(tmp_path):
    """transformers makes them one world only if told that there is no accelerator."""
    assert DiffusionTrainingArguments(str(tmp_path)).use_cpu


@pytest.mark.parametrize("written, meant", [("true", True), (True, True), ("false", None), (None, None)])
def test_fsdp_is_read_from_a_file_as_from_the_command_line(tmp_path, written, meant):
    args = DiffusionTrainingArguments(str(tmp_path), use_cpu=True, fsdp=written, fsdp_config={"version": "2"})
    assert args.fsdp == meant
    assert (args.fsdp_plugin_args or {}).get("fsdp_version") == (2 if meant else None)


@pytest.fixture
def installed(monkeypatch):
    """The packages that are found; none, unless a test adds some."""
    names = set()
    monkeypatch.setattr("diffusion_mlm.trackers.find_spec", lambda name: name if name in names else None)
    return names


def test_several_trackers_are_one_word_on_the_command_line(tmp_path, installed):
    installed |= {"tensorboardX", "trackio"}
    args = DiffusionTrainingArguments(str(tmp_path), use_cpu=True, report_to="tensorboard,trackio")
    assert args.report_to == ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    "tracker, remedy",
    [
        ("tensorboard", "the package tensorboard is not installed: pip install 'diffusion-mlm[track]'."),
        ("trackio", "the package trackio is not installed: pip install 'diffusion-mlm[track]'."),
        ("wandb", "the package wandb is not installed: pip install wandb."),
        ("comet_ml", "the package comet_ml is not installed: pip install comet-ml."),
        ("tensorbord", "which is no tracker: choose of "),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_at_once(tmp_path, installed, capsys, tracker, remedy):
    with pytest.raises(ValueError) as raised:
        DiffusionTrainingArguments(str(tmp_path), use_cpu=True, report_to=[tracker])
    assert str(raised.value).startswith(f"`report_to` is {tracker!r}, ") and remedy in str(raised.value)
    assert main(["train", "--report-to", tracker, "--use-cpu", "true", "--output-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"diffusion-mlm: {raised.value}\n"
    assert not (tmp_path / "run").exists()
