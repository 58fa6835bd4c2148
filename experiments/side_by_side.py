"""A diffusion model and an autoregressive one that write at the same time, as fast as each of them was.

    python experiments/side_by_side.py --autoregressive DIRECTORY --prefix "Once upon a time"

Each writes by itself, the quickest of `--repeats` runs after one to warm up; the time of every step is kept, and both
are played together: `results/side_by_side.html`, `.gif`, and the figures in `.json`. The diffusion model makes
`--steps` forwards, the other one a forward with its cache for each token. Without `--diffusion` the first is that of
`generate`.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from diffusion_mlm import TraceRecorder, generate, load_generator
from diffusion_mlm.causal_peer import continue_causally, load_causal_model
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.constraints import completion_text
from diffusion_mlm.tokenization import boundary_token_ids, decode_text, encode_text
from diffusion_mlm.tracing import split_text
from diffusion_mlm.visualization.html import comparison_page
from diffusion_mlm.visualization.picture import make_comparison_gif
from diffusion_mlm.visualization.trace import Reveal, TraceSample, TraceStep


@dataclass
class SideBySideArguments:
    """Who writes, and what."""

    autoregressive: str | None = field(default=None, metadata={"help": "Directory or Hub id of a causal model."})
    diffusion: str | None = field(default=None, metadata={"help": "Of a generator; without it, as for `generate`."})
    prefix: str = field(default="Once upon a time", metadata={"help": "What both write on from."})
    new_tokens: int = field(default=64, metadata={"help": "Tokens that each writes."})
    steps: int = field(default=16, metadata={"help": "Denoising steps."})
    temperature: float = field(default=0.8, metadata={"help": "Of both."})
    top_p: float = field(default=0.9, metadata={"help": "Of both."})
    seed: int = field(default=0, metadata={"help": "Of both."})
    repeats: int = field(default=3, metadata={"help": "Runs of each; the quickest is shown."})
    slowdown: float = field(default=0.0, metadata={"help": "Of the GIF; 0: such that it takes eight seconds."})
    output: str = field(default="results/side_by_side", metadata={"help": "Files, without .html, .gif and .json."})

    def __post_init__(self) -> None:
        if self.autoregressive is None:
            raise ValueError("`--autoregressive` is missing: name a causal model, such as openai-community/gpt2.")
        for name in ("new_tokens", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(self, name)}.")


class Clock(BaseStreamer):
    """The time at which each new token was there."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = time.perf_counter()

    def put(self, value: Tensor) -> None:
        if value.dim() == 1 and value.numel() == 1:  # the prompt comes first, as (1, L)
            self.seconds.append(time.perf_counter() - self._start)

    def end(self) -> None:
        pass


def write_by_diffusion(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: SideBySideArguments
) -> TraceSample:
    recorder = TraceRecorder(tokenizer, timed=True)
    settings = {"sampling": "nucleus", "top_p": args.top_p, "temperature": args.temperature, "steps": args.steps}
    generate(
        model,
        tokenizer,
        args.prefix,
        seed=args.seed,
        recorder=recorder,
        max_new_tokens=args.new_tokens,
        **settings,
    )
    return recorder.samples[0]


def write_causally(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: SideBySideArguments
) -> TraceSample:
    """The steps of a causal model: each reveals the next token. Probabilities come from one forward afterwards."""
    start_id, _ = boundary_token_ids(tokenizer)
    prefix_ids = encode_text(tokenizer, args.prefix)
    ids = torch.tensor([[start_id, *prefix_ids]], device=model.device)
    how = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    clock = Clock()
    written = continue_causally(
        model, tokenizer, ids, args.new_tokens, may_end=False, seed=args.seed, streamer=clock, **how
    )
    new_ids = written[0].tolist()
    with torch.no_grad():
        shares = model(input_ids=torch.cat([ids, written], -1)).logits[0, ids.shape[1] - 1 : -1].float().softmax(-1)
    sure = [float(shares[place, token]) for place, token in enumerate(new_ids)]
    as_written = partial(_completion, tokenizer, args.prefix, prefix_ids, new_ids)
    completion = as_written(len(new_ids))
    pieces = split_text(completion, len(new_ids), as_written)
    steps = [
        TraceStep((Reveal(place, pieces[place], sure[place]),), seconds=clock.seconds[place])
        for place in range(len(new_ids))
    ]
    return TraceSample(
        (args.prefix, len(new_ids)), tuple(steps), args.prefix + completion, args.seed, num_forwards=len(new_ids)
    )


def _completion(
    tokenizer: PreTrainedTokenizerBase, prefix: str, prefix_ids: list[int], new_ids: list[int], number: int
) -> str:
    return completion_text(partial(decode_text, tokenizer), prefix, prefix_ids, new_ids[:number])


def write_both(args: SideBySideArguments) -> dict[str, tuple[str, TraceSample, int]]:
    """Name, text and parameters of each: the quickest of some runs, after one that nobody looks at."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    diffusion, tokenizer = load_generator(args.diffusion or default_checkpoint(), argument="--diffusion")
    causal, causal_tokenizer = load_causal_model(str(args.autoregressive))
    for name, model, its_tokenizer, write in (
        ("diffusion", diffusion, tokenizer, write_by_diffusion),
        ("autoregressive", causal, causal_tokenizer, write_causally),
    ):
        model.to(device)  # type: ignore[arg-type]  # `to` hides behind a wrapper
        write(model, its_tokenizer, args)
        size = model.num_parameters()
        title = f"{name}, {size / 1e6:.2g} million parameters"
        runs = [write(model, its_tokenizer, args) for _ in range(args.repeats)]
        found[name] = title, min(runs, key=lambda sample: sample.steps[-1].seconds or 0.0), size
    return found


def main(argv: list[str]) -> int:
    (args,) = parse([SideBySideArguments], argv, "side_by_side")
    found = write_both(args)
    panes = [(title, sample) for title, sample, _ in found.values()]
    longest = max(sample.steps[-1].seconds or 0.0 for _, sample in panes)
    slowdown = args.slowdown or 8.0 / longest
    note = f"Measured on {_machine()}, one text at a time. In the animation 1 second takes {slowdown:.1f}."
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    page = comparison_page(panes, "Side by side", note.split(" In the")[0], "0.1" if longest < 1 else "1")
    Path(f"{args.output}.html").write_text(page, encoding="utf-8")
    Path(f"{args.output}.gif").write_bytes(make_comparison_gif(panes, slowdown))
    figures: dict[str, Any] = {
        "machine": _machine(),
        "slowdown_of_the_gif": round(slowdown, 2),
        "settings": {name: value for name, value in vars(args).items() if name not in ("autoregressive", "diffusion")},
        **{
            name: {
                "parameters": size,
                "seconds": sample.steps[-1].seconds,
                "forwards": sample.num_forwards,
                "text": sample.text,
            }
            for name, (_, sample, size) in found.items()
        },
    }
    Path(f"{args.output}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, (_, sample, _) in found.items():
        print(f"{name}: {sample.num_forwards} forwards, {sample.steps[-1].seconds:.3f} s\n{sample.text}\n")
    return 0


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU of {os.cpu_count()} cores, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
