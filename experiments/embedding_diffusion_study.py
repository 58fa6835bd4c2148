"""Continuous against masked diffusion on the built-in stories: what each knows, and writes, at equal forwards.

    python experiments/embedding_diffusion_study.py --arm default --max-seconds 270
    python experiments/embedding_diffusion_study.py --arm literal --max-seconds 120
    python experiments/embedding_diffusion_study.py --arm masked
    python experiments/embedding_diffusion_study.py --arm default --train false --forwards 64 --num-samples 1024

Each arm is one process, trains one model of the size of the packaged story generator (`masked` trains nothing: it is
that generator), from the masked language model that the generator was made from or, as `scratch` and the literal
recipe, from nothing, and measures it: the likelihood bound, the cross-entropy at each noise level beside that of the
lookup, which knows no context, the distances of the embeddings, and by the grammar the stories it writes in 8 to 256
forwards. An arm writes what it knows as soon as it knows it to `results/embedding_diffusion/ARM.json`; all that there
are together become `results/embedding_diffusion.json` and `.md`, and when an arm ends `.png`.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from diffusion_mlm import DiffusionTrainingArguments, generate, load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR, STORIES_MLM
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.data_collator import DataCollatorForMaskedDiffusion
from diffusion_mlm.embedding_diffusion.building import build_embedding_diffusion, embedding_diffusion_from
from diffusion_mlm.embedding_diffusion.loading import load_embedding_diffusion
from diffusion_mlm.embedding_diffusion.modeling import EmbeddingDiffusionConfig, EmbeddingDiffusionModel
from diffusion_mlm.embedding_diffusion.monitors import (
    embedding_figures,
    fit_noise_schedule,
    loss_by_noise,
    middle_band,
    unigram_entropy,
)
from diffusion_mlm.embedding_diffusion.noise import sampling_times
from diffusion_mlm.embedding_diffusion.trainer import EmbeddingDiffusionTrainer
from diffusion_mlm.evaluation.interval import ratio_estimate
from diffusion_mlm.evaluation.story_quality import story_figures
from diffusion_mlm.modeling import forbidden_token_ids, load_model
from diffusion_mlm.presets import preset_config

sys.path.insert(0, str(Path(__file__).parent))
from embedding_diffusion_tables import picture, replace, write_tables
from pictures import run_script

HELD_OUT_SEED, TRAINING_SEED = 1_000_003, 1
LITERAL: dict[str, Any] = {
    "objective": "eps_mse",
    "normalize_embeddings": False,
    "noise_schedule": "cosine",
    "self_conditioning": 0.0,
}
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "literal": LITERAL,
    "literal_small": {**LITERAL, "embedding_std": 0.02},
    "d32": {"embedding_dim": 32},
    "d8": {"embedding_dim": 8},
    "self_conditioned": {"self_conditioning": 0.5},
    "informative": {"noise_schedule": "informative"},
    "sqrt": {"noise_schedule": "sqrt"},
    "scratch": {},
    "stagger_0": {"stagger": 0.0},
    "stagger_1": {"stagger": 1.0},
    "stagger_3": {"stagger": 3.0},
    "stagger_8": {"stagger": 8.0},
    "masked": {},
}


@dataclass
class StudyArguments:
    """What is trained and measured."""

    arm: str = field(default="default", metadata={"help": "The model.", "choices": list(ARMS)})
    preset: str = field(default="roberta-tiny", metadata={"help": "Of scratch, RoBERTa; of literal, of its size."})
    num_stories: int = field(default=192_000, metadata={"help": "Different stories to train on."})
    train: bool = field(default=True, metadata={"help": "False: measure what this arm has trained before."})
    max_steps: int = field(default=25_000, metadata={"help": "Training steps at most."})
    batch_size: int = field(default=32, metadata={"help": "Stories in a step; masked saw 928,000 in all."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Of Muon and AdamW."})
    max_seconds: float = field(
        default=270.0, metadata={"help": "Training ends after so long, its rate falls to then."}
    )
    num_samples: int = field(default=512, metadata={"help": "Stories that are written at each number of forwards."})
    forwards: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256], metadata={"help": "Forwards."})
    num_eval: int = field(default=256, metadata={"help": "Held-out stories."})
    seed: int = field(default=0, metadata={"help": "Of weights, noise and samples."})
    output: str = field(default="results/embedding_diffusion.json", metadata={"help": "All arms together."})


class Clock(TrainerCallback):
    """Ends training after some seconds, counted from its first step."""

    def __init__(self, max_seconds: float, max_steps: int) -> None:
        self.max_seconds, self.max_steps, self.began = max_seconds, max_steps, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def progress(self, step: int) -> float:
        spent = time.monotonic() - self.began if self.began else 0.0
        return min(max(step / self.max_steps, spent / self.max_seconds), 1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or self.progress(state.global_step) >= 1

    def rate(self, step: int) -> float:
        """The learning rate as a share of its peak: warm-up over 100 steps, then a straight line down to 2 %."""
        return min((step + 1) / 100, 1.0, 0.02 + 0.98 * (1 - self.progress(step)))


class TimedTrainer(EmbeddingDiffusionTrainer):
    """Its learning rate falls with the clock, so that it is low whenever the time is over."""

    clock: Clock

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer or self.optimizer
        rate = self.clock.rate
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [rate] * len(optimizer.param_groups))
        return self.lr_scheduler


class Stories(torch.utils.data.Dataset):
    """Rows of stories, kept as the small numbers that they are."""

    def __init__(self, count: int, seed: int) -> None:
        parts = [
            story_language.sample_ids(min(8192, count - first), seed, first).to(torch.int16)
            for first in range(0, count, 8192)
        ]
        self.ids = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return {"input_ids": list(self.ids[place].long())}
        return {"input_ids": self.ids[place].long()}


def train_arm(args: StudyArguments, report: dict[str, Any]) -> EmbeddingDiffusionModel:
    """Trains a model for the time that there is, and says how it went."""
    tokenizer = story_language.tokenizer()
    literal = args.arm.startswith("literal")  # rotary positions, normalised queries and keys: as that system has them
    size = args.preset.removeprefix("roberta-")
    encoder = preset_config(f"modern-{size}" if literal else args.preset, tokenizer, 128, dropout=0.0, qk_norm=literal)
    settings = dict(ARMS[args.arm])
    if literal:
        settings["embedding_dim"] = encoder.hidden_size
    if literal or args.arm == "scratch":
        settings |= {"encoder": encoder.to_dict(), "mask_token_id": tokenizer.mask_token_id}
        config = EmbeddingDiffusionConfig(attn_implementation="sdpa", **settings)
        model = build_embedding_diffusion(config, args.seed)
    else:
        model = embedding_diffusion_from(load_model(STORIES_MLM), tokenizer.mask_token_id, args.seed, **settings)
    config = model.config
    model.config.diffusion = {  # type: ignore[attr-defined]  # see `cli.train.training_facts`
        "process": "gaussian",
        "objective": config.objective,
        "row_length": story_language.BLOCK_LENGTH,
        "generates_end": True,
        "prefix_length": "random",
    }
    stories = Stories(args.num_stories, TRAINING_SEED)
    directory = Path(args.output).with_suffix("") / args.arm
    arguments = DiffusionTrainingArguments(
        output_dir=str(directory / "run"),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        optim="muon",
        learning_rate=args.learning_rate,
        no_prefix_share=0.8,
        dataloader_num_workers=2 if torch.cuda.is_available() else 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    clock = Clock(args.max_seconds, args.max_steps)
    collator = DataCollatorForMaskedDiffusion(tokenizer, mask_end_token=True, no_prefix_share=0.8, seed=args.seed)
    trainer = TimedTrainer(
        model, arguments, processing_class=tokenizer, data_collator=collator, train_dataset=stories, callbacks=[clock]
    )
    trainer.clock = clock
    began = time.monotonic()
    trainer.train()
    report["training"] = {
        "seconds": time.monotonic() - began,
        "steps": trainer.state.global_step,
        "stories": trainer.state.global_step * args.batch_size,
        "tokens": trainer.state.global_step * args.batch_size * story_language.BLOCK_LENGTH,
        "loss": [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log],
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(directory / "final-model")
    tokenizer.save_pretrained(directory / "final-model")
    return model.eval()


def measure_knowledge(model: EmbeddingDiffusionModel, args: StudyArguments) -> dict[str, Any]:
    """The likelihood bound, the cross-entropy by noise level beside the lookup's, the distances of the embeddings."""
    tokenizer = story_language.tokenizer()
    ids = story_language.sample_ids(args.num_eval, HELD_OUT_SEED)
    is_noised = torch.ones_like(ids, dtype=torch.bool)
    is_noised[:, 0] = False
    forbidden = torch.tensor(forbidden_token_ids(tokenizer, True, len(tokenizer)))
    levels = torch.linspace(-8, 4, 25, dtype=torch.float64)
    found: dict[str, Any] = {"embeddings": embedding_figures(model.clean_embeddings())}
    rows = [of.to(model.device) for of in (ids, torch.ones_like(ids), is_noised)]
    special = forbidden.to(model.device)
    bounds = model.bound_of_rows(*rows, end_id=tokenizer.eos_token_id, forbidden_ids=special, draws=16)
    bound = ratio_estimate(bounds.nats, bounds.num_tokens)
    found["bound"] = {"nats_per_token": bound.value, "interval": list(bound.interval or ())}
    entropy = -float((model.log_unigram.exp() * model.log_unigram).sum())
    found["unigram_entropy"] = entropy
    for name, again in (("curve", False), ("curve_self_conditioned", True)):
        if again and not model.config.self_conditioning:
            continue
        curve = loss_by_noise(
            model, ids, is_noised, levels, forbidden_ids=forbidden, seed=args.seed, self_condition=again
        )
        found[name] = curve
        band = middle_band(curve, entropy)
        shares = [curve["cross_entropy"][at] / curve["lookup_cross_entropy"][at] for at in band]
        found[f"{name}_below_lookup"] = {
            "band": [levels[at].item() for at in (band[0], band[-1])] if band else None,
            "greatest_share_of_lookup": max(shares, default=None),
            "everywhere": bool(shares) and max(shares) < 1,
        }
    return found


def write_stories(model: Any, tokenizer: Any, args: StudyArguments, **settings: Any) -> dict[str, Any]:
    """Stories from nothing and what the grammar says of them."""
    began = time.monotonic()
    number = {"num_return_sequences": args.num_samples, "batch_size": args.num_samples}
    output = generate(model, tokenizer, "", seed=args.seed, **number, **settings)
    figures = story_figures(output.texts)
    return {
        **{name: value for name, value in settings.items() if name != "steps"},
        "steps": settings["steps"],
        "forwards": sum(sample.num_forwards for sample in output.samples) / len(output.samples),
        "valid_share": figures.valid_share,
        "valid_interval": list(figures.valid_interval),
        "log_prob": figures.log_prob,
        "num_distinct": figures.num_distinct,
        "distinct_3": figures.distinct_3,
        "unigram_entropy": unigram_entropy([token for sample in output.samples for token in sample.token_ids]),
        "seconds": time.monotonic() - began,
        "samples": output.texts[:2],
    }


def ways_to_write(arm: str, stagger: float) -> list[tuple[str, dict[str, Any]]]:
    """What is tried at each number of forwards."""
    if arm == "masked":
        sure = {"adaptive": "independent"}  # `steps` is then the most that are made
        return [("masked", {}), ("masked, remasking", {"remask": "remdm_conf"}), ("masked, adaptive", sure)]
    ways: list[tuple[str, dict[str, Any]]] = [("DDIM", {"sampler": "ddim"}), ("DDPM", {"sampler": "ddpm"})]
    if stagger:
        ways += [("DDIM, order of training", {"sampler": "ddim", "order": "random"})]
    elif not arm.startswith("literal"):
        ways += [("DDIM, temperature 0.8", {"sampler": "ddim", "temperature": 0.8})]
    return ways


def measure_writing(model: Any, tokenizer: Any, args: StudyArguments, report: dict[str, Any], keep: Any) -> None:
    """Stories at all numbers of forwards, in all ways; what is found is kept at once."""
    report["writing"] = {}
    for forwards in args.forwards:
        for name, settings in ways_to_write(args.arm, getattr(model.config, "stagger", 0.0)):
            report["writing"].setdefault(name, []).append(
                write_stories(model, tokenizer, args, steps=forwards, **settings)
            )
            keep()
    if args.arm == "masked" or args.arm.startswith("literal"):
        return
    if model.config.stagger or model.config.noise_schedule == "warped":  # one step a place; fitted by training
        return
    tokenized = story_language.sample_ids(args.num_eval, HELD_OUT_SEED + 1)
    is_noised = tokenized.ne(tokenizer.bos_token_id)
    trained = model.noise_knots.clone()
    fit_noise_schedule(model, tokenized, is_noised)
    for forwards in args.forwards:
        report["writing"].setdefault("DDIM, fitted levels", []).append(
            write_stories(model, tokenizer, args, steps=forwards, sampler="ddim")
        )
        keep()
    report["fitted_levels"] = model.schedule.log_snr(sampling_times(9)).tolist()
    model.noise_knots.copy_(trained)


def main(argv: list[str]) -> int:
    (args,) = parse([StudyArguments], argv, "embedding_diffusion_study")
    directory = Path(args.output).with_suffix("")
    directory.mkdir(parents=True, exist_ok=True)
    before = directory / f"{args.arm}.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "arm": args.arm,
        "settings": ARMS[args.arm],
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "command": f"python experiments/embedding_diffusion_study.py {' '.join(argv)}",
    }

    def keep() -> None:
        replace(directory / f"{args.arm}.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_tables(args.output)

    if not args.train and args.arm != "masked":
        report |= {name: json.loads(before.read_text(encoding="utf-8"))[name] for name in ("command", "training")}
    if args.arm == "masked":
        model, tokenizer = load_generator(STORIES_GENERATOR)
        model = model.to(device)  # type: ignore[arg-type]  # `to` hides behind a wrapper
        report["parameters"] = model.num_parameters()
    else:
        tokenizer = story_language.tokenizer()
        if args.train:
            trained = train_arm(args, report)
        else:
            saved = load_embedding_diffusion(str(directory / args.arm / "final-model"), "--output")
            trained = saved.to(device).eval()  # type: ignore[arg-type]  # as below
        report["parameters"] = trained.num_parameters()
        keep()
        report |= measure_knowledge(trained, args)
        keep()
        model = trained
    measure_writing(model, tokenizer, args, report, keep)
    keep()
    picture(json.loads(Path(args.output).read_text(encoding="utf-8")), str(Path(args.output).with_suffix(".png")))
    return 0


if __name__ == "__main__":
    run_script(main)
