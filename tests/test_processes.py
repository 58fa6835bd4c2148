"""Two processes, DDP and FSDP2, shared streams: what one process does with the same global batch.

One start of `torchrun` serves all tests here: this file is also the script that the two processes run.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from safetensors.torch import load_file
from transformers import RobertaForMaskedLM, Trainer, TrainerCallback

from diffusion_mlm import DiffusionGenerationConfig, DiffusionTrainer, DiffusionTrainingArguments, story_language
from diffusion_mlm.callbacks import SampleTextCallback
from diffusion_mlm.cli.train import save_final
from diffusion_mlm.errors import CheckpointError, NonFiniteLossError, TrainingInterruptedError
from diffusion_mlm.modeling import build_model, preset_config
from diffusion_mlm.objectives import OBJECTIVES
from diffusion_mlm.rate_distributions import ImportanceRates
from diffusion_mlm.sealed_checkpoints import read_facts

TOKENIZER = story_language.tokenizer()
SHARDS = {"one": 1, "four": 4}
SIGNALLED = {"gradient_accumulation_steps": 1, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def tiny_model():
    config = preset_config("roberta-tiny", TOKENIZER, 80, 0.0)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads = 1, 16, 16, 2
    return build_model(config, seed=0)


def make_rows(count, first=0):
    """Different stories cut at different lengths."""
    stories = story_language.sample_ids(count, seed=3, first=first).tolist()
    return [{"input_ids": row[: 8 + 5 * place % 40]} for place, row in enumerate(stories)]


class RecordingTrainer(DiffusionTrainer):
    """Keeps, of every micro-batch, the rows in clean and their mask rates."""

    def compute_loss(self, model, inputs, **kwargs):
        corrupted = inputs["corrupted"]
        self.seen = getattr(self, "seen", [])
        rows = [tuple(row[row != TOKENIZER.pad_token_id].tolist()) for row in corrupted.targets]
        self.seen.append((self.state.global_step, rows, corrupted.mask_rate.tolist()))
        return super().compute_loss(model, inputs, **kwargs)


def train(directory, num_processes, rows=None, callbacks=(), resume_from=None, **settings):
    """Some steps of a global batch of 16, and the bound of 13 texts, which two processes cannot share evenly."""
    defaults = {
        "per_device_train_batch_size": 8 // num_processes,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 3,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "eval_draws": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = RecordingTrainer(
        tiny_model(),
        DiffusionTrainingArguments(str(directory), **{**defaults, **settings}),
        processing_class=TOKENIZER,
        train_dataset=make_rows(37) if rows is None else rows,
        eval_dataset=make_rows(13, first=50),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def results(trainer):
    metrics = trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "by_mask_rate": [{name: entry[name] for name in entry if "mask_rate" in name} for entry in logs],
        "loss": [entry["loss"] for entry in logs],
        "tokens_per_second": [entry["tokens_per_second"] for entry in logs],
        "eval": {name: metrics[name] for name in metrics if "loss" in name or "num_tokens" in name},
        "weights": trainer.accelerator.get_state_dict(trainer.model),
        "seen": trainer.seen,
    }


def recipe_results(directory, num_processes):
    """Learnt rates, cut rows and averaged weights; rates follow the loss from the second step on."""
    recipe = {"rate_distribution": "importance", "random_length_share": 0.3, "ema_decay": 0.8, "max_steps": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImportanceRates, "NUM_BINS", 4)
        patch.setattr(ImportanceRates, "WARM_UP", 2)
        return results(train(directory, num_processes, **recipe))


def stream(shards):
    return Dataset.from_list(make_rows(20)).to_iterable_dataset(num_shards=shards)


def stream_results(directory, num_processes, name, workers=0):
    """A pass and a bit over a stream of 20 rows; the bound is that of a stream of 13."""
    trainer = train(
        directory,
        num_processes,
        stream(SHARDS[name]),
        dataloader_num_workers=workers,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=4 // num_processes,
        max_steps=7,
        learning_rate=1e-4,
    )
    trainer.eval_dataset = Dataset.from_list(make_rows(13, first=50)).to_iterable_dataset(num_shards=2)
    return results(trainer)


# What the two processes do


class SignalIn(TrainerCallback):
    """SIGTERM to one of the processes, at the end of step 2."""

    def __init__(self, rank):
        self.rank = rank

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == self.rank:
            signal.raise_signal(signal.SIGTERM)


def stop_and_go_on(directory):
    """Where a run stops when one process is told to, and its weights beside those of a run left alone."""

    def run(name, callbacks=(), resume=None):
        trainer = train(directory / name, 2, callbacks=callbacks, resume_from=resume, **SIGNALLED)
        return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    left_alone = run("left-alone")
    try:
        run("stopped", [SignalIn(1)])
    except TrainingInterruptedError as error:
        return left_alone, str(error), run("stopped", resume=True)
    return left_alone, "it was not stopped", {}


def on_cpus(trainer):
    """accelerate has FSDP for accelerators only, torch for CPUs too: says that these are accelerators."""
    stock(trainer)
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState._shared_state, PartialState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


stock = Trainer.create_accelerator_and_postprocess


def work(directory):
    """Everything that the tests look at, as rank 0 saw it, and what every rank saw of the streams."""
    rank = int(os.environ["RANK"])
    found = {objective: results(train(directory, 2, objective=objective)) for objective in OBJECTIVES}
    found["recipe"] = recipe_results(directory, 2)
    found["stopped"] = stop_and_go_on(directory)
    for name in SHARDS:
        found[name] = stream_results(directory, 2, name)
    found["workers"] = stream_results(directory, 2, "four", workers=2)
    # FSDP
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2}}
    try:
        train(directory, 2, **fsdp)
    except ValueError as error:
        found["refusal"] = str(error)
    Trainer.create_accelerator_and_postprocess = on_cpus
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("diffusion_mlm").addHandler(handler)
    logging.getLogger("diffusion_mlm").setLevel(logging.INFO)
    generation = DiffusionGenerationConfig(max_new_tokens=4)
    sample = SampleTextCallback(TOKENIZER, ["The"], generation)
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = train(directory / "fsdp", 2, callbacks=[sample], **fsdp, **saving)
    found["fsdp"] = results(trainer)
    found["written"] = [message for message in messages if "writes" in message]
    save_final(trainer, TOKENIZER, generation, directory / "fsdp" / "final-model")
    resumed = train(directory / "resumed", 2, resume_from=str(directory / "fsdp" / "checkpoint-2"), **fsdp)
    found["resumed"] = resumed.accelerator.get_state_dict(resumed.model)
    if rank == 1:
        trainer.model.lm_head.bias._local_tensor.data[-1] = float("nan")
    try:
        trainer._require_finite_weights()
    except NonFiniteLossError as error:
        found["noticed"] = str(error)
    found["muon"] = results(train(directory, 2, optim="muon", activation_checkpointing=True, **fsdp))
    torch.save(found, directory / f"rank{rank}.pt")
    torch.distributed.barrier()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of the two processes found, and where they wrote."""
    directory = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, __file__, str(directory)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, [torch.load(directory / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    found = {objective: results(train(directory, 1, objective=objective)) for objective in OBJECTIVES}
    found["muon"] = results(train(directory, 1, optim="muon"))
    found["recipe"] = recipe_results(directory, 1)
    found["one"] = stream_results(directory, 1, "one")
    return found


def require_equal(two, one):
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["eval"] == pytest.approx(one["eval"], abs=1e-5)
    for left, right in zip(two["by_mask_rate"], one["by_mask_rate"], strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    assert min(two["tokens_per_second"]) > 0
    assert set(one["weights"]) == set(two["weights"])
    for name, tensor in one["weights"].items():
        # Softmax does not see the bias of the keys: its gradient is rounding, which Adam scales to whole steps.
        tolerance = 4e-3 if name.endswith("key.bias") else 2e-5
        torch.testing.assert_close(two["weights"][name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ddp_trains_and_evaluates_like_one_process(two, one, objective):
    require_equal(two[1][0][objective], one[objective])


def test_learnt_rates_cut_rows_and_averages_are_those_of_one_process(two, one):
    require_equal(two[1][0]["recipe"], one["recipe"])


def test_a_signal_to_one_process_stops_both_and_they_go_on_to_the_same_weights(two):
    directory, found = two
    for left_alone, message, went_on in (part["stopped"] for part in found):
        assert "after step 3" in message  # they ask at the end of step 2 and act at the end of step 3
        assert went_on and all(torch.equal(tensor, left_alone[name]) for name, tensor in went_on.items())
    assert read_facts(directory / "stopped" / "checkpoint-6")["processes"] == 2
    with pytest.raises(CheckpointError, match="it holds no rng_state.pth"):
        train(directory / "stopped", 1, resume_from=True, **SIGNALLED)


def test_fsdp_trains_and_evaluates_like_one_process(two, one):
    require_equal(two[1][0]["fsdp"], one["elbo"])


def test_muon_and_layers_computed_again_under_fsdp_train_like_one_process(two, one):
    require_equal(two[1][0]["muon"], one["muon"])


def test_what_fsdp_saves_is_an_ordinary_roberta(two):
    directory, (found, _) = two
    for saved in ("final-model", "checkpoint-2"):
        config = json.loads((directory / "fsdp" / saved / "config.json").read_text())
        assert config["architectures"] == ["RobertaForMaskedLM"]
    model = RobertaForMaskedLM.from_pretrained(directory / "fsdp" / "final-model")
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found["fsdp"]["weights"][name]), name
    stored = load_file(directory / "fsdp" / "final-model" / "model.safetensors")
    assert set(stored) == set(model.state_dict()) - {"lm_head.decoder.weight", "lm_head.decoder.bias"}


def test_a_run_under_fsdp_is_resumed_to_the_same_weights(two):
    found = two[1][0]
    assert found["resumed"] and all(
        torch.equal(tensor, found["fsdp"]["weights"][name]) for name, tensor in found["resumed"].items()
    )


def test_under_fsdp_all_processes_write_samples_and_the_first_one_says_them(two):
    first, second = two[1]
    assert first["written"] and first["written"][0].startswith("step 2 writes: The ")
    assert second["written"] == []


def test_weights_of_one_process_that_are_not_finite_are_noticed_by_all(two):
    first, second = two[1]
    assert first["noticed"] == second["noticed"]
    assert "The weights lm_head.bias are not finite" in first["noticed"]


def test_fsdp_on_cpus_is_refused(two):
    assert (
        "`fsdp` needs accelerators: with MULTI_CPU processes accelerate would train a whole copy"
        in (two[1][0]["refusal"])
    )


# Streams


def global_batches(found):
    """The rows and mask rates of every step, those of all processes together."""
    steps = {}
    for part in found:
        for step, rows, rates in part["seen"]:
            in_step = steps.setdefault(step, ([], []))
            in_step[0].extend(rows)
            in_step[1].extend(rates)
    return [steps[step] for step in sorted(steps)]


@pytest.mark.parametrize("name", ["one", "four", "workers"])
def test_a_pass_over_a_stream_holds_each_row_at_most_once_in_stratified_batches(two, name):
    batches = global_batches([found[name] for found in two[1]])
    steps_a_pass = {"one": 5, "four": 5, "workers": 4}[name]  # a worker has a shard of 5 rows and makes batches of 2
    everything = {tuple(row["input_ids"]) for row in make_rows(20)}
    rows = [row for batch, _ in batches[:steps_a_pass] for row in batch]
    assert len(everything) == 20 and len(batches) == 7
    assert len(rows) == len(set(rows)) == 4 * steps_a_pass and set(rows) <= everything
    if name != "workers":  # they have a row left, which begins their next batch
        assert set(batches[0][0]) == set(batches[steps_a_pass][0]), "the second pass begins as the first one"
    for _, rates in batches:
        assert sorted(torch.ceil(torch.tensor(rates) * 4).int().tolist()) == [1, 2, 3, 4]


def test_processes_that_share_a_shard_see_the_batches_of_one_process(two, one):
    both = global_batches([found["one"] for found in two[1]])
    alone = global_batches([one["one"]])
    assert [(rows, rates) for rows, rates in both] == [(rows, rates) for rows, rates in alone]
    require_equal(two[1][0]["one"], one["one"])


def test_processes_with_shards_of_their_own_read_nothing_else(two):
    rows = [tuple(row["input_ids"]) for row in make_rows(20)]
    for rank, part in enumerate(found["four"] for found in two[1]):
        seen = {row for _, batch, _ in part["seen"] for row in batch}
        assert seen == set(rows[rank * 10 : rank * 10 + 10])


def test_a_stream_that_validates_counts_each_row_once(two, one):
    for found in two[1]:
        assert found["four"]["eval"]["eval_num_tokens"] == one["one"]["eval"]["eval_num_tokens"]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
