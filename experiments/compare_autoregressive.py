"""A masked diffusion model beside an autoregressive one of equal size, trained on as many tokens of the same text.

    python experiments/compare_autoregressive.py --config experiments/recipes/compare_shakespeare.yaml \
        --train-file input.txt --output-dir results/compare_shakespeare --output results/compare_shakespeare.json

Both are trained from scratch on the same rows with one optimizer and learning rate, unless directories are given; a
model that is already in the output directory is taken, and a training that was cut short goes on. Then their bits per
byte of the same held-out text, the ratio of the two (in pairs over rows), and texts that both write after the same
prefixes, with the time of each. Files are read whole, as one text with every line break, and cut into rows.

Published for text8, with 12 layers each: 1.23 bits per character autoregressive; diffusion 1.37 (MD4, Shi et al. 2024,
arXiv:2406.04329, where all are listed) to 1.39 (SEDD), a ratio of 1.11 to 1.13. A bound lies above -log p; the
autoregressive value is exact.

The diffusion model learns in two parts, at low mask rates first and then at all of them, because a model from scratch
stays at word frequencies for long if it sees every mask rate at once. Both parts count.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import get_last_checkpoint

from diffusion_mlm import DataCollatorForMaskedDiffusion, DiffusionTrainer, DiffusionTrainingArguments, load_generator
from diffusion_mlm.callbacks import LogLineCallback
from diffusion_mlm.causal_peer import build_causal_peer, load_causal_model
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.cli.train import show_progress, training_facts
from diffusion_mlm.data import tokenize_and_pack
from diffusion_mlm.generation import load_tokenizer
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.modeling import build_model
from diffusion_mlm.optimizers import MuonWithAdamW
from diffusion_mlm.presets import ROBERTA_PRESETS, preset_config
from diffusion_mlm.tokenization import train_bpe, train_characters

sys.path.insert(0, str(Path(__file__).parent))
from peer_measures import Peers, likelihoods, side_by_side, summary_table

FILES = ("train_file", "eval_file")  # written down by name only: directories are of one machine
PARTS = ("diffusion", "autoregressive", "compare")


@dataclass
class CompareArguments:
    """What is trained and measured."""

    train_file: list[str] = field(default_factory=list, metadata={"help": "Text files, each read whole."})
    eval_file: list[str] = field(
        default_factory=list, metadata={"help": "Held-out text files. Default: the end of the training text."}
    )
    held_out_share: float = field(default=0.1, metadata={"help": "That end: a share of the characters."})
    diffusion: str | None = field(default=None, metadata={"help": "Take this generator instead of training one."})
    autoregressive: str | None = field(default=None, metadata={"help": "Take this causal model instead."})
    parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": "What to do in this call.", "choices": list(PARTS)}
    )
    tokenizer: str = field(default="char", metadata={"help": "char, bpe (both of the training text), or a directory."})
    vocab_size: int = field(default=4096, metadata={"help": "Of --tokenizer bpe."})
    preset: str = field(default="roberta-tiny", metadata={"help": "Size of both.", "choices": ROBERTA_PRESETS})
    max_length: int = field(default=128, metadata={"help": "Tokens per row."})
    batch_size: int = field(default=32, metadata={"help": "Rows per step."})
    steps: int = field(default=1000, metadata={"help": "Steps of each model, all parts together."})
    mlm_share: float = field(
        default=0.3, metadata={"help": "Share of them at low mask rates, for the diffusion model."}
    )
    mlm_levels: list[float] = field(default_factory=lambda: [0.15, 0.3], metadata={"help": "Those mask rates."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak, of both."})
    warmup: float = field(default=0.04, metadata={"help": "Share of the steps of each run."})
    optim: str = field(default="muon", metadata={"help": "Optimizer of both."})
    dropout: float = field(default=0.0, metadata={"help": "Of both."})
    draws: int = field(default=32, metadata={"help": "Masks per row for the bound."})
    orders: int = field(default=0, metadata={"help": "Also the importance-weighted bound over so many orders."})
    chain: bool = field(default=False, metadata={"help": "Also the diffusion model's exact left-to-right chain."})
    few_characters: int = field(
        default=8000, metadata={"help": "Held-out characters for these two: forwards by token."}
    )
    num_samples: int = field(default=4, metadata={"help": "Prefixes from held-out text that both continue."})
    prefix_tokens: int = field(default=24, metadata={"help": "Tokens of each."})
    new_tokens: int | None = field(default=None, metadata={"help": "Tokens written. Default: what fills a row."})
    denoising_steps: list[int] = field(
        default_factory=lambda: [16], metadata={"help": "Of the diffusion model, beside one step for each token."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of both."})
    top_p: float = field(default=0.9, metadata={"help": "Of both."})
    order: str = field(default="entropy", metadata={"help": "In which the diffusion model unmasks."})
    seed: int = field(default=0, metadata={"help": "Of weights, order of rows, masks and samples."})
    overwrite: bool = field(default=False, metadata={"help": "Train again what is already there."})
    output_dir: str = field(default="results/compare", metadata={"help": "Where models and measurements are kept."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write; a table goes beside it, as .md."})

    def __post_init__(self) -> None:
        if not self.train_file and not (self.eval_file and self.diffusion and self.autoregressive):
            raise ValueError("`--train-file` is missing: name text, or two models and an `--eval-file`.")
        for name in (*self.train_file, *self.eval_file):
            if not Path(name).is_file():
                raise ValueError(f"The file {name!r} of `--train-file` or `--eval-file` does not exist.")
        for name in ("held_out_share", "mlm_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must lie in (0, 1), not {getattr(self, name)}.")
        for name in ("steps", "batch_size", "draws", "num_samples", "prefix_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(self, name)}.")
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"`--parts` must be of {', '.join(PARTS)}, not {sorted(unknown)[0]!r}.")

    @property
    def phases(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """The parts of the diffusion model's training: steps, and what differs from the defaults."""
        low = max(round(self.mlm_share * self.steps), 1)
        return {
            "mlm": (
                low,
                {
                    "masking": "levels",
                    "mask_levels": self.mlm_levels,
                    "objective": "simple",
                    "lr_scheduler_type": "constant_with_warmup",  # what it learned is not to settle yet
                },
            ),
            "diffusion": (self.steps - low, {"lr_scheduler_type": "cosine"}),
        }

    @property
    def phase_steps(self) -> int:
        return sum(steps for steps, _ in self.phases.values())


def read_texts(args: CompareArguments) -> tuple[str, str]:
    """Training text and held-out text, each one string with every character of its files."""
    train, held_out = (
        "".join(Path(name).read_bytes().decode("utf-8") for name in files)
        for files in (args.train_file, args.eval_file)
    )
    if not args.eval_file:
        cut = round(len(train) * (1 - args.held_out_share))
        train, held_out = train[:cut], train[cut:]
    return train, held_out


class Trainings:
    """Trains what is not there yet, under `output_dir`: `tokenizer`, `mlm`, `diffusion` and `autoregressive`."""

    def __init__(self, args: CompareArguments, text: str) -> None:
        self.args = args
        self.directory = Path(args.output_dir)
        self.tokenizer = self._tokenizer(text)
        texts = Dataset.from_dict({"text": [text]})
        self.rows = tokenize_and_pack(texts, self.tokenizer, args.max_length, "packed", separate_texts=False)
        self.config = preset_config(args.preset, self.tokenizer, args.max_length, args.dropout)

    def _tokenizer(self, text: str) -> Any:
        args, limit = self.args, self.args.max_length
        if args.tokenizer not in ("char", "bpe"):
            return load_tokenizer(args.tokenizer, argument="--tokenizer")
        lines = text.splitlines(keepends=True)
        if args.tokenizer == "char":
            return train_characters(lines, model_max_length=limit)
        return train_bpe(lines, vocab_size=args.vocab_size, model_max_length=limit)

    def diffusion(self) -> Path:
        """The generator's directory: trained at low mask rates, then at all."""
        model: Any = None
        for name, (steps, settings) in self.args.phases.items():
            target = self.directory / name
            if self._is_there(target):
                model = None
                continue
            if model is None:
                before = self.directory / "mlm"
                model = build_model(self.config, self.args.seed) if name == "mlm" else load_generator(str(before))[0]
            arguments = self._arguments(name, steps, **settings)
            model.config.diffusion = training_facts(arguments, self.args.max_length)  # type: ignore[arg-type]  # reads masks only
            trainer = DiffusionTrainer(model, arguments, processing_class=self.tokenizer, train_dataset=self.rows)
            self._train(trainer, target)
        return target

    def autoregressive(self) -> Path:
        """The peer's directory. Its labels are the tokens that the diffusion model is trained to predict."""
        target = self.directory / "autoregressive"
        if not self._is_there(target):
            model = build_causal_peer(self.config, self.args.seed)
            arguments = self._arguments("autoregressive", self.args.phase_steps, lr_scheduler_type="cosine")
            optimizers: Any = (None, None)
            if self.args.optim == "muon":
                betas = (arguments.adam_beta1, arguments.adam_beta2)
                muon = MuonWithAdamW(model, arguments.learning_rate, arguments.weight_decay, betas)
                optimizers = (muon, None)
            trainer = Trainer(
                model,
                arguments,
                processing_class=self.tokenizer,
                data_collator=DataCollatorForMaskedDiffusion(self.tokenizer, mask=False),
                train_dataset=self.rows,
                optimizers=optimizers,
            )
            self._train(trainer, target)
        return target

    def _is_there(self, target: Path) -> bool:
        return (target / "training.json").is_file() and not self.args.overwrite

    def _arguments(self, name: str, steps: int, **settings: Any) -> DiffusionTrainingArguments:
        args = self.args
        arguments = DiffusionTrainingArguments(
            output_dir=str(self.directory / f"{name}-checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            optim=args.optim,
            warmup_steps=args.warmup,
            prefix_length="0",  # the bound is of whole rows; a prefix is one of the masks that are learned anyway
            bf16=torch.cuda.is_available(),
            dataloader_drop_last=True,
            save_strategy="steps",
            save_steps=0.2,
            save_total_limit=1,
            logging_steps=0.02,
            seed=args.seed + (name == "diffusion"),  # other rows and masks than the part before
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        show_progress(arguments)  # type: ignore[arg-type]  # reads the number of the process only
        return arguments

    def _train(self, trainer: Trainer, target: Path) -> None:
        """Trains to the end, from the last checkpoint if there is one, and puts the model in its place."""
        checkpoints = Path(str(trainer.args.output_dir))
        if self.args.overwrite:
            shutil.rmtree(checkpoints, ignore_errors=True)
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(LogLineCallback)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train(resume_from_checkpoint="auto" if isinstance(trainer, DiffusionTrainer) else last)
        found = {
            "parameters": trainer.model.num_parameters(),
            "steps": trainer.state.global_step,
            "tokens": trainer.state.global_step * self.args.batch_size * self.args.max_length,
            "rows": len(self.rows),
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "resumed": last is not None,
            "losses": [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log],
            "settings": asdict(self.args),
        }
        fresh = target.with_name(target.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        trainer.model.save_pretrained(fresh)
        self.tokenizer.save_pretrained(fresh)
        if isinstance(trainer, DiffusionTrainer):
            DiffusionGenerationConfig().save_pretrained(fresh)
        (fresh / "training.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        shutil.rmtree(checkpoints, ignore_errors=True)


def training_of(directories: list[Path]) -> dict[str, Any] | None:
    """What `training.json` says, summed over the parts of a training; None for a model trained elsewhere."""
    found = [json.loads((path / "training.json").read_text(encoding="utf-8")) for path in directories]
    if not found:
        return None
    sums = {name: sum(part[name] for part in found) for name in ("steps", "tokens", "seconds", "cpu_seconds")}
    return {**sums, "rows": found[-1]["rows"], "resumed": any(part["resumed"] for part in found)}


def main(argv: list[str]) -> int:
    (args,) = parse([CompareArguments], argv, "compare_autoregressive")
    train_text, held_out = read_texts(args)
    directory = Path(args.output_dir)
    if not (args.diffusion and args.autoregressive):
        trainings = Trainings(args, train_text)
        if args.diffusion is None and "diffusion" in args.parts:
            trainings.diffusion()
        if args.autoregressive is None and "autoregressive" in args.parts:
            trainings.autoregressive()
    if "compare" not in args.parts:
        return 0
    diffusion, tokenizer = load_generator(args.diffusion or str(directory / "diffusion"), argument="--diffusion")
    causal, causal_tokenizer = load_causal_model(args.autoregressive or str(directory / "autoregressive"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peers = Peers(diffusion.to(device), tokenizer, causal.to(device), causal_tokenizer)
    figures: dict[str, Any] = {
        "settings": {**asdict(args), **{name: [Path(file).name for file in getattr(args, name)] for name in FILES}},
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "parameters": {"diffusion": diffusion.num_parameters(), "autoregressive": causal.num_parameters()},
        "training": {
            "diffusion": training_of([] if args.diffusion else [directory / name for name in args.phases]),
            "autoregressive": training_of([] if args.autoregressive else [directory / "autoregressive"]),
        },
        "likelihood": likelihoods(peers, held_out, args),
        "samples": side_by_side(peers, held_out, args),
    }
    table = summary_table(figures)
    print(table)
    if args.output:
        text = json.dumps(figures, indent=1, allow_nan=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
        Path(args.output).with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(report_error(error))
