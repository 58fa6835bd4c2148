"""What is said and kept when training has ended: how it went, where everything lies, and what to do next."""

import json
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..data_report import DataReport
from ..lora import merged_size
from ..loss_buckets import loss_by_mask_rate
from ..sealed_checkpoints import checkpoints_in
from ..trainer import DiffusionTrainer


def write_summary(
    path: Path, trainer: DiffusionTrainer, metrics: dict[str, float], report: DataReport
) -> dict[str, Any]:
    """Writes what was trained on what, for how long, and how well, as strict JSON; returns it."""
    summary = {
        "source": trainer.card_facts.get("source"),
        "parameters": merged_size(trainer.model),
        "steps": trainer.state.global_step,
        "rows_per_step": trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        "train_seconds": round(trainer.train_seconds, 3),
        "train_tokens": report.num_tokens,
        "training_text": str(report),
        "nelbo_nats_per_token": metrics.get("eval_loss"),
        "eval_tokens": metrics.get("eval_num_tokens"),
        "draws": trainer.args.eval_draws,
        "loss_by_mask_rate": loss_by_mask_rate(metrics),
        "diffusion": trainer.model.config.diffusion,
        **({"resumed_inexactly": trainer.inexact_resumes} if trainer.inexact_resumes else {}),
    }
    path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def run_summary(
    output_directory: Path,
    facts: dict[str, Any],
    *,
    verbs: Collection[str] = (),
    eval_file: str | None = None,
) -> str:
    """A few lines for people; what does not exist is left out.

    Args:
        output_directory (`Path`): with `final-model`, and whatever else the run left in it.
        facts: as in `summary.json`.
        verbs: those of the command line; a command is shown only for a verb that is there.
        eval_file (`str`, *optional*): the text that `evaluate` is shown with.
    """
    model = output_directory / "final-model"
    lines = [_how_it_went(facts)]
    places = {
        "model": str(model),
        "checkpoints": _checkpoints(output_directory),
        "summary": _if_there(output_directory / "summary.json"),
        "log": _if_there(output_directory / "log.jsonl"),
        "TensorBoard": _if_there(output_directory / "runs"),
    }
    lines += [f"  {what:<12} {place}" for what, place in places.items() if place]
    path = shlex.quote(str(model))
    commands = {
        "generate": f'--checkpoint {path} --prefix "..."',
        "evaluate": f"--checkpoint {path} --eval-file {shlex.quote(eval_file) if eval_file else 'FILE'}",
        "push": f"{path} USER/NAME",
    }
    lines += [f"  {verb:<12} diffusion-mlm {verb} {rest}" for verb, rest in commands.items() if verb in verbs]
    return "\n".join(lines)


def _how_it_went(facts: dict[str, Any]) -> str:
    line = (
        f"Trained {facts['parameters']:,} parameters for {facts['steps']:,} steps of {facts['rows_per_step']:,} rows"
    )
    seconds = facts.get("train_seconds")
    if seconds is not None:
        line += f" in {_duration(seconds)}"
    bound = facts.get("nelbo_nats_per_token")
    return line + (f"; {bound:.4f} nats per held-out token." if bound is not None else "; nothing was held out.")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _checkpoints(directory: Path) -> str | None:
    steps = sorted(step for step, _ in checkpoints_in(directory))
    last = ",".join(map(str, steps))
    return f"{directory / 'checkpoint-'}{last if len(steps) == 1 else '{' + last + '}'}" if steps else None


def _if_there(path: Path) -> str | None:
    return str(path) if path.exists() else None
