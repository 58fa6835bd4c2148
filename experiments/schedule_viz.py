"""What a schedule is: the mask rate over time, and how many tokens each denoising step reveals.

    python experiments/schedule_viz.py --tokens 64 --steps 16

Draws `results/schedules.png`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.schedules import SCHEDULES, unmask_counts
from diffusion_mlm.visualization.colours import INK, PALE_INK

sys.path.insert(0, str(Path(__file__).parent))
from pictures import COLOURS, DASHES, new_figure, require_output, run_script, save, tidy


@dataclass
class ScheduleVizArguments:
    """What is drawn."""

    tokens: int = field(default=64, metadata={"help": "Tokens that are revealed."})
    steps: int = field(default=16, metadata={"help": "Denoising steps."})
    output: str = field(default="results/schedules.png", metadata={"help": "The picture: .png, .pdf or .svg."})

    def __post_init__(self) -> None:
        require_output(self.output)
        if not 2 <= self.steps <= self.tokens <= 4096:
            raise ValueError(
                f"`--steps` must lie between 2 and `--tokens` (at most 4096), not {self.steps} of {self.tokens}."
            )


def main(argv: list[str]) -> int:
    (args,) = parse([ScheduleVizArguments], argv, "schedule_viz")
    figure = new_figure(
        "Schedules: how masks go",
        f"Left: what training and the likelihood bound see. Right: {args.tokens} tokens in {args.steps} steps; thin "
        "line: as many in each.",
        10.5,
        4.4,
    )
    grid = figure.add_gridspec(len(SCHEDULES), 2, width_ratios=(1, 1.35))
    left = figure.add_subplot(grid[:, 0])
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    all_counts = {name: unmask_counts(name, args.tokens, args.steps) for name in SCHEDULES}
    most = max(max(counts) for counts in all_counts.values())
    for place, (name, schedule) in enumerate(SCHEDULES.items()):
        left.plot(t, schedule.mask_rate(t), label=name, color=COLOURS[place], linewidth=2.2, linestyle=DASHES[place])
        panel = figure.add_subplot(grid[place, 1])
        panel.bar(range(1, args.steps + 1), all_counts[name], width=0.82, color=COLOURS[place])
        panel.axhline(args.tokens / args.steps, color=PALE_INK, linewidth=0.8)
        is_last = place + 1 == len(SCHEDULES)
        tidy(panel, "", "step" if is_last else "", "", grid="y")
        panel.text(1.0, 0.98, name, transform=panel.transAxes, ha="right", va="top", fontsize=9, color=INK)
        panel.set_xlim(0.4, args.steps + 0.6)
        panel.set_ylim(0, most * 1.1)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.tick_params(labelbottom=is_last)
        if place == 0:
            panel.set_title("tokens revealed by each step", loc="left", fontsize=10, color=INK)
    tidy(left, "mask rate at diffusion time t", "t (0: clean text, 1: all masked)", "share masked")
    left.set_xlim(0, 1)
    left.set_ylim(0, 1)
    left.set_aspect("equal")
    left.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK, handlelength=2.8)
    save(figure, args.output)
    return 0


if __name__ == "__main__":
    run_script(main)
