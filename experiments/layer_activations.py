"""Inside the model while a text forms: where its layers look, and when their states settle.

    python experiments/layer_activations.py --seed 1

Draws `results/layer_activations.png`. The canvas before every step of a run is shown to the model once more, for its
attention and hidden states; what is drawn is about the positions that are generated.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from diffusion_mlm import load_generator, stream
from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.visualization.colours import INK, PALE_INK, RAMP

sys.path.insert(0, str(Path(__file__).parent))
from pictures import COLOURS, new_figure, require_output, run_script, save, tidy

MARKS = "osD^vP"


@dataclass
class LayerActivationsArguments:
    """Which run is looked into."""

    checkpoint: str | None = field(default=None, metadata={"help": "Directory or Hub id. Default: as for `generate`."})
    prefix: str = field(default="Once upon a time", metadata={"help": "What is written on from."})
    seed: int = field(default=1, metadata={"help": "Of the text."})
    steps: int | None = field(default=None, metadata={"help": "Denoising steps. Default: one for each token."})
    order: str = field(default="random", metadata={"help": "What is revealed first."})
    output: str = field(default="results/layer_activations.png", metadata={"help": "The picture."})

    def __post_init__(self) -> None:
        require_output(self.output)


@dataclass
class Insides:
    """What the layers did in each of the T steps.

    Attributes:
        to_masks (`torch.Tensor` of shape `(T, layers)`): attention of generated positions that goes to masks.
        masked (`torch.Tensor` of shape `(T,)`): share of all positions that is masked.
        settled (`torch.Tensor` of shape `(T, layers + 1)`): cosine similarity of hidden states, the embeddings first,
            to those of the finished text, mean over generated positions.
        maps (`list[tuple[int, torch.Tensor]]`): step and attention of the last layer, `(L, L)`, mean over heads.
    """

    to_masks: Tensor
    masked: Tensor
    settled: Tensor
    maps: list[tuple[int, Tensor]]


def canvases_of(model: Any, tokenizer: Any, args: LayerActivationsArguments) -> tuple[list[Tensor], Tensor]:
    """The canvas before each step and the finished one, each `(L,)`, and which positions are generated."""
    settings = {"seed": args.seed, "order": args.order, **({"steps": args.steps} if args.steps else {})}
    steps = list(stream(model, tokenizer, args.prefix, **settings))
    generated = steps[0].is_masked[0] | steps[0].revealed[0]
    first = steps[0].canvas[0].masked_fill(generated, tokenizer.mask_token_id)
    return [first, *(step.canvas[0] for step in steps)], generated


@torch.no_grad()
def look_inside(model: Any, canvases: list[Tensor], generated: Tensor, mask_id: int) -> Insides:
    """Runs the model on each canvas, with its plain attention, whose weights can be read."""
    model.set_attn_implementation("eager")
    runs = [model(input_ids=c[None], output_attentions=True, output_hidden_states=True) for c in canvases]
    last = torch.stack(runs[-1].hidden_states)[:, 0, generated]  # (layers + 1, N, width)
    to_masks, settled, maps = [], [], []
    shown = {0, len(canvases) // 2, len(canvases) - 1}
    for place, (canvas, run) in enumerate(zip(canvases, runs, strict=True)):
        attention = torch.stack(run.attentions)[:, 0].mean(1)  # (layers, L, L), mean over heads
        is_mask = canvas.eq(mask_id) & generated
        to_masks.append(attention[:, generated][:, :, is_mask].sum(-1).mean(-1))
        states = torch.stack(run.hidden_states)[:, 0, generated]
        settled.append(cosine_similarity(states, last, dim=-1).mean(-1))
        if place in shown:
            maps.append((place, attention[-1]))
    masked = torch.stack([(canvas.eq(mask_id) & generated).float().mean() for canvas in canvases])
    return Insides(torch.stack(to_masks), masked, torch.stack(settled), maps)


def draw(found: Insides, output: str, text: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    colours = LinearSegmentedColormap.from_list("ramp", list(RAMP))
    figure = new_figure(
        "Inside the model while a text forms",
        "Means over heads and over the positions that are generated. " + text,
        10.5,
        7.4,
    )
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.12))
    left, right = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    steps, layers = found.to_masks.shape
    left.fill_between(range(steps), found.masked.tolist(), color="#e8e6df", label="share masked", linewidth=0)
    for layer in range(layers):
        style = {"color": COLOURS[layer % 6], "marker": MARKS[layer % 6], "markevery": max(steps // 9, 1)}
        left.plot(
            found.to_masks[:, layer].tolist(), label=f"layer {layer + 1}", linewidth=1.8, markersize=4.5, **style
        )
    tidy(left, "attention that goes to masks", "step", "share")
    left.set_xlim(0, steps - 1)
    left.set_ylim(0, 1)
    left.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    image = right.imshow(found.settled.T.numpy(), aspect="auto", origin="lower", cmap=colours, vmin=0, vmax=1)
    tidy(right, "likeness of states to those of the finished text (cosine)", "step", "", grid="")
    right.set_yticks(range(layers + 1), ["embedding", *(f"layer {layer + 1}" for layer in range(layers))])
    bar = figure.colorbar(image, ax=right, pad=0.02, aspect=18)
    bar.ax.tick_params(labelsize=8, colors=PALE_INK)
    bar.outline.set_visible(False)
    top = max(float(weights.max()) for _, weights in found.maps)
    for place, (step, weights) in enumerate(found.maps):
        panel = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        image = panel.imshow(weights.numpy(), cmap=colours, norm=PowerNorm(0.5, 0, top))
        name = "before the first step" if step == 0 else "finished" if step == steps - 1 else f"after {step} steps"
        tidy(panel, f"attention of the last layer, {name}", "position looked at", "" if place else "from", grid="")
        panel.title.set_fontsize(9)
        panel.spines[["bottom", "left"]].set_visible(False)
    bar = figure.colorbar(image, ax=panel, pad=0.03, aspect=18)
    bar.ax.tick_params(labelsize=8, colors=PALE_INK)
    bar.outline.set_visible(False)
    save(figure, output)


def main(argv: list[str]) -> int:
    (args,) = parse([LayerActivationsArguments], argv, "layer_activations")
    model, tokenizer = load_generator(args.checkpoint or default_checkpoint())
    canvases, generated = canvases_of(model, tokenizer, args)
    found = look_inside(model, canvases, generated, tokenizer.mask_token_id)
    draw(found, args.output, f"Order {args.order}, {len(canvases) - 1} steps, seed {args.seed}.")
    return 0


if __name__ == "__main__":
    run_script(main)
