"""What holds on a CPU holds on a GPU: the masks, the loss, resuming, the text. Skipped where there is none."""

import pytest
import torch
from transformers import LogitsProcessorList

from diffusion_mlm import (
    Constraints,
    DiffusionTrainer,
    DiffusionTrainingArguments,
    evaluate_texts,
    generate,
    infill,
    load_generator,
    score,
    story_language,
    stream,
)
from diffusion_mlm.checkpoints import STORIES_GENERATOR, STORIES_MLM
from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.evaluation.answers import write_answers
from diffusion_mlm.evaluation.continuations import score_continuations
from diffusion_mlm.modeling import load_model
from diffusion_mlm.precision import compile_layers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOKENIZER = story_language.tokenizer()


def train(directory, use_cpu=False, bf16=False, resume_from=None, optim="muon", stop_after=None):
    rows = [{"input_ids": row} for row in story_language.sample_ids(64, seed=5).tolist()]
    args = DiffusionTrainingArguments(
        str(directory),
        use_cpu=use_cpu,
        bf16=bf16,
        per_device_train_batch_size=8,
        max_steps=6,
        learning_rate=1e-3,
        optim=optim,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        eval_draws=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not use_cpu,
        full_determinism=not use_cpu,
    )
    args.mask_end_token = True
    trainer = DiffusionTrainer(
        load_model(STORIES_MLM), args, processing_class=TOKENIZER, train_dataset=rows, eval_dataset=rows[:16]
    )
    trainer.train(resume_from_checkpoint=resume_from)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    weights = {name: value.cpu() for name, value in trainer.model.state_dict().items()}
    return losses, weights, trainer.evaluate()["eval_loss"]


def test_masks_are_those_of_the_cpu():
    process = ForwardProcess(int(TOKENIZER.mask_token_id), prefix_length="random")
    clean, keys = story_language.sample_ids(16, seed=1), torch.arange(16)
    t = process.times(7, keys, 16)
    here = process(clean, clean.ne(0), keys, t)
    there = process(clean.cuda(), clean.ne(0).cuda(), keys.cuda(), t.cuda())
    assert torch.equal(here.input_ids, there.input_ids.cpu())


def test_a_float32_run_has_the_losses_of_the_cpu(tmp_path):
    here, _, bound_here = train(tmp_path / "cpu", use_cpu=True, optim="adamw_torch_fused")
    there, _, bound_there = train(tmp_path / "gpu", optim="adamw_torch_fused")
    assert there == pytest.approx(here, rel=1e-3)
    assert bound_there == pytest.approx(bound_here, rel=1e-3)


def test_bf16_autocast_trains_float32_weights_to_nearly_the_same_losses(tmp_path):
    exact, _, _ = train(tmp_path / "float32")
    rounded, weights, _ = train(tmp_path / "bf16", bf16=True)
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    assert rounded == pytest.approx(exact, rel=2e-2)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    _, unbroken, _ = train(tmp_path / "run", bf16=True)
    _, resumed, _ = train(tmp_path / "run", bf16=True, resume_from=str(tmp_path / "run" / "checkpoint-3"))
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def test_greedy_text_is_that_of_the_cpu():
    model, tokenizer = load_generator(STORIES_GENERATOR)
    prefixes = ["Once upon a time, Mia", "", "A clever boy named Ben"]
    settings = {"preset": "greedy", "seed": 0}
    here = generate(model, tokenizer, prefixes, **settings).texts
    assert generate(model.cuda(), tokenizer, prefixes, **settings).texts == here


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "fast"},
        {"adaptive": "threshold", "defer_end": True},
        {"order": "random", "steps": 20},
        {"order_from": "sample", "order": "confidence", "order_noise": 1.0},
        {"remask": "remdm_conf", "steps": 40},
        {"remask": "low_confidence", "order": "confidence", "steps": 40, "final_pass": True},
        {"temperature": 1.2, "temperature_end": 0.2, "sampling": "topk"},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"guidance_scale": 1.5, "min_gap": 1},
    ],
)
def test_canvases_on_the_cpu_and_logits_on_the_gpu_write_the_text_of_the_cpu(settings):
    model, tokenizer = load_generator(STORIES_GENERATOR)
    prefixes = ["Once upon a time, Mia", "A clever boy named Ben"]
    here = generate(model, tokenizer, prefixes, seed=0, **settings).texts
    assert generate(model.cuda(), tokenizer, prefixes, seed=0, **settings).texts == here
    assert next(stream(model, tokenizer, "Once", seed=0, **settings)).canvas.device.type == "cpu"


def test_blanks_of_unknown_length_are_filled_as_on_the_cpu():
    model, tokenizer = load_generator(STORIES_GENERATOR)
    template = "Once upon a time, <mask:1-3> lived near the river."
    here = infill(model, tokenizer, template, seed=0)[0]
    there = infill(model.cuda(), tokenizer, template, seed=0)[0]
    assert there.text == here.text
    assert there.nelbo_nats_per_token == pytest.approx(here.nelbo_nats_per_token, rel=1e-4)


def test_constraints_guidance_and_processors_work_there_as_on_the_cpu():
    model, tokenizer = load_generator(STORIES_GENERATOR)
    constraints = Constraints(banned_words=["dog", "cat"])
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)

        def edit(canvas, logits, device=device):
            assert canvas.device.type == logits.device.type == device
            return logits - canvas.eq(0).sum(-1, keepdim=True)

        def guidance(canvas, position, logits, device=device):
            assert canvas.device.type == position.device.type == logits.device.type == device
            return logits * 1.1

        options = {"logits_processor": LogitsProcessorList([edit]), "guidance": guidance, "seed": 0}
        found.append(generate(model, tokenizer, "Once", **options).texts)
        found[-1] += generate(model, tokenizer, "Once", constraints=constraints, **options).texts
    assert found[1] == found[0]


@pytest.mark.parametrize("settings", [{"preset": "greedy"}, {"preset": "fast"}])
def test_recorded_layers_write_the_same_text_whatever_the_shapes(settings):
    model, tokenizer = load_generator(STORIES_GENERATOR)
    model.cuda()
    prefixes = ["Once upon a time, Mia", "", "A clever boy named Ben"]
    before = generate(model, tokenizer, prefixes, seed=0, **settings).texts
    compile_layers(model)
    assert generate(model, tokenizer, prefixes, seed=0, **settings).texts == before
    assert generate(model, tokenizer, prefixes[:1], seed=0, **settings).texts == before[:1]


@pytest.mark.parametrize("settings", [{}, {"remask": "remdm_conf", "steps": 40}, {"adaptive": "threshold"}])
def test_a_row_does_not_depend_on_its_batch_and_a_seed_gives_the_same_text(settings):
    model, tokenizer = load_generator(STORIES_GENERATOR)
    model.cuda()
    together = generate(model, tokenizer, "Once upon a time", num_return_sequences=4, seed=3, **settings).texts
    alone = [generate(model, tokenizer, "Once upon a time", seed=3 + j, **settings).texts[0] for j in range(4)]
    assert together == alone


def test_likelihoods_are_those_of_the_cpu():
    texts = story_language.sample(4, seed=3)
    found = []
    for device in ("cpu", "cuda"):
        model, tokenizer = load_generator(STORIES_GENERATOR)
        model.to(device)
        report = evaluate_texts(
            model,
            tokenizer,
            texts,
            draws=4,
            estimators=["curve", "steps", "chain", "importance"],
            steps=[8],
            orders=1,
            batch_size=64,
        )
        others = [report.others[name].nats_per_token for name in ("curve", "chain", "importance")]
        scored = score(model, tokenizer, texts[:2], draws=8)
        found.append([report.bound.nats_per_token, report.others["steps"][0].nats_per_token, *others])
        found[-1] += [text.nats for text in scored]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_what_benchmarks_ask_for_is_answered_as_on_the_cpu():
    pairs = [("Once upon a time,", " Mia lived near"), ("A clever boy named", " Ben"), ("", "One sunny day")]
    contexts = [context for context, _ in pairs]
    scores, answers = [], []
    for device in ("cpu", "cuda"):
        model, tokenizer = load_generator(STORIES_GENERATOR)
        model.to(device)
        scores.append(score_continuations(model, tokenizer, pairs, draws=4))
        config = model.generation_config.updated(preset="greedy")
        answers.append(sorted(write_answers(model, tokenizer, contexts, config, stop_strings=["."])))
    assert [scored.nats for scored in scores[1]] == pytest.approx([scored.nats for scored in scores[0]], rel=1e-4)
    assert [scored.is_greedy for scored in scores[1]] == [scored.is_greedy for scored in scores[0]]
    assert answers[1] == answers[0]
