"""The two sides of `generation.py`: a plain loop that stands for the samplers of today, and the shipped engine."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from training import SHAPES, tokenizer_of  # a neighbour, not a package

from diffusion_mlm import DiffusionGenerationConfig
from diffusion_mlm.canvas import Canvas
from diffusion_mlm.filling import fill_canvases
from diffusion_mlm.modeling import logits_at
from diffusion_mlm.precision import compile_layers, set_precision

_TELLING = {"embeddings": 10, "query": 5, "key": 5}  # times the usual standard deviation
OURS, AGAIN, PLAIN = "ours", "ours again", "plain loop"


@dataclass(frozen=True)
class Row:
    """What one line of the table compares.

    The rule: `greedy`, by confidence; `confidence`, of tokens drawn at T = 1; `random` places, tokens drawn at T = 1.
    The formats of both sides: float32, bfloat16; int8 on ours.
    """

    shape: str
    batch_size: int
    prompt: int
    new: int
    steps: int
    rule: str
    ours: str
    plain: str

    @property
    def name(self) -> str:
        size = f"{self.prompt}+{self.new}"
        return "-".join([self.shape, f"b{self.batch_size}", size, self.rule, self.ours, self.plain])

    @property
    def counts(self) -> int:
        """Positions that a step reveals."""
        return self.new // self.steps


def build(shape: str | dict[str, int], length: int, device: str) -> RobertaForMaskedLM:
    """A RoBERTa with random weights by which positions and prompts differ in what is predicted.

    At one standard deviation for all matrices, texts are alike whatever the prompt (0.02), or positions are (0.2).
    """
    size = SHAPES[shape] if isinstance(shape, str) else shape
    torch.manual_seed(0)
    config = RobertaConfig(
        **size,
        intermediate_size=4 * size["hidden_size"],
        max_position_embeddings=length + 2,
        type_vocab_size=1,
        initializer_range=0.02 * (768 / size["hidden_size"]) ** 0.5,
    )
    with torch.device(device):
        model = RobertaForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and any(part in name for part in _TELLING):
                weight.mul_(next(times for part, times in _TELLING.items() if part in name))
    return model


@torch.no_grad()
def plain_loop(
    model: nn.Module, canvas: Tensor, row: Row, mask_id: int, forbidden: list[int], seed: int = 0
) -> Tensor:
    """Fills the masks of a canvas, `(B, L)`, in the way of today's samplers."""
    canvas = canvas.clone()
    generator = torch.Generator(canvas.device).manual_seed(seed)
    for _ in range(row.steps):
        logits = model(input_ids=canvas).logits  # (B, L, V)
        logits[..., forbidden] = -torch.inf
        if row.rule == "greedy":
            tokens = logits.argmax(-1)
        else:
            noise = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
            tokens = (logits.double() - (-noise.log()).log()).argmax(-1)
        if row.rule == "random":
            confidence = torch.rand(tokens.shape, device=logits.device, generator=generator)
        else:
            confidence = torch.softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        confidence = confidence.masked_fill(canvas.ne(mask_id), -torch.inf)
        for number in range(len(canvas)):
            places = confidence[number].topk(row.counts).indices
            canvas[number, places] = tokens[number, places]
    return canvas


def our_engine(model: nn.Module, tokenizer: RobertaTokenizerFast, canvas: Tensor, row: Row, seed: int = 0) -> Tensor:
    """The same by what `generate` calls once it has ids."""
    config = DiffusionGenerationConfig(
        steps=row.steps,
        schedule="linear",
        order="random" if row.rule == "random" else "confidence",
        order_from="sample" if row.rule == "confidence" else "distribution",
        sampling="greedy" if row.rule == "greedy" else "nucleus",
        top_p=1.0,
    )
    to_fill = canvas.eq(tokenizer.mask_token_id)
    canvases = [
        Canvas(ids, fill, [not filled for filled in fill], seed + number)
        for number, (ids, fill) in enumerate(zip(canvas.tolist(), to_fill.tolist(), strict=True))
    ]
    for step in fill_canvases(model, tokenizer, canvases, config):
        filled = step.canvas
    return filled


class Bench:
    """Models, canvases and both ways to fill them, for the rows of one process."""

    def __init__(self, device: str, torch_compile: bool = False, shapes: dict[str, dict[str, int]] = SHAPES) -> None:
        self.device, self.torch_compile, self.shapes = device, torch_compile, shapes
        self.models: dict[tuple[str, str, bool, bool], nn.Module] = {}
        self.rates: dict[str, float] = {}

    def tokenizer(self, row: Row) -> RobertaTokenizerFast:
        return tokenizer_of(self.shapes[row.shape]["vocab_size"], 512)

    def model(self, shape: str, dtype: str, ours: bool, compiled: bool = False) -> nn.Module:
        """Ours as `generate` prepares it, and the plain loop's as it is."""
        key = (shape, dtype, ours, compiled)
        if key not in self.models:
            model = build(self.shapes[shape], 512, self.device)
            model = set_precision(model, dtype) if ours else model.to(getattr(torch, dtype))
            self.models[key] = compile_layers(model) if compiled else model
            with torch.no_grad():  # what is found out once about a model is none of the work that is counted
                ids = torch.full((1, 2), 5, device=self.device)
                logits_at(self.models[key], ids.eq(5), input_ids=ids)
        return self.models[key]

    def canvas(self, row: Row, seed: int = 0) -> Tensor:
        vocab_size = self.shapes[row.shape]["vocab_size"]
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(4, vocab_size - 1, (row.batch_size, row.prompt), generator=generator)
        masks = torch.full((row.batch_size, row.new), vocab_size - 1)  # where `tokenizer_of` has the mask
        return torch.cat([prompt, masks], dim=1).to(self.device)

    def variants(self, row: Row) -> dict[str, Callable[[Tensor], Tensor]]:
        tokenizer = self.tokenizer(row)
        ours = self.model(row.shape, row.ours, True, self.torch_compile or row.ours == "int8")
        plain = self.model(row.shape, row.plain, False)
        forbidden = sorted(tokenizer.all_special_ids)

        def run_ours(canvas: Tensor) -> Tensor:
            return our_engine(ours, tokenizer, canvas, row)

        def run_plain(canvas: Tensor) -> Tensor:
            return plain_loop(plain, canvas, row, int(tokenizer.mask_token_id), forbidden)

        return {PLAIN: run_plain, OURS: run_ours, AGAIN: run_ours}

    def compare(self, row: Row) -> dict[str, Any]:
        """Runs both once: the work each does, and how far their texts agree.

        Raises:
            RuntimeError: greedy texts of float32 differ, do not depend on the prompt, or hold masks; or the forwards
                differ in number.
        """
        variants, canvas = self.variants(row), self.canvas(row)
        found, work = {}, {}
        compiled = self.torch_compile or row.ours == "int8"
        for name, which in ((PLAIN, (row.plain, False)), (OURS, (row.ours, True, compiled))):
            with counted(self.model(row.shape, *which)) as counts:
                found[name] = variants[name](canvas).cpu()
            work[name] = dict(counts)
        agreement = float((found[OURS] == found[PLAIN])[:, row.prompt :].float().mean())
        mask_id = int(self.tokenizer(row).mask_token_id)
        if any(bool(ids.eq(mask_id).any()) for ids in found.values()):
            raise RuntimeError(f"{row.name}: masks are left.")
        if work[OURS]["forwards"] != work[PLAIN]["forwards"]:
            raise RuntimeError(
                f"{row.name}: {work[OURS]['forwards']} forwards, the plain loop {work[PLAIN]['forwards']}."
            )
        exact = row.rule == "greedy" and row.ours == row.plain == "float32"
        if exact:
            other = variants[OURS](self.canvas(row, seed=1))
            changed = float((other != found[OURS])[:, row.prompt :].float().mean())
            if agreement < 1 or changed < 0.2:
                raise RuntimeError(
                    f"{row.name}: {agreement:.2%} of the tokens are those of the plain loop, and another prompt "
                    f"changes {changed:.2%} of them."
                )
        return {"equal_tokens": agreement if row.rule == "greedy" else None, "work": work}


class counted:
    """Counts the rows that encoder and head of a model see."""

    def __init__(self, model: Any) -> None:
        self.model, self.counts = model, {"forwards": 0, "encoder_positions": 0, "head_rows": 0}

    def __enter__(self) -> dict[str, int]:
        def encoder(_module: nn.Module, args: Any, output: Tensor) -> None:
            self.counts["forwards"] += len(output)
            self.counts["encoder_positions"] += output.shape[:2].numel()

        def head(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.counts["head_rows"] += args[0].shape[:-1].numel()

        self.handles = [
            self.model.roberta.embeddings.register_forward_hook(encoder),
            self.model.lm_head.register_forward_pre_hook(head),
        ]
        return self.counts

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
