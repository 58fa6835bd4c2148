"""An ordinary masked language model becomes a generator: the likelihood bound before, and as fine-tuning goes on.

    python experiments/mlm_to_generator.py --train-file wiki.train.txt --eval-file wiki.valid.txt --tokenizer DIR

Two runs of the same model on the same text: first 15 % of the tokens masked, as BERT and RoBERTa were trained, then
every mask rate. The bound on held-out text is measured before the second run and after 1 %, 10 % and 100 % of it.
Published for MosaicBERT on C4: a perplexity bound of 78 before, 35 after (Sahoo et al. 2024, MDLM, arXiv:2406.07524).
"""

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, generate
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.data import load_texts, tokenize_and_pack
from diffusion_mlm.generation import load_tokenizer
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.modeling import build_model
from diffusion_mlm.presets import PRESETS, preset_config

SHARES = (0.01, 0.1, 1.0)


@dataclass
class MlmToGeneratorArguments:
    """What is trained, on what, for how long."""

    train_file: list[str] = field(metadata={"help": "Text files, one text a line."})
    eval_file: list[str] = field(metadata={"help": "Held-out text files."})
    tokenizer: str = field(metadata={"help": "Directory or Hub id."})
    preset: str = field(default="roberta-small", metadata={"help": "Size of the model.", "choices": list(PRESETS)})
    max_length: int = field(default=128, metadata={"help": "Tokens per row."})
    batch_size: int = field(default=128, metadata={"help": "Rows per step."})
    mlm_steps: int = field(default=1500, metadata={"help": "Steps at 15 %."})
    steps: int = field(default=1500, metadata={"help": "Steps at every mask rate."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of both runs."})
    optim: str = field(default="muon", metadata={"help": "Optimizer."})
    eval_draws: int = field(default=4, metadata={"help": "Masks per held-out row."})
    prefixes: list[str] = field(default_factory=lambda: ["The", "In 1998 ,"], metadata={"help": "Samples begin so."})
    output: str = field(default="results/mlm_to_generator.json", metadata={"help": "JSON file to write."})
    output_dir: str = field(default="results/mlm-to-generator", metadata={"help": "Where the models go."})


class EvaluateAt(TrainerCallback):
    """Asks for an evaluation after these steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = state.global_step in self.steps


def main(argv: list[str]) -> int:
    (args,) = parse([MlmToGeneratorArguments], argv, "mlm_to_generator")
    tokenizer = load_tokenizer(args.tokenizer, argument="--tokenizer")
    rows, held_out = (
        tokenize_and_pack(load_texts(None, files=files), tokenizer, args.max_length, "packed")
        for files in (args.train_file, args.eval_file)
    )
    model = build_model(preset_config(args.preset, tokenizer, args.max_length), attn_implementation="sdpa")
    common: dict[str, Any] = {
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "optim": args.optim,
        "bf16": torch.cuda.is_available(),
        "eval_draws": args.eval_draws,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }

    def trainer(directory: str, callbacks: list[TrainerCallback], **settings: Any) -> DiffusionTrainer:
        return DiffusionTrainer(
            model,
            DiffusionTrainingArguments(f"{args.output_dir}/{directory}", **{**common, **settings}),
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=held_out,
            callbacks=callbacks,
        )

    start = time.perf_counter()
    mlm = trainer(
        "mlm",
        [],
        max_steps=args.mlm_steps,
        masking="levels",
        mask_levels=[0.15],
        objective="simple",
        prefix_length="0",
    )
    mlm.train()
    mlm_seconds = time.perf_counter() - start
    points = {round(share * args.steps): share for share in SHARES}
    generator = trainer("generator", [EvaluateAt(set(points))], max_steps=args.steps, seed=1)
    before = generator.evaluate()
    start = time.perf_counter()
    generator.train()
    seconds = time.perf_counter() - start
    bounds = {0.0: before["eval_loss"]}
    for log in generator.state.log_history:
        if "eval_loss" in log and log["step"] in points:
            bounds[points[log["step"]]] = log["eval_loss"]
    model.save_pretrained(f"{args.output_dir}/final-model")
    tokenizer.save_pretrained(f"{args.output_dir}/final-model")
    DiffusionGenerationConfig().save_pretrained(f"{args.output_dir}/final-model")
    samples = generate(model.eval(), tokenizer, args.prefixes, seed=0, max_new_tokens=48, top_p=0.9).texts
    figures = {
        "preset": args.preset,
        "parameters": model.num_parameters(),
        "train_rows": len(rows),
        "rows_per_step": args.batch_size,
        "row_length": args.max_length,
        "mlm_steps": args.mlm_steps,
        "fine_tuning_steps": args.steps,
        "mlm_seconds": mlm_seconds,
        "fine_tuning_seconds_with_evaluations": seconds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "bounds": [
            {"share_of_fine_tuning": share, "nelbo_nats_per_token": nats, "perplexity_bound": math.exp(nats)}
            for share, nats in bounds.items()
        ],
        "loss_by_mask_rate_before": {k: v for k, v in before.items() if "mask_rate" in k},
        "samples": samples,
    }
    print(json.dumps(figures, indent=2))
    Path(args.output).write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(report_error(error))
