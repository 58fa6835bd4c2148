"""Pushes of a trainer while it trains, to a Hub on the loopback address."""

import copy
import logging
import threading
import types

import pytest
import torch
from loopback_hub import TOKEN, Fault, LoopbackHub
from safetensors.torch import load_file
from transformers import RobertaForMaskedLM, TrainerCallback

from diffusion_mlm import DiffusionGenerationConfig, DiffusionTrainer, DiffusionTrainingArguments
from diffusion_mlm.errors import HubUnavailableError, NotAllowedError
from diffusion_mlm.lora import add_lora, merge_lora


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("diffusion_mlm.hub._WAITS", (0.0, 0.0))
    with LoopbackHub().serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        yield hub


class Release(TrainerCallback):
    """Sets an event once step 2 is saved."""

    def __init__(self):
        self.event = threading.Event()

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.event.set()


def trainer(model, tokenizer, output_dir, callbacks=(), **options):
    options = {"save_strategy": "steps", "hub_model_id": "me/run", "hub_token": TOKEN, **options}
    args = DiffusionTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=2,
        max_steps=2,
        save_steps=1,
        push_to_hub=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    rows = [{"input_ids": [0, *range(5 + row, 13 + row), 2]} for row in range(8)]
    return DiffusionTrainer(model, args, processing_class=tokenizer, train_dataset=rows, callbacks=list(callbacks))


def messages(hub):
    return [commit.message for commit in hub.repository("me/run").commits[1:]]


def folders(hub):
    return {name.split("/")[0] for name in hub.files("me/run") if "/" in name}


@pytest.mark.parametrize(
    "strategy, pushed, kept",
    [
        ("end", [], set()),
        ("every_save", [1, 2], set()),
        ("checkpoint", [1, 2], {"last-checkpoint"}),
        ("all_checkpoints", [1, 2], {"checkpoint-1", "checkpoint-2"}),
    ],
)
def test_every_strategy_pushes_what_it_says(hub, tiny_roberta, story_tokenizer, tmp_path, strategy, pushed, kept):
    tiny_roberta.generation_config = DiffusionGenerationConfig(steps=7)
    (tmp_path / "_push-killed").mkdir()  # of a run that was killed while it pushed
    training = trainer(tiny_roberta, story_tokenizer, tmp_path, hub_strategy=strategy, hub_always_push=True)
    assert hub.repository("me/run").private  # it is there before training
    training.train()
    assert messages(hub) == [f"Training in progress, step {step}" for step in pushed]
    assert folders(hub) == kept
    if pushed:
        assert b'"steps": 7' in hub.files("me/run")["generation_config.json"]
        assert b"Training goes on: this is the model of step 2" in hub.files("me/run")["README.md"]
    published = training.push_to_hub()
    assert messages(hub)[-1] == "End of training" and published.sha == hub.repository("me/run").head.sha
    assert b"Training goes on" not in hub.files("me/run")["README.md"]
    assert not any(name.endswith("training_args.bin") for name in hub.files("me/run"))
    assert not list(tmp_path.glob("_push-*"))


def test_a_push_sends_what_was_saved_even_if_it_has_gone_since(hub, tiny_roberta, story_tokenizer, tmp_path):
    release, kept = Release(), tmp_path / "kept"
    hub.faults.append(Fault("POST", "/preupload/", before=lambda: release.event.wait(30)))

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 1:
                kept.write_bytes((tmp_path / "run" / "checkpoint-1" / "model.safetensors").read_bytes())

    training = trainer(tiny_roberta, story_tokenizer, tmp_path / "run", [Keep(), release], save_total_limit=1)
    training.train()
    assert not (tmp_path / "run" / "checkpoint-1").exists()
    assert messages(hub) == ["Training in progress, step 1"]  # that of step 2 had to wait, and was left out
    assert hub.files("me/run")["model.safetensors"] == kept.read_bytes()


def test_a_push_that_fails_is_reported_and_the_last_one_raises(hub, tiny_roberta, story_tokenizer, tmp_path, caplog):
    hub.faults.append(Fault("POST", "/commit/", 500, times=99))
    training = trainer(tiny_roberta, story_tokenizer, tmp_path)
    with caplog.at_level(logging.WARNING, "diffusion_mlm"):
        training.train()
    assert training.state.global_step == 2
    assert any("A push failed, and training goes on. `hub_model_id`" in text for text in caplog.messages)
    with pytest.raises(HubUnavailableError, match="status 500"):
        training.push_to_hub()
    assert load_file(tmp_path / "model.safetensors")
    assert messages(hub) == []


def test_nobody_trains_who_may_not_push(hub, tiny_roberta, story_tokenizer, tmp_path):
    with pytest.raises(NotAllowedError, match="`hub_model_id` is 'somebody/run', but me may not write there"):
        trainer(tiny_roberta, story_tokenizer, tmp_path, hub_model_id="somebody/run")


def test_a_token_is_not_saved(hub, tiny_roberta, story_tokenizer, tmp_path):
    training = trainer(tiny_roberta, story_tokenizer, tmp_path, hub_strategy="end")
    training.save_model(str(tmp_path / "model"), _internal_call=True)
    assert TOKEN.encode() not in (tmp_path / "model" / "training_args.bin").read_bytes()
    assert training.args.hub_token == TOKEN


def pulled(hub, directory):
    """The ordinary model that transformers makes of what is in the repository."""
    for name, content in hub.files("me/run").items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return RobertaForMaskedLM.from_pretrained(directory).state_dict()


def test_lora_is_pushed_as_the_ordinary_model_that_it_makes(hub, tiny_roberta, story_tokenizer, tmp_path):
    pytest.importorskip("peft")
    tiny_roberta.config._name_or_path = tiny_roberta.name_or_path = str(tmp_path)
    size = tiny_roberta.num_parameters()
    model = add_lora(tiny_roberta, rank=2)
    training = trainer(model, story_tokenizer, tmp_path / "run", hub_strategy="checkpoint", learning_rate=0.1)
    training.train()
    assert messages(hub)[0] == "Training in progress, step 1"
    kept = {name for name in hub.files("me/run") if name.startswith("last-checkpoint/adapter_")}
    assert kept == {"last-checkpoint/adapter_config.json", "last-checkpoint/adapter_model.safetensors"}
    training.push_to_hub()
    assert f"with {size:,} parameters".encode() in hub.files("me/run")["README.md"]  # and not the card of peft
    assert not any(str(tmp_path).encode() in content for content in hub.files("me/run").values())
    for name, weight in pulled(hub, tmp_path / "pulled").items():
        assert torch.equal(weight, merge_lora(model).state_dict()[name]), name
    assert not list((tmp_path / "run").glob("_push-*"))


def test_the_mean_of_the_weights_is_pushed_and_what_a_run_needs_to_go_on(hub, tiny_roberta, story_tokenizer, tmp_path):
    means = []

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            means.append(copy.deepcopy(training._average.averaged.module.state_dict()))
            assert not torch.equal(means[-1]["lm_head.bias"], model.lm_head.bias) or state.global_step == 1

    training = trainer(
        tiny_roberta,
        story_tokenizer,
        tmp_path / "run",
        [Keep()],
        hub_strategy="checkpoint",
        hub_always_push=True,
        ema_decay=0.8,
        learning_rate=0.1,
    )
    training.train()
    assert messages(hub)[-1] == "Training in progress, step 2"
    for name, weight in pulled(hub, tmp_path / "pulled").items():
        assert torch.equal(weight, means[-1][name]), name
    for name in ("run_state.safetensors", "model.safetensors"):
        saved = tmp_path / "run" / "checkpoint-2" / name
        assert hub.files("me/run")[f"last-checkpoint/{name}"] == saved.read_bytes()


def test_a_pushed_checkpoint_is_resumed_exactly(hub, tiny_roberta, story_tokenizer, tmp_path):
    class HasBest(TrainerCallback):  # a path of this machine in trainer_state.json, which is pushed as a name
        def on_step_end(self, args, state, control, **kwargs):
            state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-1")

    start, settings = copy.deepcopy(tiny_roberta), {"hub_always_push": True, "learning_rate": 0.1}
    options = {"hub_strategy": "checkpoint", **settings}
    training = trainer(tiny_roberta, story_tokenizer, tmp_path / "run", [HasBest()], **options)
    training.train()
    (pushed,) = [of for of in hub.repository("me/run").commits if of.message.endswith("step 1")]
    assert b'"best_model_checkpoint": "checkpoint-1"' in pushed.files["last-checkpoint/trainer_state.json"]
    checkpoint = tmp_path / "pulled"
    checkpoint.mkdir()
    for name, content in pushed.files.items():
        if name.startswith("last-checkpoint/"):
            (checkpoint / name.split("/")[1]).write_bytes(content)
    again = trainer(start, story_tokenizer, tmp_path / "again", hub_strategy="end", **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.inexact_resumes == [] and again.state.global_step == 2
    for name, weight in training.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
