"""The running mean of the weights: the recursion by hand, where it is used, and that resuming changes no bit of it."""

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import StopAt, digest, make_rows, make_trainer, tiny_model
from transformers import EarlyStoppingCallback, TrainerCallback

from diffusion_mlm import DiffusionTrainingArguments
from diffusion_mlm.weight_average import WeightAverage

DECAY = 0.8


class KeepWeights(TrainerCallback):
    """The weights after every step, and those in the model whenever it was evaluated."""

    def __init__(self):
        self.steps, self.evaluated = [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(copy.deepcopy(model.state_dict()))

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.evaluated.append(copy.deepcopy(model.state_dict()))


def mean_by_hand(steps):
    """m <- m + (1 - decay) (w - m), from the weights of the first step, in float64."""
    mean = {name: tensor.double() for name, tensor in steps[0].items()}
    for weights in steps[1:]:
        mean = {name: mean[name] + (1 - DECAY) * (weights[name].double() - mean[name]) for name in mean}
    return mean


def assert_close(state, expected):
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 4 steps that evaluates and saves every 2."""
    directory, keep = tmp_path_factory.mktemp("averaged"), KeepWeights()
    trainer = make_trainer(
        directory,
        callbacks=[keep],
        eval_dataset=make_rows(4, first=50),
        ema_decay=DECAY,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=8,
        max_steps=4,
    )
    trainer.train()
    return trainer, keep, directory


def test_the_mean_is_evaluated_and_is_what_training_leaves(trained):
    trainer, keep, _ = trained
    assert_close(keep.evaluated[0], mean_by_hand(keep.steps[:2]))
    assert_close(trainer.model.state_dict(), mean_by_hand(keep.steps))
    name = "lm_head.dense.weight"
    assert (keep.steps[-1][name] - trainer.model.state_dict()[name]).abs().max() > 1e-3  # or it would say nothing
    in_training = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(in_training[-1], abs=1e-6)


def test_a_checkpoint_holds_the_weights_and_the_mean_beside_them(trained):
    _, keep, directory = trained
    weights = load_file(directory / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(weights[name], keep.steps[1][name]) for name in weights)
    state = load_file(directory / "checkpoint-2" / "run_state.safetensors")
    mean = mean_by_hand(keep.steps[:2])
    assert int(state.pop("ema_decay.num_steps")) == 2
    assert_close(
        {name.removeprefix("ema_decay.weights."): tensor for name, tensor in state.items()},
        {name.removeprefix("ema_decay.weights."): mean[name.removeprefix("ema_decay.weights.")] for name in state},
    )


def test_what_is_saved_at_the_end_is_the_mean(trained, tmp_path):
    trainer, keep, _ = trained
    trainer.save_model(str(tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    mean = mean_by_hand(keep.steps)
    assert_close(saved, {name: mean[name] for name in saved})


def test_averaging_changes_no_weight_of_the_run_itself(tmp_path):
    digests = []
    for settings in ({}, {"ema_decay": DECAY, "eval_strategy": "steps", "eval_steps": 1}):
        keep = KeepWeights()
        trainer = make_trainer(
            tmp_path,
            callbacks=[keep],
            eval_dataset=make_rows(2, first=50),
            per_device_train_batch_size=8,
            max_steps=3,
            **settings,
        )
        trainer.train()
        digests.append(keep.steps[-1])
    assert all(torch.equal(digests[0][name], digests[1][name]) for name in digests[0])


def test_a_run_that_goes_on_from_a_checkpoint_without_a_mean_begins_one_and_says_so_once(tmp_path, caplog):
    settings = {"per_device_train_batch_size": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **settings).train()
    keep = KeepWeights()
    recipe = {"ema_decay": DECAY, "rate_distribution": "importance", "allow_inexact_resume": True}
    trainer = make_trainer(tmp_path, callbacks=[keep], **settings, **recipe)
    with caplog.at_level(logging.WARNING, "diffusion_mlm"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(keep.steps) == 2
    assert_close(trainer.model.state_dict(), mean_by_hand(keep.steps))
    said = [text for text in caplog.messages if "was saved without" in text]
    assert len(said) == 1 and said[0].endswith("without `ema_decay`, `rate_distribution`, which begins anew here.")


def test_weights_come_back_bit_for_bit_also_after_an_error():
    model = tiny_model()
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = digest(model)

    def fail():
        with average.within(model):
            assert digest(model) == digest(tiny_model())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert digest(model) == before


# Early stopping, and the best model at the end


def stopping_run(directory, resume_from=None, callbacks=(), **settings):
    """Bounds that get worse from the start on, as the learning rate is far too high."""
    torch.manual_seed(0)
    trainer = make_trainer(
        directory,
        callbacks=callbacks,
        eval_dataset=make_rows(8, first=50),
        early_stopping_patience=2,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=0.2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        max_steps=12,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    bounds = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return trainer, bounds


@pytest.mark.parametrize("settings", [{}, {"ema_decay": DECAY}], ids=["weights", "mean"])
def test_training_stops_after_so_many_worse_bounds_and_keeps_the_best_model(tmp_path, settings):
    trainer, bounds = stopping_run(tmp_path, **settings)
    best = bounds.index(min(bounds))
    assert len(bounds) == best + 3 < 12, "two evaluations after the best one"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(bounds), abs=1e-6)


def test_patience_is_remembered_by_a_checkpoint(tmp_path):
    _, unbroken = stopping_run(tmp_path / "unbroken")
    at = len(unbroken) - 1  # one worse evaluation has been counted
    stopping_run(tmp_path / "stopped", callbacks=[StopAt(at)])
    _, resumed = stopping_run(tmp_path / "stopped", resume_from=str(tmp_path / "stopped" / f"checkpoint-{at}"))
    assert resumed == unbroken


def test_the_best_model_of_before_an_inexact_resume_comes_back_without_a_mean(tmp_path):
    _, bounds = stopping_run(tmp_path, callbacks=[StopAt(2)])
    checkpoint = str(tmp_path / "checkpoint-2")
    trainer, bounds = stopping_run(tmp_path, checkpoint, ema_decay=DECAY, allow_inexact_resume=True)
    assert bounds.index(min(bounds)) < 2 and len(bounds) > 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(bounds), abs=1e-6)


def arguments(tmp_path, **settings):
    return DiffusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_early_stopping_saves_what_it_evaluates(tmp_path):
    args = arguments(tmp_path, early_stopping_patience=3, eval_strategy="epoch")
    assert (args.save_strategy, args.load_best_model_at_end, args.metric_for_best_model) == (
        "epoch",
        True,
        "eval_loss",
    )
    args = arguments(tmp_path, early_stopping_patience=3, eval_strategy="steps", eval_steps=20)
    assert (args.save_strategy, args.save_steps) == ("steps", 20)
    args = arguments(tmp_path, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="best")
    assert args.save_strategy == "best"
    args = arguments(tmp_path, load_best_model_at_end=True, eval_strategy="epoch")
    assert args.save_strategy == "epoch" and args.greater_is_better is False


def test_the_callback_is_that_of_transformers(tmp_path):
    trainer = make_trainer(tmp_path, early_stopping_patience=3, eval_strategy="epoch", eval_dataset=make_rows(2))
    (found,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    assert found.early_stopping_patience == 3
