"""LoRA: what trains, that the head still runs on masked rows alone, checkpoints, and the ordinary model at the end."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import StopAt, digest, make_rows, make_trainer, tiny_model
from transformers import RobertaForMaskedLM, TrainerCallback

from diffusion_mlm import story_language
from diffusion_mlm.cli import main
from diffusion_mlm.lora import add_lora, merge_lora, require_peft
from diffusion_mlm.modeling import load_model, logits_at, selects_rows, unwrap

IDS = story_language.sample_ids(3, seed=1)
ROWS = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0)) < 0.3


def test_without_its_package_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)  # what Python does where there is none
    with pytest.raises(ImportError, match=r"pip install 'diffusion-mlm\[lora\]'"):
        require_peft()
    assert main(["train", "--lora-rank", "4"]) == 2
    assert (
        "`--lora-rank` is 4. LoRA needs another package: pip install 'diffusion-mlm[lora]'." in capsys.readouterr().err
    )


def trained_lora(directory, resume_from=None, stop_at=None, **settings):
    torch.manual_seed(7)  # what the process did before must not matter
    trainer = make_trainer(
        directory,
        model=add_lora(tiny_model(dropout=0.1), rank=2, seed=3),
        callbacks=[StopAt(stop_at)] if stop_at else [],
        eval_dataset=make_rows(4, first=50),
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=4,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def saved(model, directory):
    model.save_pretrained(directory)
    return str(directory)


def test_it_begins_as_the_model_and_trains_small_matrices_only():
    plain = tiny_model().eval()
    model = add_lora(tiny_model(), rank=2).eval()
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    only = add_lora(tiny_model(), rank=2, targets=["query", "value"])
    layers = {name.split(".")[-4] for name, parameter in only.named_parameters() if parameter.requires_grad}
    assert layers == {"query", "value"}


def test_small_matrices_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = digest(add_lora(tiny_model(), rank=2, seed=5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert digest(add_lora(tiny_model(), rank=2, seed=5)) == first != digest(add_lora(tiny_model(), rank=2, seed=6))
    assert torch.equal(torch.get_rng_state(), state)


def test_trackers_are_given_no_local_path_of_the_model(tmp_path):
    for name, shown in ((str(tmp_path), None), ("me/model", "me/model")):
        model = tiny_model()
        model.name_or_path = name
        lora = add_lora(model, rank=2)
        assert lora.peft_config["default"].base_model_name_or_path == shown
    lora = add_lora(load_model(saved(tiny_model(), tmp_path / "base")), rank=2)
    assert str(tmp_path) not in str(lora.peft_config)
    lora.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_the_head_runs_on_chosen_rows_under_the_wrapper():
    model = add_lora(tiny_model(), rank=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.01  # or the product would be 0
    counts = []
    unwrap(model).register_forward_hook(lambda _model, _args, output: counts.append(output.logits.shape[:2]))
    assert type(unwrap(model)) is RobertaForMaskedLM and selects_rows(model)
    counts.clear()
    torch.testing.assert_close(logits_at(model, ROWS, input_ids=IDS), model(IDS).logits[ROWS], rtol=0, atol=1e-5)
    assert counts == [(1, int(ROWS.sum())), IDS.shape]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    return trained_lora(directory, ema_decay=0.8), directory


def test_frozen_weights_stay_and_the_merged_model_predicts_the_same(unbroken, tmp_path):
    trainer, _ = unbroken
    frozen = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in unwrap(trainer.model).named_parameters()
        if not parameter.requires_grad
    }
    assert all(torch.equal(frozen[name], parameter) for name, parameter in tiny_model().named_parameters())
    before = digest(trainer.model)
    merged = merge_lora(trainer.model).eval()
    assert digest(trainer.model) == before and type(merged) is RobertaForMaskedLM
    torch.testing.assert_close(merged(IDS).logits, trainer.model.eval()(IDS).logits, rtol=0, atol=1e-5)
    assert (merged(IDS).logits - tiny_model().eval()(IDS).logits).abs().max() > 1e-2
    merged.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).eval()
    assert type(again) is RobertaForMaskedLM and torch.equal(again(IDS).logits, merged(IDS).logits)
    assert set(load_file(tmp_path / "model.safetensors")) == set(saved_names(tiny_model(), tmp_path / "plain"))
    assert merge_lora(again) is again


def saved_names(model, directory):
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def test_a_run_that_was_resumed_ends_with_the_same_matrices(unbroken, tmp_path):
    trainer, _ = unbroken
    trained_lora(tmp_path, stop_at=2, ema_decay=0.8)
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    resumed = trained_lora(tmp_path, resume_from=str(tmp_path / "checkpoint-2"), ema_decay=0.8)
    assert digest(resumed.model) == digest(trainer.model)


class CountGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for name, parameter in model.named_parameters() if ".lora_B." in name]
        self.moved = sum(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_recomputed_activations_reach_the_matrices_though_the_embeddings_are_frozen(tmp_path):
    count = CountGradients()
    trainer = make_trainer(
        tmp_path,
        model=add_lora(tiny_model(), rank=2),
        callbacks=[count],
        activation_checkpointing=True,
        per_device_train_batch_size=8,
        max_steps=1,
    )
    trainer.train()
    assert count.moved == 7, "query, key, value, three more of the layer, and the head"


def test_the_command_line_saves_an_ordinary_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("diffusion_mlm").handlers.clear()
    text = tmp_path / "text.txt"
    text.write_text("One day a fox lived in a small house.\n" * 40)
    options = (
        "--lora-rank 2 --max-length 16 --batch-size 8 --max-steps 2 --learning-rate 0.1 --random-length-share 0.1"
    )
    quiet = "--disable-tqdm true --report-to none --use-cpu true --save-strategy no --output-dir out"
    argv = ["train", "--model-name", checkpoint, "--train-file", str(text), *options.split(), *quiet.split()]
    assert main(argv) == 0
    final = Path("out/final-model")
    assert load_file(final / "model.safetensors").keys() == load_file(Path(checkpoint) / "model.safetensors").keys()
    assert not (final / "adapter_config.json").exists()
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["source"]["recipe"]["optimizer"] == "adamw_torch_fused"
    assert summary["parameters"] == load_model(str(final)).num_parameters()
    config = json.loads((final / "config.json").read_text())
    assert config["diffusion"]["recipe"] == {"random_length_share": 0.1, "lora_rank": 2}
    ids = IDS[:, :16]
    tuned, start = (load_model(str(name)).eval()(ids).logits for name in (final, checkpoint))
    assert (tuned - start).abs().max() > 0.1


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"rank": 2, "alpha": 0.0}, "`alpha` must be a finite number above 0"),
        ({"rank": 2, "targets": ["quary"]}, "`targets` has 'quary', the name of no linear layer. The model has"),
        ({"rank": 2, "targets": ["decoder"]}, "`targets` has 'decoder', the output embedding"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        add_lora(tiny_model(), **settings)
