"""Memory and time of training by size of the model: arithmetic, from one measurement on an H100.

    python experiments/scaling_arithmetic.py            # the tables of docs/scaling.md

What a step holds is added up below, in bytes; the sum is held
against the peak that results/training_speed_h100.json measured for roberta-base. Times take the floating-point rate
that was reached there, for every model, and no time at all for what GPUs say to each other: they are bounds from below
for the time of several GPUs, and nothing but roberta-base on one GPU was measured.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).parents[1] / "results/training_speed_h100.json"
MASK_RATE = 0.5  # the mean over the rates of training
ROWS, LENGTH = 32, 512

# Bytes per parameter: float32 weights, their gradients, the two moments of AdamW, and the bfloat16 copies of autocast.
WEIGHTS, GRADIENTS, MOMENTS, COPIES = 4, 4, 8, 2
# Bytes per token, layer and unit of width that autograd keeps under bfloat16 autocast: what each operation saves.
LAYER = {
    "input of query, key and value, cast once for each": 3 * 2,
    "query, key and value": 3 * 2,
    "result of the attention, and its copy in order of tokens": 2 * 2,
    "mask of the first dropout": 1,
    "input of the first layer norm, float32": 4,
    "input of the feed-forward part, cast": 2,
    "before and after GELU, four times as wide": 2 * 4 * 2,
    "mask of the second dropout": 1,
    "input of the second layer norm, float32": 4,
}
LAYER_INPUT = 4  # all that is kept of a layer that is computed again, float32
# Bytes per scored token and entry of the vocabulary where the loss is: log-probabilities, their gradient, and that of
# the logits, all float32.
LOGITS = 3 * 4


@dataclass(frozen=True)
class Size:
    """A published shape; all have feed-forward parts of four times the width."""

    name: str
    layers: int
    width: int
    vocabulary: int

    def parameters(self) -> int:
        """Of `RobertaForMaskedLM` or `XLMRobertaXLForMaskedLM` with 514 positions; the head shares the embeddings."""
        width = self.width
        norm = 2 * width
        embeddings = (self.vocabulary + 514 + 1) * width + norm  # XL has the norm behind the layers
        layer = 4 * (width**2 + width) + (2 * 4 * width**2 + 5 * width) + 2 * norm
        head = width**2 + width + norm + self.vocabulary
        return embeddings + self.layers * layer + head

    def kept_bytes(self, again: bool) -> float:
        """Of one batch, for the way back: with every layer computed again (`again`), or kept."""
        layer = sum(LAYER.values())
        per_token = (self.layers * LAYER_INPUT + layer) if again else self.layers * layer
        return ROWS * LENGTH * self.width * per_token

    def logit_bytes(self) -> float:
        return ROWS * LENGTH * MASK_RATE * self.vocabulary * LOGITS

    def peak_bytes(self, again: bool, gpus: int = 1) -> float:
        """The larger of two moments: at the loss, and at the optimizer's step. FSDP2 shares out what is per parameter.

        A layer that is gathered, and what is not, is left out under FSDP2: a few percent of the largest models.
        """
        share = self.parameters() / gpus
        at_loss = share * (WEIGHTS + MOMENTS + COPIES) + self.kept_bytes(again) + self.logit_bytes()
        return max(at_loss, share * (WEIGHTS + GRADIENTS + MOMENTS))

    def flops_per_token(self) -> float:
        """Of the matrix products of a training step (`benchmarks/training.py`), the layers not computed again."""
        encoder = self.layers * (24 * self.width**2 + 4 * LENGTH * self.width)
        head = MASK_RATE * 2 * (self.width**2 + self.width * self.vocabulary)
        return 3 * (encoder + head)


SIZES = [
    Size("roberta-base", 12, 768, 50265),
    Size("roberta-large", 24, 1024, 50265),
    Size("xlm-roberta-base", 12, 768, 250002),
    Size("xlm-roberta-large", 24, 1024, 250002),
    Size("xlm-roberta-xl", 36, 2560, 250880),
    Size("xlm-roberta-xxl", 48, 4096, 250880),
]


def measured() -> dict[str, float]:
    """Peak in bytes, tokens a second and floating-point operations a second of `DiffusionTrainer` on the H100."""
    figures = json.loads(MEASURED.read_text(encoding="utf-8"))
    ours = figures["variants"]["ours"]
    return {
        "peak": ours["peak_mib"] * 2**20,
        "tokens": ours["tokens_per_second"],
        "flops": figures["needed_tflop_per_step"] * 1e12 / (ours["ms"] / 1000),
    }


def memory_table() -> str:
    lines = [
        "| model | parameters | weights, gradients, AdamW | kept by layers | computed again | logits | peak, 1 GPU | "
        "computed again | each of 8, FSDP2 | each of 64, FSDP2 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        parameters = size.parameters()
        cells = [
            size.name,
            f"{parameters / 1e6:,.0f} M",
            *map(
                _gib,
                (
                    parameters * (WEIGHTS + GRADIENTS + MOMENTS),
                    size.kept_bytes(again=False),
                    size.kept_bytes(again=True),
                    size.logit_bytes(),
                    size.peak_bytes(again=False),
                    size.peak_bytes(again=True),
                    size.peak_bytes(again=True, gpus=8),
                    size.peak_bytes(again=True, gpus=64),
                ),
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time_table() -> str:
    lines = [
        "| model | Mflop per token | tokens a second and GPU | hours for 1 G tokens on 1 GPU | on 8 | on 64 |",
        "|---|---|---|---|---|---|",
    ]
    rate = measured()["flops"]
    for size in SIZES:
        tokens = rate / size.flops_per_token()
        hours = [1e9 / tokens / 3600 / gpus for gpus in (1, 8, 64)]
        cells = [
            size.name,
            f"{size.flops_per_token() / 1e6:,.0f}",
            f"{tokens:,.0f}",
            *(f"{h:,.{2 if h < 10 else 0}f}" for h in hours),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check_line() -> str:
    """The arithmetic beside the one peak that was measured."""
    computed, peak = SIZES[0].peak_bytes(again=False), measured()["peak"]
    return (
        f"For roberta-base the arithmetic gives {_gib(computed)}, and {_gib(peak)} were measured "
        f"({100 * (computed / peak - 1):+.0f} %)."
    )


def _gib(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB"


def tables() -> str:
    return "\n\n".join([check_line(), memory_table(), time_table()])


if __name__ == "__main__":
    print(tables())
    sys.exit(0)
