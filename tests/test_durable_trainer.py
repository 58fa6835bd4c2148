"""Runs that are stopped, refused, out of disk or out of memory, and what they leave."""

import errno
import gc
import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from diffusion_mlm.batch_fingerprint import row_fingerprint
from diffusion_mlm.errors import (
    CheckpointError,
    NonFiniteLossError,
    OutputDirectoryError,
    SaveError,
    TrainingInterruptedError,
    TrainingMemoryError,
)
from diffusion_mlm.memory_split import smaller_split
from diffusion_mlm.output_directory import require_writable
from diffusion_mlm.rate_distributions import ImportanceRates
from diffusion_mlm.sealed_checkpoints import MANIFEST, newest_complete, read_facts, seal
from experiments.kill_training import Setting, digest, fork, make_rows, make_trainer

RUN = Setting(steps=4, save_every=2, rows=27)  # 3 steps a pass


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "checkpoint" in path.name)


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_is_not_searched_again():
    """Every `train` collects garbage, which takes a third of a second where so much is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def trainer_at(directory, step, action, setting=RUN, **changes):
    trainer = make_trainer(directory, setting, **changes)
    trainer.callback_handler.callbacks.insert(0, At(step, action))
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was left alone, and the digest of its weights."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    trainer = make_trainer(directory, RUN)
    trainer.train()
    return directory, digest(trainer.model)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


# Which checkpoint is resumed


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning_rate": 1e-3}, "`learning_rate` was 0.01, is 0.001"),
        ({"seed": 7}, "`seed` was 42, is 7"),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, "`gradient_accumulation_steps` was 2"),
        ({"masking": "bernoulli"}, "masking='bernoulli'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_other_settings_is_refused(copy, changes, words):
    trainer = make_trainer(copy, RUN, **changes)
    for wanted in (True, "auto", str(copy / "checkpoint-2")):
        with pytest.raises(CheckpointError, match=re.escape(words)) as error:
            trainer.train(resume_from_checkpoint=wanted)
        assert "allow_inexact_resume" in str(error.value)
    assert checkpoints(copy) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_of_other_data_is_refused(copy):
    trainer = make_trainer(copy, RUN)
    trainer.train_dataset = make_rows(28)[1:]
    with pytest.raises(CheckpointError, match="`data` was [0-9a-f]{16}, is [0-9a-f]{16}\\. Use its"):
        trainer.train(resume_from_checkpoint=True)


def test_an_inexact_resume_is_allowed_by_name_and_recorded_in_all_checkpoints_after_it(copy, caplog):
    trainer = make_trainer(copy, Setting(steps=6, rows=27), learning_rate=1e-3, allow_inexact_resume=True)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "Resumes inexactly from" in caplog.text and "`learning_rate` was 0.01, is 0.001" in caplog.text
    recorded = read_facts(copy / "checkpoint-6")["resumed inexactly"]
    assert recorded == trainer.inexact_resumes == ["`learning_rate` was 0.01, is 0.001", "`max_steps` was 4, is 6"]
    again = make_trainer(copy, Setting(steps=6, rows=27), learning_rate=1e-3)
    again.train(resume_from_checkpoint=True)
    assert again.inexact_resumes == recorded


def test_the_seconds_of_all_parts_of_a_run_add_up(copy):
    facts = read_facts(copy / "checkpoint-2")
    assert 0 < facts["train seconds"] <= read_facts(copy / "checkpoint-4")["train seconds"]
    seal(copy / "checkpoint-2", {**facts, "train seconds": 1000.0})
    trainer = make_trainer(copy, RUN)
    trainer.train(resume_from_checkpoint=str(copy / "checkpoint-2"))
    assert 1000 < read_facts(copy / "checkpoint-4")["train seconds"] <= trainer.train_seconds
    assert trainer.inexact_resumes == []


def test_a_checkpoint_that_is_named_is_used_or_refused_and_true_takes_the_newest_complete(copy, finished):
    weights = copy / "checkpoint-4" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="checkpoint-4' cannot be used: model.safetensors has .* bytes instead"):
        make_trainer(copy, RUN).train(resume_from_checkpoint=str(copy / "checkpoint-4"))
    assert checkpoints(copy) == ["checkpoint-2", "checkpoint-4"]
    with pytest.raises(CheckpointError, match="there is no such directory"):
        make_trainer(copy, RUN).train(resume_from_checkpoint=str(copy / "checkpoint-3"))
    trainer = make_trainer(copy, RUN)
    trainer.train(resume_from_checkpoint=True)
    assert checkpoints(copy) == ["_torn-checkpoint-4", "checkpoint-2", "checkpoint-4"]
    assert digest(trainer.model) == finished[1]


def test_a_checkpoint_without_manifest_is_used_only_if_that_is_allowed(copy, finished):
    for step in (2, 4):
        (copy / f"checkpoint-{step}" / MANIFEST).unlink()
    for wanted in (True, str(copy / "checkpoint-2")):
        with pytest.raises(CheckpointError, match="another program or an older version wrote it"):
            make_trainer(copy, RUN).train(resume_from_checkpoint=wanted)
    assert checkpoints(copy) == ["checkpoint-2", "checkpoint-4"]
    trainer = make_trainer(copy, RUN, allow_inexact_resume=True)
    trainer.train(resume_from_checkpoint=str(copy / "checkpoint-2"))
    assert digest(trainer.model) == finished[1]
    assert read_facts(copy / "checkpoint-4")["resumed inexactly"] == [
        "checkpoint-2 has no manifest and was not checked"
    ]


def test_a_checkpoint_without_optimizer_is_not_exact(tmp_path):
    make_trainer(tmp_path, Setting(steps=1, save_every=1), save_only_model=True).train()
    with pytest.raises(CheckpointError, match="it holds no scheduler.pt; it holds no rng_state.pth; it holds no opt"):
        make_trainer(tmp_path, Setting(steps=1, save_every=1), save_only_model=True).train(resume_from_checkpoint=True)


def test_nothing_to_resume_is_an_error_or_with_auto_a_beginning(tmp_path, caplog):
    with pytest.raises(CheckpointError, match="found no complete checkpoint in"):
        make_trainer(tmp_path, RUN).train(resume_from_checkpoint=True)
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, Setting(steps=1)).train(resume_from_checkpoint="auto")
    assert "begins anew" in caplog.text


# Signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_from_there(tmp_path, finished, signum):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer = trainer_at(tmp_path / "run", 3, lambda: signal.raise_signal(signum))
    with pytest.raises(TrainingInterruptedError, match="after step 3, which is saved in .*checkpoint-3") as error:
        trainer.train()
    assert error.value.signum == signum
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert newest_complete(tmp_path / "run").name == "checkpoint-3"
    trainer = make_trainer(tmp_path / "run", RUN)
    trainer.train(resume_from_checkpoint=True)
    assert digest(trainer.model) == finished[1]


def test_a_signal_saves_even_where_only_the_best_model_is_saved(tmp_path):
    trainer = make_trainer(tmp_path, RUN, save_strategy="best", metric_for_best_model="eval_loss", eval_steps=1)
    trainer.args.greater_is_better = True  # so that the first bound is the "best" one
    trainer.eval_dataset, trainer.args.eval_strategy = make_rows(27)[:4], IntervalStrategy.STEPS
    trainer.callback_handler.callbacks.insert(0, At(2, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(TrainingInterruptedError, match="after step 2, which is saved in .*checkpoint-2"):
        trainer.train()
    assert trainer.state.best_global_step == 1
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_signal_after_the_last_step_saves_too(tmp_path):
    trainer = make_trainer(tmp_path, Setting(steps=2), save_strategy="no")
    trainer.callback_handler.callbacks.append(at_end := TrainerCallback())
    at_end.on_train_end = lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError):
        trainer.train()
    assert newest_complete(tmp_path).name == "checkpoint-2"


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as error:
        trainer_at(tmp_path, 1, twice).train()
    assert not isinstance(error.value, TrainingInterruptedError)
    assert newest_complete(tmp_path) is None


def test_nothing_is_evaluated_after_a_signal(tmp_path):
    trainer = trainer_at(tmp_path, 2, lambda: signal.raise_signal(signal.SIGTERM))
    trainer.eval_dataset = make_rows(27)[:4]
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 1
    with pytest.raises(TrainingInterruptedError):
        trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_a_signal_to_the_whole_group(tmp_path, signum):
    def to_all():
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signum)
        signal.raise_signal(signum)

    trainer = trainer_at(tmp_path, 1, to_all, setting=Setting(workers=2, steps=4, rows=75))
    # One more step than the signal asks for, with rows that the workers have yet to make.
    trainer._interruption.on_step_end = lambda args, state, control, **kwargs: (
        type(trainer._interruption).on_step_end(trainer._interruption, args, state, control)
        if state.global_step == 3
        else None
    )
    with pytest.raises(TrainingInterruptedError, match="after step 3"):
        trainer.train()
    assert newest_complete(tmp_path).name == "checkpoint-3"


# Disk and directory


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is that of a child")
def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(tmp_path):
    log = tmp_path / "log"

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # the optimizer takes more

    assert fork(lambda: trainer_at(tmp_path / "run", 3, limit_files).train(), log) == 1
    message = log.read_text().strip().splitlines()[-1]
    assert message.startswith("diffusion_mlm.errors.SaveError: ") and "what was written is removed" in message
    assert message.endswith("checkpoint-2 is complete: make room, then resume from it.")
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert newest_complete(tmp_path / "run").name == "checkpoint-2"


def test_a_disk_that_is_full_when_the_seal_is_written_is_no_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, RUN)

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffusion_mlm.sealed_checkpoints.write_flushed", full)
    with pytest.raises(SaveError, match="No space left on device.*No checkpoint was saved before"):
        trainer.train()
    assert checkpoints(tmp_path) == []


def test_too_little_room_is_refused_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    size = sum(parameter.numel() for parameter in make_trainer(tmp_path, RUN).model.parameters())
    needed = round(1.1 * 3 * 12 * size)  # the limit of 2, and one more
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage(free))
        trainer = make_trainer(tmp_path, Setting(steps=1))
        if enough:
            trainer.train()
        else:
            shutil.rmtree(tmp_path / "checkpoint-1")
            with pytest.raises(SaveError, match="has room for 0.00 GB, and 3 checkpoints may take"):
                trainer.train()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputDirectoryError, match="cannot be written to: Not a directory"):
        require_writable(tmp_path / "file" / "run")
    require_writable(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_model_that_is_saved_to_a_new_directory_appears_whole(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, RUN)
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").stat().st_size

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(trainer.processing_class), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model(str(tmp_path / "other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# Numbers that are not finite


def test_a_loss_that_is_not_finite_names_the_rows_and_leaves_the_checkpoints_before(tmp_path):
    rows = make_rows(27)
    start = torch.tensor(rows[17]["input_ids"][:7])
    assert sum(row["input_ids"][:7] == rows[17]["input_ids"][:7] for row in rows) == 1
    trainer = make_trainer(tmp_path, Setting(steps=6, save_every=1, rows=27), prefix_length="6")

    def poison(model, args, kwargs, output):
        is_row = (args[0][:, :7] == start).all(-1)
        hidden = output.last_hidden_state.clone()
        hidden[is_row] = math.nan
        output.last_hidden_state = hidden
        return output

    trainer.model.roberta.register_forward_hook(poison, with_kwargs=True)
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    step = int(re.search("at step ([0-9]+)", str(error.value))[1])
    assert f"rows 17 of the training set, with the fingerprints {row_fingerprint(rows[17]['input_ids'])}" in str(
        error.value
    )
    assert 1 <= step <= 4  # two passes are 6 steps, and each leaves out 3 rows
    assert checkpoints(tmp_path) == [f"checkpoint-{k}" for k in range(max(1, step - 2), step)]
    for path in tmp_path.glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_an_average_of_the_optimizer_that_is_infinite_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, RUN)

    def overflow():
        parameter = trainer.model.lm_head.bias
        trainer.optimizer.state[parameter]["exp_avg_sq"][3] = math.inf

    trainer.callback_handler.callbacks.insert(0, At(2, overflow))
    with pytest.raises(NonFiniteLossError, match="optimizer's exp_avg_sq of lm_head.bias are not finite after step 2"):
        trainer.train()
    assert checkpoints(tmp_path) == []


# Memory


def out_of_memory_above(trainer, rows, from_call=0):
    calls = []

    def forward(model, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if calls[-1] > rows and len(calls) > from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    return calls


def test_out_of_memory_names_the_settings_that_keep_the_global_batch(tmp_path):
    trainer = make_trainer(tmp_path, RUN)
    out_of_memory_above(trainer, 2)
    with pytest.raises(TrainingMemoryError) as error:
        trainer.train()
    assert "at step 1 with 4 rows per device" in str(error.value)
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 4" in str(error.value)


@pytest.mark.parametrize("from_call", [0, 3], ids=["at the first step", "after a checkpoint"])
def test_auto_find_batch_size_keeps_the_global_batch_and_the_weights(tmp_path, from_call):
    run = Setting(steps=2, save_every=1, rows=27)
    expected = make_trainer(tmp_path / "expected", run, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer = make_trainer(tmp_path / "run", run, auto_find_batch_size=True)
    for each in (expected, trainer):
        for module in each.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    expected.train()
    calls = out_of_memory_above(trainer, 2, from_call)
    trainer.train()
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (2, 4)
    assert calls == [4] * (from_call + 1) + [2] * (8 if from_call == 0 else 4)
    for name, tensor in expected.model.state_dict().items():
        if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=1e-5, msg=name)
    # A later run takes the split that was found, if it may find one itself.
    make_trainer(tmp_path / "run", run, auto_find_batch_size=True).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="`gradient_accumulation_steps` was 4, is 2"):
        make_trainer(tmp_path / "run", run).train(resume_from_checkpoint=True)


def test_nothing_is_learnt_from_steps_that_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ImportanceRates, "NUM_BINS", 2)
    monkeypatch.setattr(ImportanceRates, "WARM_UP", 1)
    run = Setting(steps=4, save_every=9, rows=27)
    settings = {"rate_distribution": "importance", "logging_steps": 4}
    splits = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {"auto_find_batch_size": True}
    logs = []
    for split in splits:
        trainer = make_trainer(tmp_path / str(len(logs)), run, **settings, **split)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        out_of_memory_above(trainer, 2, from_call=5)
        trainer.train()
        logs.append({name: value for name, value in trainer.state.log_history[0].items() if "loss" in name})
    assert logs[1] == pytest.approx(logs[0], abs=1e-4)


def test_weights_that_are_sharded_cannot_begin_again(tmp_path):
    trainer = make_trainer(tmp_path / "run", RUN, auto_find_batch_size=True)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="`auto_find_batch_size` must be False with `fsdp`"):
        trainer.train()


@pytest.mark.parametrize("rows, steps, split", [(32, 1, (16, 2)), (9, 2, (3, 6)), (7, 1, (1, 7)), (1, 4, None)])
def test_the_next_smaller_split_divides_the_rows_by_their_smallest_factor(rows, steps, split):
    args = namedtuple("args", "per_device_train_batch_size gradient_accumulation_steps")
    assert smaller_split(args(rows, steps)) == split


def test_a_setting_that_saves_half_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`enable_jit_checkpoint` must be False"):
        make_trainer(tmp_path, RUN, enable_jit_checkpoint=True)
