"""Training: the loss against a reference, the same whatever the split, and runs that resume to the same weights."""

import copy
import hashlib
import logging

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from diffusion_mlm import (
    DataCollatorForMaskedDiffusion,
    DiffusionGenerationConfig,
    DiffusionTrainer,
    DiffusionTrainingArguments,
    cpu_training,
    story_language,
)
from diffusion_mlm.callbacks import LogLineCallback, SampleTextCallback
from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.evaluation.likelihood import bound_of_rows
from diffusion_mlm.modeling import build_model, logits_at
from diffusion_mlm.objectives import OBJECTIVES
from diffusion_mlm.packed_linear import PackedLinear, pack_linears

TOKENIZER = story_language.tokenizer()
NOTHING_TO_MASK = [0, 2]


def tiny_model(dropout=0.0, seed=0):
    config = RobertaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=82,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
    )
    return build_model(config, seed)


def make_rows(num_rows, first=0):
    """Stories cut at different lengths, and two rows with nothing to mask among them."""
    ids = story_language.sample_ids(num_rows, seed=3, first=first).tolist()
    rows = [{"input_ids": row[: 4 + 5 * place % 40]} for place, row in enumerate(ids)]
    rows[1] = rows[num_rows // 2] = {"input_ids": NOTHING_TO_MASK}
    return rows


def arguments(directory, **settings):
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "eval_draws": 2,
    }
    return DiffusionTrainingArguments(output_dir=str(directory), **{**defaults, **settings})


def make_trainer(
    directory, rows=None, model=None, trainer_class=DiffusionTrainer, callbacks=(), eval_dataset=None, **settings
):
    return trainer_class(
        model if model is not None else tiny_model(),
        arguments(directory, **settings),
        processing_class=TOKENIZER,
        train_dataset=make_rows(40) if rows is None else rows,
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
    )


def digest(model):
    """sha256 over all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class RecordingTrainer(DiffusionTrainer):
    """Keeps the masked rows and the loss of every micro-batch."""

    def compute_loss(self, model, inputs, **kwargs):
        self.micro_batches = getattr(self, "micro_batches", [])
        self.micro_batches.append(inputs["corrupted"])
        return super().compute_loss(model, inputs, **kwargs)


# The loss, and how a batch is split


@torch.no_grad()
def reference_loss(model, objective, batches):
    """The objectives once more, row by row in float64, from the logits at all positions."""
    model = copy.deepcopy(model).double().eval()
    forbidden = TOKENIZER.all_special_ids
    numerator = denominator = 0.0
    for batch in batches:
        for ids, clean, masked, maskable, weight in zip(
            batch.input_ids, batch.targets, batch.is_masked, batch.maskable, batch.weight, strict=True
        ):
            length = int(clean.ne(TOKENIZER.pad_token_id).sum())
            logits = model(ids[None, :length]).logits[0]
            logits[:, forbidden] = -torch.inf
            nats = -logits.log_softmax(-1)[torch.arange(length), clean[:length]]
            scored = (maskable if objective == "full" else masked)[:length]
            if not scored.any():
                continue
            if objective == "elbo":
                numerator, denominator = numerator + weight * nats[scored].mean(), denominator + 1
            else:
                numerator, denominator = numerator + nats[scored].sum(), denominator + scored.sum()
    return float(numerator / denominator)


@pytest.mark.parametrize("masking, schedule", [("exact", "linear"), ("bernoulli", "cosine")])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_the_objective_over_the_global_batch(tmp_path, objective, masking, schedule):
    settings = {"objective": objective, "masking": masking, "schedule": schedule}
    model = tiny_model()
    trainer = make_trainer(
        tmp_path,
        model=copy.deepcopy(model),
        trainer_class=RecordingTrainer,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_steps=1,
        **settings,
    )
    trainer.train()
    assert sum(len(batch.input_ids) for batch in trainer.micro_batches) == 16
    assert logged(trainer)[0] == pytest.approx(reference_loss(model, objective, trainer.micro_batches), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_do_not_depend_on_accumulation(tmp_path, objective):
    results = []
    for batch_size, steps in ((32, 1), (4, 8), (1, 32)):
        keep = KeepGradients()
        trainer = make_trainer(
            tmp_path,
            rows=make_rows(32),
            callbacks=[keep],
            objective=objective,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
        )
        trainer.train()
        results.append((logged(trainer)[0], keep.gradients))
    (loss, gradients), *others = results
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3  # or 1e-6 would say nothing
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, abs=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=1e-6, msg=name)


def test_the_stock_trainer_grows_the_loss_with_accumulation(tmp_path):
    """The trap that `DiffusionTrainer` avoids, and the way out that the collator's docstring names."""

    def loss_of(batch_size, steps, scaled):
        model = tiny_model()
        if not scaled:
            model.accepts_loss_kwargs = False
        args = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            max_steps=1,
            save_strategy="no",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        rows = [{"input_ids": row} for row in story_language.sample_ids(8, seed=3).tolist()]
        collator = DataCollatorForMaskedDiffusion(TOKENIZER)
        trainer = Trainer(model, args, train_dataset=rows, data_collator=collator)
        trainer.train()
        return logged(trainer)[0]

    once = loss_of(8, 1, scaled=True)
    assert loss_of(1, 8, scaled=True) == pytest.approx(8 * once, rel=0.02)
    assert loss_of(1, 8, scaled=False) == pytest.approx(once, rel=0.02)


# Runs that are stopped and resumed


def run(directory, resume_from=None, sample_text=False, stop_at=None, **settings):
    """12 steps of 5 per epoch with dropout, and the digest of the weights at their end."""
    torch.manual_seed(99)  # what the process did before must not matter
    callbacks = [StopAt(stop_at)] if stop_at else []
    if sample_text:
        generation = DiffusionGenerationConfig(max_new_tokens=4)
        callbacks.append(SampleTextCallback(TOKENIZER, [""], generation))
    trainer = make_trainer(
        directory,
        rows=make_rows(42),
        model=tiny_model(dropout=0.1),
        callbacks=callbacks,
        eval_dataset=make_rows(5, first=50),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=12,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    assert trainer.state.global_step == (stop_at or 12)
    return digest(trainer.model)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The digest of a run never stopped that neither saves nor evaluates."""
    return run(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize(
    "settings",
    [
        {"dataloader_num_workers": 1},
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 4, "sample_text": True},
        {"save_strategy": "steps", "save_steps": 5},
    ],
    ids=lambda settings: next(iter(settings)) + ("_and_samples" if "sample_text" in settings else ""),
)
def test_workers_evaluation_samples_and_saving_change_no_weight(tmp_path, unbroken, settings):
    assert run(tmp_path, **settings) == unbroken


@pytest.mark.parametrize(
    "stop_at, before, after",
    [
        (2, {}, {}),
        (5, {}, {}),  # at the end of the first epoch
        (7, {}, {}),  # inside the second epoch
        (7, {"dataloader_num_workers": 1}, {}),
        (7, {"eval_strategy": "steps", "eval_steps": 2}, {"dataloader_num_workers": 1}),
        (8, {}, {"eval_strategy": "steps", "eval_steps": 2, "sample_text": True}),
    ],
)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(tmp_path, unbroken, stop_at, before, after):
    stopped = run(tmp_path, stop_at=stop_at, **before)
    assert stopped != unbroken
    assert run(tmp_path, resume_from=str(tmp_path / f"checkpoint-{stop_at}"), **after) == unbroken


def test_a_run_that_is_resumed_from_its_last_step_makes_no_other(tmp_path, caplog):
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    finished = make_trainer(tmp_path, **settings)
    finished.train()
    resumed = make_trainer(tmp_path, **settings)
    with caplog.at_level("WARNING", logger="transformers.trainer"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert digest(resumed.model) == digest(finished.model)
    assert "missing keys" not in caplog.text  # of the head that is one with the embeddings


def test_another_seed_gives_other_masks_but_the_same_first_weights(tmp_path):
    masks = []
    for seed in (1, 2):
        trainer = make_trainer(
            tmp_path,
            trainer_class=RecordingTrainer,
            seed=seed,
            data_seed=0,
            per_device_train_batch_size=8,
            max_steps=1,
        )
        trainer.train()
        masks.append(trainer.micro_batches[0])
    assert torch.equal(masks[0].targets, masks[1].targets)
    assert not torch.equal(masks[0].is_masked, masks[1].is_masked)


def test_every_step_has_its_own_stratified_rates(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_class=RecordingTrainer,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=3,
    )
    trainer.train()
    rates = [torch.cat([batch.mask_rate for batch in trainer.micro_batches[k : k + 2]]) for k in (0, 2, 4)]
    for rate in rates:
        assert sorted(torch.ceil(rate * 8).int().tolist()) == list(range(1, 9))
    assert not torch.equal(rates[0], rates[1])


# What the Trainer is given


def test_prompts_are_never_masked_and_other_columns_do_no_harm(tmp_path):
    rows = [{**row, "prompt_length": 9, "text": "a story"} for row in make_rows(40)]
    trainer = make_trainer(
        tmp_path, rows=rows, trainer_class=RecordingTrainer, per_device_train_batch_size=40, max_steps=1
    )
    trainer.train()
    batch = trainer.micro_batches[0]
    assert not batch.is_masked[:, :9].any() and batch.is_masked[:, 9:].any()


def test_a_stream_trains_on_whole_batches(tmp_path):
    """5 micro-batches a pass, 2 a step: the stock loop would add the fifth to the next step."""
    stream = Dataset.from_list(make_rows(40)).to_iterable_dataset()
    trainer = make_trainer(
        tmp_path, rows=stream, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=5
    )
    trainer.train()
    assert len(logged(trainer)) == 5 and max(logged(trainer)) < 6


def test_the_settings_of_a_collator_are_used_and_the_collator_is_left_alone(tmp_path):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, masking="levels", levels=(0.5,), prefix_length=0)
    trainer = RecordingTrainer(
        tiny_model(),
        arguments(tmp_path, per_device_train_batch_size=8, max_steps=1),
        data_collator=collator,
        train_dataset=make_rows(40),
    )
    trainer.train()
    assert trainer.micro_batches[0].mask_rate.unique().tolist() == [0.5]
    assert collator.mask
    assert bool((collator(make_rows(4))["input_ids"] == TOKENIZER.mask_token_id).any())


def test_what_cannot_be_trained_is_refused(tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="`processing_class` must be the tokenizer"):
        DiffusionTrainer(tiny_model(), args)
    with pytest.raises(ValueError, match="`data_collator` must be a DataCollatorForMaskedDiffusion, not function"):
        DiffusionTrainer(tiny_model(), args, processing_class=TOKENIZER, data_collator=default_data_collator)
    small = build_model(RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match=f"has {len(TOKENIZER)} tokens, but the model knows 9"):
        DiffusionTrainer(small, args, processing_class=TOKENIZER)
    with pytest.raises(ValueError, match="40 rows, fewer than one global batch of 64"):
        make_trainer(tmp_path, per_device_train_batch_size=64).train()


def test_a_batch_with_nothing_to_mask_is_a_step_of_no_loss(tmp_path):
    trainer = make_trainer(
        tmp_path, rows=[{"input_ids": NOTHING_TO_MASK}] * 4, per_device_train_batch_size=4, max_steps=1
    )
    trainer.train()
    assert logged(trainer) == [0.0] and logged(trainer, "grad_norm") == [0.0]


def test_training_lowers_the_loss_and_logs_it_by_mask_rate(tmp_path):
    rows = [{"input_ids": row} for row in story_language.sample_ids(96, seed=1).tolist()]
    trainer = make_trainer(tmp_path, rows=rows, num_train_epochs=2, per_device_train_batch_size=8, learning_rate=1e-2)
    trainer.train()
    losses = logged(trainer)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    names = {name for entry in trainer.state.log_history for name in entry if name.startswith("loss_mask_rate_")}
    assert names == {f"loss_mask_rate_{k / 10:.1f}" for k in range(1, 11)}


# Evaluation


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_draws_its_own_dropout_unless_the_model_is_compiled(tmp_path, monkeypatch, compiled):
    drawn = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(cpu_training, "dropout", lambda x, p: drawn.append(p) or x)
    how = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    make_trainer(tmp_path, model=tiny_model(dropout=0.25), max_steps=1, **how).train()
    assert set(drawn) == (set() if compiled else {0.25})


def test_a_model_that_is_trained_is_not_packed(tmp_path):
    model = tiny_model()
    pack_linears(model)
    trainer = make_trainer(tmp_path, model=model, max_steps=1)
    assert not any(isinstance(module, PackedLinear) for module in trainer.model.modules())
    trainer.train()


def test_evaluate_is_the_corpus_bound_whatever_the_batch(tmp_path):
    rows, model = make_rows(13), tiny_model()
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, mask_end_token=True)
    nats = tokens = 0.0
    for row in rows:
        ids, attention_mask, maskable = collator.pad([row])
        bounds = bound_of_rows(
            lambda ids, at: logits_at(model.eval(), at, input_ids=ids),
            ids,
            maskable,
            mask_id=TOKENIZER.mask_token_id,
            end_id=TOKENIZER.eos_token_id,
            forbidden_ids=torch.tensor(sorted(set(TOKENIZER.all_special_ids) - {TOKENIZER.eos_token_id})),
            draws=4,
            seed=5,
        )
        nats, tokens = nats + float(bounds.nats), tokens + int(bounds.num_tokens)
    for batch_size in (1, 4, 13):
        settings = {"per_device_eval_batch_size": batch_size, "eval_draws": 4, "seed": 5, "mask_end_token": True}
        trainer = make_trainer(tmp_path, model=copy.deepcopy(model), eval_dataset=rows, **settings)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(nats / tokens, rel=1e-6)
        assert metrics["eval_num_tokens"] == tokens


def test_evaluate_names_its_metrics_by_prefix_and_mask_rate(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=make_rows(20), eval_draws=10)
    metrics = trainer.evaluate(metric_key_prefix="test")
    rates = [name for name in metrics if name.startswith("test_loss_mask_rate_")]
    assert rates == [f"test_loss_mask_rate_{k / 10:.1f}" for k in range(1, 11)]


@pytest.mark.parametrize("rows", [[], [{"input_ids": NOTHING_TO_MASK}]])
def test_evaluation_without_a_maskable_token_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=f"The {len(rows)} evaluation rows have no maskable token"):
        make_trainer(tmp_path).evaluate(rows)


# Numbers that are not finite


class Poison(TrainerCallback):
    """Makes one weight NaN at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.lm_head.bias[7] = float("nan")


def saved_steps(directory):
    return sorted(int(path.name.split("-")[1]) for path in directory.glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_stops_training_before_anything_is_saved(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight[7] = float("nan")
    trainer = make_trainer(
        tmp_path, model=model, save_strategy="steps", save_steps=1, per_device_train_batch_size=8, max_steps=3
    )
    with pytest.raises(NonFiniteLossError, match="at step 1. Lower `learning_rate`"):
        trainer.train()
    assert saved_steps(tmp_path) == []


def test_a_learning_rate_far_too_high_is_noticed_and_what_was_saved_is_finite(tmp_path):
    trainer = make_trainer(
        tmp_path,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=None,
        learning_rate=1e30,
        per_device_train_batch_size=8,
        max_steps=10,
    )
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert len(saved_steps(tmp_path)) < 10
    for step in saved_steps(tmp_path):
        weights = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(
        tmp_path,
        callbacks=[Poison(2)],
        save_strategy="steps",
        save_steps=1,
        per_device_train_batch_size=8,
        max_steps=5,
    )
    with pytest.raises(NonFiniteLossError, match="lm_head.bias are not finite after step 2"):
        trainer.train()
    assert saved_steps(tmp_path) == [1]


def test_the_last_step_is_looked_at_too(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[Poison(2)], per_device_train_batch_size=8, max_steps=2)
    with pytest.raises(NonFiniteLossError, match="after step 2"):
        trainer.train()
    with pytest.raises(NonFiniteLossError, match="of 40 evaluation rows is not finite"):
        trainer.evaluate(make_rows(40))
    with pytest.raises(NonFiniteLossError):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


# A fine-tuned RoBERTa stays a RoBERTa


def test_a_saved_roberta_trains_and_loads_again_in_the_stock_classes(tmp_path):
    RobertaForMaskedLM(tiny_model().config).save_pretrained(tmp_path / "start")
    trainer = make_trainer(
        tmp_path,
        model=RobertaForMaskedLM.from_pretrained(tmp_path / "start"),
        max_steps=2,
        per_device_train_batch_size=8,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    ids = torch.tensor([TOKENIZER("The old fox")["input_ids"]])
    ids[0, 2] = TOKENIZER.mask_token_id
    expected = trainer.model.eval()(ids).logits

    plain = RobertaForMaskedLM.from_pretrained(tmp_path / "tuned").eval()
    assert type(plain) is RobertaForMaskedLM
    assert torch.equal(plain(ids).logits, expected)

    fill = pipeline("fill-mask", model=str(tmp_path / "tuned"), device="cpu")
    text = TOKENIZER.decode(ids[0, 1:-1])
    filled = fill(text, top_k=3)
    inner = torch.tensor([TOKENIZER(text)["input_ids"]])
    probability = trainer.model(inner).logits[0, (inner[0] == TOKENIZER.mask_token_id).nonzero()[0, 0]].softmax(-1)
    best = probability.topk(3)
    assert [answer["token"] for answer in filled] == best.indices.tolist()
    assert [answer["score"] for answer in filled] == pytest.approx(best.values.tolist(), rel=1e-5)


# The collator under the plain Trainer


class RecordingCollator(DataCollatorForMaskedDiffusion):
    def __call__(self, features):
        batch = super().__call__(features)
        self.labels = [
            *getattr(self, "labels", []),
            *zip([f["input_ids"] for f in features], batch["labels"], strict=True),
        ]
        return batch


def train_plainly(directory, collator, **settings):
    args = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        **settings,
    )
    rows = [{"input_ids": row, "text": "unused"} for row in story_language.sample_ids(64, seed=1).tolist()]
    trainer = Trainer(tiny_model(dropout=0.1), args, train_dataset=rows, data_collator=collator)
    trainer.train()
    return trainer


def test_the_plain_trainer_trains_with_the_collator(tmp_path):
    collator = RecordingCollator(TOKENIZER)
    trainer = train_plainly(tmp_path, collator, num_train_epochs=3)
    losses = logged(trainer)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    # A reshuffled epoch brings new masks.
    masks = {}
    for ids, labels in collator.labels:
        masks.setdefault(tuple(ids), []).append(labels)
    assert len(masks) == 64 and all(len(of_row) == 3 for of_row in masks.values())
    assert sum(torch.equal(of_row[0], of_row[1]) for of_row in masks.values()) <= 3


def test_workers_change_nothing_under_the_plain_trainer(tmp_path):
    digests = {
        digest(train_plainly(tmp_path, DataCollatorForMaskedDiffusion(TOKENIZER), max_steps=10, **settings).model)
        for settings in (
            {},
            {"dataloader_num_workers": 1},
            {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 4},
        )
    }
    assert len(digests) == 1


# Callbacks


def test_samples_are_logged_and_a_prefix_too_long_does_not_end_training(tmp_path, caplog):
    generation = DiffusionGenerationConfig(max_new_tokens=4)
    long_prefix = " ".join(story_language.sample(4, seed=0))
    with caplog.at_level(logging.INFO, logger="diffusion_mlm"):
        for prefix in ("The", long_prefix):
            trainer = make_trainer(
                tmp_path,
                callbacks=[SampleTextCallback(TOKENIZER, [prefix], generation)],
                eval_dataset=make_rows(4),
                eval_strategy="steps",
                eval_steps=1,
                per_device_train_batch_size=8,
                max_steps=1,
            )
            trainer.train()
    assert "step 1 writes: The" in caplog.text
    assert "No sample at step 1: The prefix takes" in caplog.text


def test_logs_are_short_lines(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="diffusion_mlm"):
        make_trainer(tmp_path, callbacks=[LogLineCallback], per_device_train_batch_size=8, max_steps=2).train()
    lines = [record.message for record in caplog.records if record.message.startswith("step")]
    assert [line.split()[:3] for line in lines] == [["step", "1", "loss"], ["step", "2", "loss"]]
    assert all("learning_rate" in line and "mask_rate" not in line for line in lines)
