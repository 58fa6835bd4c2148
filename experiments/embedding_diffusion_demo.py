"""Embedding diffusion in three pictures: forward noise, a training step, and the way back.

    python experiments/embedding_diffusion_demo.py --checkpoint results/embedding_diffusion/default/final-model

Draws `results/embedding_diffusion_demo.png`. Without a checkpoint the model is untrained, and so the best decoder
without context: what training adds is what the pictures of a trained one show beyond that.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_mlm import load_generator, story_language, stream
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.embedding_diffusion.building import build_embedding_diffusion
from diffusion_mlm.embedding_diffusion.likelihood import row_noise
from diffusion_mlm.embedding_diffusion.modeling import EmbeddingDiffusionConfig, EmbeddingDiffusionModel
from diffusion_mlm.embedding_diffusion.noise import add_noise, noise_log_likelihood
from diffusion_mlm.presets import preset_config
from diffusion_mlm.visualization.colours import BLUE, INK, PALE_INK, RAMP, VERMILLION

sys.path.insert(0, str(Path(__file__).parent))
from pictures import new_figure, require_output, run_script, save, tidy

_SHOWN = 26  # tokens: more are too small to read


@dataclass
class DemoArguments:
    """What is shown."""

    checkpoint: str | None = field(default=None, metadata={"help": "A trained model. Default: an untrained one."})
    steps: int = field(default=32, metadata={"help": "Denoising steps."})
    level: float = field(default=-1.5, metadata={"help": "log-SNR of the training step that is shown."})
    seed: int = field(default=0, metadata={"help": "Of story, noise and sample."})
    output: str = field(default="results/embedding_diffusion_demo.png", metadata={"help": "The picture."})

    def __post_init__(self) -> None:
        require_output(self.output)
        if self.steps < 2:
            raise ValueError(f"`--steps` must be at least 2, not {self.steps}.")


def load(args: DemoArguments) -> tuple[Any, Any]:
    """The model that was named, or an untrained one that knows the unigram law of the stories."""
    if args.checkpoint is not None:
        model, tokenizer = load_generator(args.checkpoint)
        if not isinstance(model, EmbeddingDiffusionModel):
            raise ValueError(f"`--checkpoint` is {args.checkpoint!r}, which is no model of embedding diffusion.")
        return model, tokenizer
    tokenizer = story_language.tokenizer()
    encoder = preset_config("roberta-tiny", tokenizer, 128, dropout=0.0)
    model = build_embedding_diffusion(EmbeddingDiffusionConfig(encoder=encoder.to_dict()), args.seed).eval()
    counts = torch.bincount(story_language.sample_ids(512, 1)[:, 1:].flatten(), minlength=len(tokenizer))
    model.take_unigram(counts)
    model.config.diffusion = {"generates_end": True, "row_length": story_language.BLOCK_LENGTH}  # type: ignore[attr-defined]  # see `cli.train.training_facts`
    return model, tokenizer


@torch.no_grad()
def forward_noise(model: EmbeddingDiffusionModel, ids: Tensor, levels: Tensor) -> Tensor:
    """How likely the right token is by its noisy embedding alone, `(levels, L)`: the same noise, more of it."""
    noise = row_noise(torch.tensor([0]), ids.shape[1], model.config.embedding_dim)
    table, shares = model.clean_embeddings(), []
    for level in levels:
        z = add_noise(table[ids], noise, level[None])
        alone = noise_log_likelihood(z, level[None], table) + model.log_unigram
        shares.append(torch.softmax(alone, -1)[0].gather(-1, ids[0][:, None])[:, 0])
    return torch.stack(shares)


@torch.no_grad()
def training_step(model: EmbeddingDiffusionModel, ids: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The loss of each token in nats: by its noisy embedding alone, and by the model, which sees the others."""
    log_snr = torch.tensor([level], dtype=torch.float64)
    noise = row_noise(torch.tensor([0]), ids.shape[1], model.config.embedding_dim)
    is_noised = torch.ones_like(ids, dtype=torch.bool)
    is_noised[:, 0] = False
    table = model.clean_embeddings()
    alone = noise_log_likelihood(add_noise(table[ids], noise, log_snr), log_snr, table) + model.log_unigram
    logits = model(ids, None, is_noised, log_snr, noise).logits
    losses = [-torch.log_softmax(of, -1)[0].gather(-1, ids[0][:, None])[:, 0] for of in (alone, logits)]
    return losses[0], losses[1]


def heat(panel: Any, values: Tensor, words: list[str], ticks: list[str], title: str, y: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("ramp", list(RAMP))
    panel.imshow(values.numpy(), aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    tidy(panel, title, "", y, grid="")
    panel.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=7)
    places = torch.linspace(0, len(ticks) - 1, min(len(ticks), 9)).round().long().tolist()
    panel.set_yticks(places, [ticks[place] for place in places], fontsize=7)


def main(argv: list[str]) -> int:
    (args,) = parse([DemoArguments], argv, "embedding_diffusion_demo")
    model, tokenizer = load(args)
    ids = story_language.sample_ids(1, 2_000_003 + args.seed)[:, : _SHOWN + 1]
    words = [tokenizer.decode([token]).strip() for token in ids[0, 1:].tolist()]
    levels = torch.linspace(2, -6, 33, dtype=torch.float64)
    shares = forward_noise(model, ids, levels)[:, 1:]
    alone, with_context = (losses[1:] for losses in training_step(model, ids, args.level))
    steps = list(stream(model, tokenizer, "", steps=args.steps, seed=args.seed))
    sure = torch.stack([step.confidence[0, 1 : _SHOWN + 1].nan_to_num(0.0) for step in steps])
    written = [tokenizer.decode([token]).strip() for token in steps[-1].canvas[0, 1 : _SHOWN + 1].tolist()]
    for step in steps[:: max(args.steps // 8, 1)] + steps[-1:]:
        text = tokenizer.decode(step.canvas[0, 1:].tolist()).split("</s>")[0]
        print(f"step {step.index + 1:>3}  {' '.join(text.replace('<mask>', ' _').split())}")
    figure = new_figure(
        "Embedding diffusion: noise on embeddings, and the way back",
        f"Top: probability of the right token by its noisy embedding alone. Middle: one training step at log-SNR "
        f"{args.level:g}. Bottom: {args.steps} steps from noise; dark: no token has a probability of one half.",
        11,
        9.5,
    )
    top, middle, bottom = figure.subplots(3, 1)
    heat(top, shares, words, [f"{level:.1f}" for level in levels], "forward: more and more noise", "log-SNR")
    places = torch.arange(len(words))
    middle.bar(places - 0.2, alone, width=0.38, color=PALE_INK, label="alone (the lookup)")
    middle.bar(places + 0.2, with_context, width=0.38, color=BLUE, label="with context (the model)")
    for losses, colour in ((alone, PALE_INK), (with_context, VERMILLION)):
        middle.axhline(float(losses.mean()), color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    tidy(middle, "a training step: the loss of each token, and its mean", "", "nats", grid="y")
    middle.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=7)
    middle.legend(frameon=False, fontsize=8, labelcolor=INK)
    heat(bottom, sure, written, [str(step.index + 1) for step in steps], "reverse: a story forms", "step")
    save(figure, args.output)
    return 0


if __name__ == "__main__":
    run_script(main)
