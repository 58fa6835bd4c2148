"""The order of a run: at which step each position was revealed, how sure the model was, and what was masked again.

    python generate.py --prefix "Once upon a time" --seed 1 --trace trace.json
    python experiments/order_viz.py trace.json

Draws `results/order.png`. No model is loaded; without a trace the packaged generator writes one text in each order.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.visualization.colours import INK, PALE_INK, RAMP, VERMILLION
from diffusion_mlm.visualization.trace import Trace, TraceSample

sys.path.insert(0, str(Path(__file__).parent))
from pictures import new_figure, require_output, run_script, save, tidy

ORDERS = ("entropy", "random", "left_to_right")


@dataclass
class OrderVizArguments:
    """What is drawn."""

    trace: list[str] = field(
        default_factory=list, metadata={"help": "Traces, one panel for each text. Default: three orders are tried."}
    )
    seed: int = field(default=1, metadata={"help": "Of the texts, if no trace is named."})
    output: str = field(default="results/order.png", metadata={"help": "The picture: .png, .pdf or .svg."})

    def __post_init__(self) -> None:
        require_output(self.output)


def samples_of(args: OrderVizArguments) -> list[tuple[str, TraceSample]]:
    """Title and sample of each panel."""
    found: list[tuple[str, TraceSample]] = []
    for name in args.trace:
        trace = Trace.load(name)
        order = trace.settings.get("order") or Path(name).stem
        found += [(f"{order}, seed {sample.seed}", sample) for sample in trace.samples]
    if len(found) > 4:
        raise ValueError(f"`--trace` holds {len(found)} texts, and 4 are the most that are drawn: name fewer.")
    return found or written(args.seed)


def written(seed: int) -> list[tuple[str, TraceSample]]:
    from diffusion_mlm import TraceRecorder, generate, load_generator
    from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint

    model, tokenizer = load_generator(default_checkpoint())
    recorder = TraceRecorder(tokenizer)
    for order in ORDERS:
        generate(model, tokenizer, "Once upon a time", seed=seed, order=order, recorder=recorder)
    return list(zip((order.replace("_", " ") for order in ORDERS), recorder.samples, strict=True))


def draw(panel: Any, sample: TraceSample, colours: Any) -> Any:
    """Positions over steps; a vertical stroke where something was masked again."""
    points = [
        (step + 1, reveal.position + 1, reveal.confidence if reveal.confidence is not None else 1.0)
        for step, done in enumerate(sample.steps)
        for reveal in done.reveals
        if reveal.text is not None
    ]
    again = [(step + 1, position + 1) for step, done in enumerate(sample.steps) for position in done.remasks]
    steps, positions, sure = zip(*points, strict=True)
    if again:
        panel.scatter(*zip(*again, strict=True), marker="x", s=16, linewidths=0.9, color=VERMILLION)
    return panel.scatter(steps, positions, c=sure, cmap=colours, vmin=0, vmax=1, s=22, edgecolors=INK, linewidths=0.3)


def main(argv: list[str]) -> int:
    loose = [word for word in argv if word.endswith(".json") and "--trace" not in argv]
    options = [word for word in argv if word not in loose]
    (args,) = parse([OrderVizArguments], [*options, *(["--trace", *loose] if loose else [])], "order_viz")
    samples = samples_of(args)
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("ramp", list(RAMP))
    figure = new_figure(
        "Which place is written when",
        "A point is a token, at the step that revealed it; ends of text are left out."
        + (" Crosses: masked again." if any(step.remasks for _, sample in samples for step in sample.steps) else ""),
        3.4 * len(samples) + 1.0,
        4.0,
    )
    panels = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    for panel, (title, sample) in zip(panels, samples, strict=True):
        drawn = draw(panel, sample, colours)
        tidy(panel, title, "step", "position in the text" if panel is panels[0] else "")
        panel.set_xlim(0, len(sample.steps) + 1)
    panels[0].invert_yaxis()
    bar = figure.colorbar(drawn, ax=list(panels), pad=0.02, aspect=30)
    bar.set_label("probability that the model gave the token", fontsize=9, color=PALE_INK)
    bar.ax.tick_params(labelsize=8, colors=PALE_INK)
    bar.outline.set_visible(False)
    save(figure, args.output)
    return 0


if __name__ == "__main__":
    run_script(main)
