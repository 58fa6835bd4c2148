"""How a RoBERTa from scratch learns from three starts: the usual one, attention that copies, heads at neighbours too.

    python experiments/compare_starts.py --train-file book.txt --output results/starts.json

The same text, order, masks (30 % of the tokens) and optimizer for all; what differs is `diffusion_mlm.initialization`.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.data import load_texts, tokenize_and_pack
from diffusion_mlm.initialization import start_at_neighbors, start_by_copying
from diffusion_mlm.presets import ROBERTA_PRESETS, preset_config
from diffusion_mlm.tokenization import train_bpe

STARTS = {
    "usual": (),
    "copying": (start_by_copying,),
    "copying, heads at neighbours": (start_by_copying, start_at_neighbors),
}


@dataclass
class CompareStartsArguments:
    """What is trained on what."""

    train_file: list[str] = field(metadata={"help": "Text, one text a line, or JSON lines."})
    preset: str = field(default="roberta-tiny", metadata={"help": "Size of the model.", "choices": ROBERTA_PRESETS})
    vocab_size: int = field(default=1024, metadata={"help": "Tokens of the byte-level BPE."})
    max_length: int = field(default=64, metadata={"help": "Tokens per row."})
    batch_size: int = field(default=16, metadata={"help": "Rows per step."})
    steps: int = field(default=400, metadata={"help": "Steps per start."})
    mask_rate: float = field(default=0.3, metadata={"help": "Share of the tokens that is masked."})
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Of weights, order and masks."})
    output: str = field(default="results/starts.json", metadata={"help": "JSON file to write."})


def build(config: RobertaConfig, start: str, seed: int) -> RobertaForMaskedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
        for change in STARTS[start]:
            change(model)
    return model


def main(argv: list[str]) -> int:
    (args,) = parse([CompareStartsArguments], argv, "compare_starts")
    texts = load_texts(None, files=args.train_file)
    tokenizer = train_bpe((row["text"] for row in texts), vocab_size=args.vocab_size, model_max_length=128)
    rows = tokenize_and_pack(texts, tokenizer, args.max_length, "packed")
    config = preset_config(args.preset, tokenizer, args.max_length, dropout=0.0)
    result: dict[str, Any] = {**vars(args), "train_file": [Path(file).name for file in args.train_file], "runs": []}
    result.pop("output")
    for seed in args.seeds:
        for start in STARTS:
            with tempfile.TemporaryDirectory() as directory:
                training_args = DiffusionTrainingArguments(
                    directory,
                    per_device_train_batch_size=args.batch_size,
                    max_steps=args.steps,
                    masking="levels",
                    mask_levels=[args.mask_rate],
                    objective="simple",
                    prefix_length="0",
                    optim="muon",
                    learning_rate=3e-3,
                    logging_steps=50,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    seed=seed,
                )
                model = build(config, start, seed)
                trainer = DiffusionTrainer(model, training_args, processing_class=tokenizer, train_dataset=rows)
                trainer.train()
            losses = [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log]
            result["runs"].append({"start": start, "seed": seed, "loss_by_step": losses})
            print(start, seed, losses, file=sys.stderr, flush=True)
    Path(args.output).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(report_error(error))
