"""How a training went: the loss over its steps, and at each mask rate.

    python experiments/training_viz.py results/run

Draws `results/training.png` from the `log.jsonl` of a run, or from the `trainer_state.json` of one of its checkpoints.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.visualization.colours import INK, PALE_INK, RAMP, VERMILLION

sys.path.insert(0, str(Path(__file__).parent))
from pictures import new_figure, require_output, run_script, save, tidy

PREFIX = "loss_mask_rate_"


@dataclass
class TrainingVizArguments:
    """What is drawn."""

    state: str | None = field(
        default=None, metadata={"help": "A log.jsonl or trainer_state.json, or a directory with one."}
    )
    output: str = field(default="results/training.png", metadata={"help": "The picture: .png, .pdf or .svg."})

    def __post_init__(self) -> None:
        require_output(self.output)
        if self.state is None:
            raise ValueError("`--state` is missing: name the directory of a run, which has a log.jsonl.")


Curve = list[tuple[int, float]]


def read_logs(name: str) -> dict[str, Curve]:
    """Step and value of everything that was logged.

    Raises:
        ValueError: there are no logs, or none of a loss.
    """
    path = Path(name)
    if path.is_dir():
        path /= "log.jsonl" if (path / "log.jsonl").is_file() else "trainer_state.json"
    try:
        text = path.read_text(encoding="utf-8")
        is_lines = path.suffix == ".jsonl"
        history = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)["log_history"]
    except FileNotFoundError:
        raise ValueError(f"`--state` is {name!r}, where there is no log.jsonl and no trainer_state.json.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"`--state` is {name!r}, which holds no logs of a training.") from None
    curves: dict[str, Curve] = {}
    for log in history:
        for key, value in log.items():
            if isinstance(value, (int, float)) and key not in ("step", "epoch"):
                curves.setdefault(key, []).append((int(log["step"]), float(value)))
    if "loss" not in curves:
        raise ValueError(f"`--state` is {name!r}, in which no loss was logged: lower `--logging-steps` in training.")
    return curves


def by_mask_rate(curves: dict[str, Curve]) -> tuple[str, list[tuple[float, Curve]]]:
    """Loss curves of the mask rates, from the lowest up: of held-out text, if there are some, else of training."""
    for start in (f"eval_{PREFIX}", PREFIX):
        found = [(float(key.removeprefix(start)), curve) for key, curve in curves.items() if key.startswith(start)]
        if found:
            return ("held-out text" if start.startswith("eval") else "training text"), sorted(found)
    return "", []


def draw(curves: dict[str, Curve], left: Any, right: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    for key, label, colour, dashes in (
        ("loss", "training", PALE_INK, "-"),
        ("eval_loss", "held-out text", VERMILLION, "-"),
    ):
        if key in curves:
            style = {"marker": "o", "markersize": 4} if key == "eval_loss" else {}
            left.plot(*zip(*curves[key], strict=True), color=colour, linestyle=dashes, label=label, **style)
    tidy(left, "the likelihood bound", "step", "nats per token")
    left.legend(frameon=False, fontsize=9, labelcolor=INK)
    of_text, rates = by_mask_rate(curves)
    colours = LinearSegmentedColormap.from_list("ramp", list(RAMP))
    for rate, curve in rates:
        right.plot(*zip(*curve, strict=True), color=colours(0.92 * rate), linewidth=1.6)
    if rates:
        bar = right.figure.colorbar(ScalarMappable(Normalize(0, 1 / 0.92), colours), ax=right, pad=0.02, aspect=24)
        bar.set_label("share masked, up to", fontsize=9, color=PALE_INK)
        bar.ax.set_ylim(0, 1)
        bar.ax.tick_params(labelsize=8, colors=PALE_INK)
        bar.outline.set_visible(False)
    tidy(right, f"by share masked, {of_text}" if of_text else "no loss by mask rate in the logs", "step", "")


def main(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-"):
        argv = ["--state", *argv]
    (args,) = parse([TrainingVizArguments], argv, "training_viz")
    curves = read_logs(args.state)
    figure = new_figure("How the training went", "Lower is better; more context (fewer masks) is easier.", 10.5, 4.2)
    left, right = figure.subplots(1, 2)
    draw(curves, left, right)
    save(figure, args.output)
    return 0


if __name__ == "__main__":
    run_script(main)
