"""What is said when training has ended: how it went, where everything lies, and what to do next."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any


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
    steps = sorted(
        int(path.name.split("-")[1]) for path in directory.glob("checkpoint-*") if path.name[11:].isdecimal()
    )
    last = ",".join(map(str, steps))
    return f"{directory / 'checkpoint-'}{last if len(steps) == 1 else '{' + last + '}'}" if steps else None


def _if_there(path: Path) -> str | None:
    return str(path) if path.exists() else None
