"""Every order with every remasking rule at several numbers of steps, on the stories, whose truth is known.

    python experiments/generation_grid.py --output results/generation_grid.json

Per setting: the share of generated stories that the grammar accepts, their mean exact log-probability per token (a
faithful sampler has minus the entropy of the language, a collapsed one is far above), distinct 3-grams and forwards.
Writes JSON and, beside it, the same as a Markdown table.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm import load_generator, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.generation_config import PRESETS
from diffusion_mlm.remasking import REMASKS
from diffusion_mlm.unmasking import ORDERS

sys.path.insert(0, str(Path(__file__).parent))
from story_quality import story_samples  # a neighbour, not a package


@dataclass
class GridArguments:
    """What is compared."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    steps: list[int] = field(
        default_factory=lambda: [8, 16, 32, 64, story_language.BLOCK_LENGTH - 1], metadata={"help": "Steps."}
    )
    num_samples: int = field(default=64, metadata={"help": "Stories per setting."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    output: str = field(default="results/generation_grid.json", metadata={"help": "JSON file to write."})


COLUMNS = ("valid_share", "mean_exact_logprob_per_token", "distinct_3", "forwards_per_sample")


def settings_to_try(steps: list[int]) -> list[dict[str, Any]]:
    """Presets at their own steps, then the grid; `low_confidence` goes with the order confidence alone."""
    grid = [
        {"order": order, "remask": remask, "steps": count}
        for order in ORDERS
        for remask in REMASKS
        for count in steps
        if remask != "low_confidence" or order == "confidence"
    ]
    sampled = [{"order": "confidence", "order_from": "sample", "steps": count} for count in steps]
    return [{"preset": preset} for preset in PRESETS] + grid + sampled


def main(argv: list[str]) -> int:
    (args,) = parse([GridArguments], argv, "generation_grid")
    model, tokenizer = load_generator(args.checkpoint)
    rows = []
    for settings in settings_to_try(args.steps):
        figures = story_samples(model, tokenizer, args.num_samples, args.seed, **settings)
        rows.append({**settings, **{name: figures[name] for name in COLUMNS}})
        print(json.dumps(rows[-1]), flush=True)
    entropy = story_language.entropy_per_token()
    result = {
        "checkpoint": args.checkpoint,
        "num_samples": args.num_samples,
        "exact_entropy_nats_per_token": entropy,
        "rows": rows,
    }
    path = Path(args.output)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_table(rows, entropy, args.num_samples), encoding="utf-8")
    return 0


def as_table(rows: list[dict[str, Any]], entropy: float, num_samples: int) -> str:
    lines = [
        f"Stories by setting, {num_samples} samples each. A faithful sampler has a mean log-probability of "
        f"{-entropy:.3f} nats per token; above it, text is too probable (collapse).\n",
        "| setting | valid | mean log-probability | distinct-3 | forwards |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        setting = ", ".join(f"{name} {value}" for name, value in row.items() if name not in COLUMNS)
        log_prob = row["mean_exact_logprob_per_token"]
        shown = "" if log_prob is None else f"{log_prob:.3f}"
        lines.append(
            f"| {setting} | {row['valid_share']:.3f} | {shown} | {row['distinct_3']:.3f} | "
            f"{row['forwards_per_sample']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
