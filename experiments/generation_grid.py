"""Every order with every remasking rule at several numbers of steps: on the stories, whose truth is known, or on text.

    python experiments/generation_grid.py --output results/generation_grid.json
    python experiments/generation_grid.py --checkpoint DIR --judge DIR --eval-file held_out.txt --max-new-tokens 64

Per setting of the story model: the share of generated stories that the grammar accepts, their mean exact
log-probability per token (a faithful sampler has minus the entropy of the language, a collapsed one is far above),
distinct 3-grams and forwards. With a judge: see `text_quality`. Writes JSON and, beside it, a Markdown table, after
each setting; the same command goes on where it was stopped. (What a preset stands for may change: presets come anew.)
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_mlm import load_generator, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.fingerprint import digest_of_model
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.cli.sweep_record import replace_file
from diffusion_mlm.generation_config import PRESETS
from diffusion_mlm.remasking import REMASKS
from diffusion_mlm.unmasking import ORDERS

sys.path.insert(0, str(Path(__file__).parent))
from story_quality import story_samples  # neighbours, not packages
from text_quality import COLUMNS as TEXT_COLUMNS
from text_quality import TextQuality


@dataclass
class GridArguments:
    """What is compared."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    steps: list[int] = field(
        default_factory=lambda: [8, 16, 32, 64, story_language.BLOCK_LENGTH - 1], metadata={"help": "Steps."}
    )
    num_samples: int = field(default=64, metadata={"help": "Texts per setting."})
    judge: str | None = field(default=None, metadata={"help": "For real text: a causal model, see text_quality."})
    judge_end_token: str | None = field(default=None, metadata={"help": "For real text: see text_quality."})
    eval_file: str | None = field(default=None, metadata={"help": "For real text: held-out text to compare with."})
    prefix: str = field(default="", metadata={"help": "For real text: what every sample begins with."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "For real text: length of a sample."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    output: str = field(default="results/generation_grid.json", metadata={"help": "JSON file to write."})


STORY_COLUMNS = ("valid_share", "mean_exact_logprob_per_token", "distinct_3", "forwards_per_sample")


def settings_to_try(steps: list[int]) -> list[dict[str, Any]]:
    """Presets at their own steps, blocks, few steps, then the grid.

    `low_confidence` goes with the order confidence alone.
    """
    grid = [
        {"order": order, "remask": remask, "steps": count}
        for order in ORDERS
        for remask in REMASKS
        for count in steps
        if remask != "low_confidence" or order == "confidence"
    ]
    sampled = [{"order": "confidence", "order_from": "sample", "steps": count} for count in steps]
    blocks = [{"block_length": length} for length in (0, 8, 16, 32)]
    few = [{"schedule": schedule, "steps": count} for schedule in ("cosine", "maskgit") for count in steps[:3]]
    adaptive = [
        {"adaptive": rule, "adaptive_bound": bound, **({"block_length": 0} if rule == "independent" else {})}
        for rule, bounds in {
            "threshold": (0.95, 0.9, 0.7, 0.5),
            "factor": (1.0,),
            "entropy_bound": (0.1, 0.5, 1.0),
            "independent": (0.05, 0.1, 0.25),
        }.items()
        for bound in bounds
    ]
    revised = [
        {"block_length": 16, "steps_per_token": 2.0, "remask": remask, "remask_eta": eta}
        for remask, etas in {"remdm_cap": (0.02, 0.1), "remdm_rescale": (0.05, 0.2), "remdm_conf": (0.5, 1.0)}.items()
        for eta in etas
    ]
    sharper = [{"top_p": 0.8}, {"top_p": 0.7}, {"temperature": 0.8}, {"sampling": "min_p"}, {"sampling": "typical"}]
    presets = [{"preset": preset} for preset in PRESETS]
    return presets + blocks + sharper + few + adaptive + revised + sampled + grid


def main(argv: list[str]) -> int:
    (args,) = parse([GridArguments], argv, "generation_grid")
    model, tokenizer = load_generator(args.checkpoint)
    result: dict[str, Any] = {
        "checkpoint": Path(args.checkpoint).name,
        "weights": digest_of_model(model),
        "prefix": args.prefix,
        "num_samples": args.num_samples,
        "seed": args.seed,
    }
    if args.judge is None:
        columns, length = STORY_COLUMNS, {}
        entropy = story_language.entropy_per_token()
        result["exact_entropy_nats_per_token"] = entropy
        caption = (
            f"Stories by setting, {args.num_samples} samples each. A faithful sampler has a mean log-probability of "
            f"{-entropy:.3f} nats per token; above it, text is too probable (collapse)."
        )
        measure = partial(story_samples, model, tokenizer, args.num_samples, args.seed)
    else:
        columns, length = TEXT_COLUMNS, {"max_new_tokens": args.max_new_tokens}
        quality = TextQuality(args.judge, args.eval_file, judge_end_token=args.judge_end_token)
        result["references"] = quality.references(tokenizer, args.num_samples, args.max_new_tokens)
        caption = f"Text by setting, {args.num_samples} samples of {args.max_new_tokens} tokens each. " + "; ".join(
            f"{name}: " + ", ".join(f"{column} {as_text(figures[column])}" for column in columns if column in figures)
            for name, figures in result["references"].items()
        )
        measure = partial(quality.samples, model, tokenizer, args.prefix, args.num_samples, seed=args.seed)
    path = Path(args.output)
    known = rows_of(path, {**result, "rows": None}, columns)
    result["rows"] = rows = []
    for settings in settings_to_try(args.steps):
        figures = known.pop(json.dumps(settings), None) or measure(**settings, **length)
        rows.append({**settings, **{name: figures[name] for name in columns}})
        print(json.dumps(rows[-1]), flush=True)
        so_far = {**result, "rows": rows + list(known.values())}
        replace_file(path, json.dumps(so_far, indent=1, allow_nan=False) + "\n")
        replace_file(path.with_suffix(".md"), as_table(caption, rows, columns))
    return 0


def rows_of(path: Path, wanted: dict[str, Any], columns: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The figures by settings that a run on the same terms has written, but those of presets.

    Raises:
        ValueError: the file is there and of other terms.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(wanted))
    others = [name for name in wanted if name != "rows" and found.get(name) != wanted[name]]
    if others:
        raise ValueError(f"`--output` is {str(path)!r}, which has another `{others[0]}`. Name another file.")
    rows = found["rows"]
    settings = [{name: value for name, value in row.items() if name not in columns} for row in rows]
    return {json.dumps(of): row for of, row in zip(settings, rows, strict=True) if "preset" not in of}


def as_table(caption: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = [f"{caption}\n", f"| setting | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        setting = ", ".join(f"{name} {value}" for name, value in row.items() if name not in columns)
        shown = (as_text(row[name]) for name in columns)
        lines.append(f"| {setting} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def as_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
