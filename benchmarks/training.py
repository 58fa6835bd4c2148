"""Speed of training: `DiffusionTrainer` beside the plain `Trainer`, which computes the logits of every position.

    python benchmarks/training.py --shape small --output results/training_speed.json
    python benchmarks/training.py --shape base --length 512 --batch-size 32 --bf16   # on a GPU

Both train the same weights on the same rows, masked by the same rule, with the same optimizer (fused AdamW), through
`trainer.train()`; a step is what lies between two `on_step_end`. The variants take turns, the baseline under two
names: the ratio of these two is what noise does, and nothing below it is a difference. `x_floor` is the time of a step
over that of its matrix products at the best rate the machine reached in the same run. Before anything is timed, the
logits of masked rows must equal the full ones there.

Memory on a GPU is the most that was allocated (`peak_mib`). On a CPU each variant trains a few steps once more, in a
process of its own, and `peak_mib_above_model` is how far the resident memory rose above what it was when the model was
built; the difference of the two baselines is noise here too.
"""

import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from diffusion_mlm import DataCollatorForMaskedDiffusion, DiffusionTrainer, DiffusionTrainingArguments
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.modeling import logits_at

SHAPES = {
    "small": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 8192},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "vocab_size": 50265},
}
WARM_UP = 3  # steps of a turn that are not timed
MEMORY_STEPS = 3  # from the first on the optimizer has its averages; later ones meet fragmented memory
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


@dataclass
class TrainingBenchmarkArguments:
    """What is timed."""

    shape: str = field(default="small", metadata={"help": "Size of the model.", "choices": list(SHAPES)})
    length: int = field(default=512, metadata={"help": "Tokens per row."})
    batch_size: int = field(default=4, metadata={"help": "Rows per step."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16, on both sides."})
    rounds: int = field(default=7, metadata={"help": "Turns of every variant."})
    steps: int = field(default=5, metadata={"help": "Timed steps per turn."})
    threads: int | None = field(default=None, metadata={"help": "Threads on the CPU: PyTorch's by default."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})


@dataclass
class Variant:
    """One side of the comparison, and the times of its steps in milliseconds, one median per turn."""

    ours: bool
    attention_dropout: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


class StepClock(TrainerCallback):
    """Wall-clock and process time of every step after the warm-up, in seconds."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def medians(self) -> tuple[float, float]:
        """Milliseconds of a step: wall clock, and all threads of the process."""
        both = []
        for times in (self.wall, self.cpu):
            spans = [after - before for before, after in itertools.pairwise(times)][WARM_UP - 1 :]
            both.append(1000 * statistics.median(spans))
        return both[0], both[1]


def build(shape: str, length: int, attention_dropout: float) -> RobertaForMaskedLM:
    size = SHAPES[shape]
    torch.manual_seed(0)
    config = RobertaConfig(
        **size,
        intermediate_size=4 * size["hidden_size"],
        max_position_embeddings=length + 2,
        type_vocab_size=1,
        attention_probs_dropout_prob=attention_dropout,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # where random weights take no time
        model = RobertaForMaskedLM._from_config(config, attn_implementation="sdpa")
    model.accepts_loss_kwargs = False  # or the stock loss is wrong under accumulation
    return model


def tokenizer_of(vocab_size: int, length: int) -> RobertaTokenizerFast:
    """As many tokens as the model knows, special ones where RoBERTa has them; it never reads text here."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{index}" for index in range(4, vocab_size - 1)), "<mask>"]
    vocab = {word: index for index, word in enumerate(words)}
    return RobertaTokenizerFast(vocab=vocab, merges=[], model_max_length=length)


def rows_of(tokenizer: RobertaTokenizerFast, vocab_size: int, count: int, length: int) -> list[dict[str, list[int]]]:
    """Packed rows of random tokens; what they say does not matter here."""
    ids = torch.randint(4, vocab_size - 1, (count, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [{"input_ids": row} for row in ids.tolist()]


def run_turn(variant: Variant, args: TrainingBenchmarkArguments, tokenizer: RobertaTokenizerFast) -> None:
    """Trains for some steps and notes how long one takes."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(variant, args, tokenizer, WARM_UP + args.steps, directory, [clock])
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    wall, cpu = clock.medians()
    variant.wall.append(wall)
    variant.cpu.append(cpu)
    if torch.cuda.is_available():
        variant.peak_bytes = torch.cuda.max_memory_allocated()


def make_trainer(
    variant: Variant,
    args: TrainingBenchmarkArguments,
    tokenizer: RobertaTokenizerFast,
    steps: int,
    directory: str,
    callbacks: list[TrainerCallback],
) -> Trainer:
    rows = rows_of(tokenizer, SHAPES[args.shape]["vocab_size"], steps * args.batch_size, args.length)
    model = build(args.shape, args.length, variant.attention_dropout)
    training_args = DiffusionTrainingArguments(
        directory,
        per_device_train_batch_size=args.batch_size,
        max_steps=steps,
        bf16=args.bf16,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    everything: dict[str, Any] = {"model": model, "args": training_args, "train_dataset": rows}
    everything |= {"processing_class": tokenizer, "callbacks": callbacks}
    if variant.ours:
        trainer: Trainer = DiffusionTrainer(**everything)
    else:
        trainer = Trainer(**everything, data_collator=DataCollatorForMaskedDiffusion(tokenizer))
    trainer.remove_callback(PrinterCallback)
    return trainer


def resident_bytes(name: str) -> int:
    """Of this process: now (`VmRSS`) or the most since the last reset (`VmHWM`)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def peak_above_start(action: Callable[[], object]) -> int | None:
    """How many bytes the resident memory rises above what it is now; None where the system does not tell."""
    try:
        _CLEAR.write_text("5")  # sets the high-water mark to the memory of now
    except OSError:
        return None
    before = resident_bytes("VmRSS")
    action()
    return resident_bytes("VmHWM") - before


def measure_memory(variant: Variant, args: TrainingBenchmarkArguments) -> int | None:
    """The memory that training takes above the model, in the process that calls this."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    tokenizer = tokenizer_of(SHAPES[args.shape]["vocab_size"], args.length)
    with tempfile.TemporaryDirectory() as directory:
        return peak_above_start(make_trainer(variant, args, tokenizer, MEMORY_STEPS, directory, []).train)


def in_a_fresh_process(variant: Variant, args: TrainingBenchmarkArguments) -> int | None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure_memory, variant, args).result()


@torch.no_grad()
def require_equal_logits(args: TrainingBenchmarkArguments, device: str) -> float:
    """The largest relative difference between logits of chosen rows and full logits there.

    Raises:
        RuntimeError: they differ by more than 1e-5, or by no more where other rows were compared.
    """
    model = build(args.shape, args.length, 0.0).to(device).eval()
    ids = torch.randint(10, SHAPES[args.shape]["vocab_size"], (2, args.length), device=device)
    rows = torch.rand(ids.shape, device=device) < 0.5
    full, chosen = model(input_ids=ids).logits, logits_at(model, rows, input_ids=ids)

    def distance(other: Tensor) -> float:
        return float((chosen - other).norm() / chosen.norm())

    same, shifted = distance(full[rows]), distance(full.roll(1, 1)[rows])
    if same > 1e-5 or shifted < 1e-2:
        raise RuntimeError(f"Logits of chosen rows are off by {same:.1e}; those of other rows by {shifted:.1e}.")
    return same


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """The best of ten large matrix products, in floating-point operations a second."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def needed_flops(shape: str, length: int, batch_size: int, mask_rate: float = 0.5) -> float:
    """Of the matrix products of one step, which the backward pass does twice again.

    The encoder at every position; of its last layer keys and values only, all else at masked ones; the head there too.
    """
    size = SHAPES[shape]
    width, layers, vocab = size["hidden_size"], size["num_hidden_layers"], size["vocab_size"]
    tokens = batch_size * length
    layer = tokens * (24 * width**2 + 4 * length * width)
    last = tokens * 4 * width**2 + mask_rate * (layer - tokens * 4 * width**2)
    encoder = (layers - 1) * layer + last
    head = tokens * mask_rate * 2 * (width**2 + width * vocab)
    return 3 * (encoder + head)


def benchmark(args: TrainingBenchmarkArguments, report: Callable[[str], None]) -> dict[str, Any]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer = tokenizer_of(SHAPES[args.shape]["vocab_size"], args.length)
    error = require_equal_logits(args, device)
    variants = {
        "plain": Variant(ours=False, attention_dropout=0.1),
        "plain again": Variant(ours=False, attention_dropout=0.1),
        "ours": Variant(ours=True, attention_dropout=0.1),
        "plain, no attention dropout": Variant(ours=False, attention_dropout=0.0),
        "ours, no attention dropout": Variant(ours=True, attention_dropout=0.0),
    }
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    before = matmul_rate(dtype, device)
    for turn in range(args.rounds):
        for name in variants if turn % 2 == 0 else reversed(variants):
            run_turn(variants[name], args, tokenizer)
        report(f"turn {turn + 1}: " + ", ".join(f"{name} {v.wall[-1]:.1f} ms" for name, v in variants.items()))
    after = matmul_rate(dtype, device)
    if device == "cpu":
        for variant in variants.values():
            variant.peak_bytes = in_a_fresh_process(variant, args)

    floor = 1000 * needed_flops(args.shape, args.length, args.batch_size) / max(before, after)
    plain = statistics.median(variants["plain"].wall)
    memory = "peak_mib" if device == "cuda" else "peak_mib_above_model"
    table = {
        name: {
            "attention_dropout": variant.attention_dropout,
            "ms": statistics.median(variant.wall),
            "ms_least": min(variant.wall),
            "ms_most": max(variant.wall),
            "process_ms": statistics.median(variant.cpu),
            "tokens_per_second": 1000 * args.batch_size * args.length / statistics.median(variant.wall),
            "speed_over_plain": plain / statistics.median(variant.wall),
            "x_floor": statistics.median(variant.wall) / floor,
            memory: None if variant.peak_bytes is None else variant.peak_bytes / 2**20,
        }
        for name, variant in variants.items()
    }
    return {
        "shape": {"name": args.shape, **SHAPES[args.shape]},
        "length": args.length,
        "batch_size": args.batch_size,
        "dtype": "bfloat16 autocast" if args.bf16 else "float32",
        "rounds": args.rounds,
        "steps_per_turn": args.steps,
        "logits_relative_error": error,
        "matmul_tflops_before_after": [before / 1e12, after / 1e12],
        "needed_tflop_per_step": needed_flops(args.shape, args.length, args.batch_size) / 1e12,
        "variants": table,
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main(argv: list[str]) -> int:
    (args,) = parse([TrainingBenchmarkArguments], argv, "training benchmark")
    figures = benchmark(args, lambda line: print(line, file=sys.stderr, flush=True))
    for name, row in figures["variants"].items():
        print(
            f"{name:<28} {row['ms']:8.1f} ms  {row['tokens_per_second']:10.0f} tokens/s  "
            f"{row['speed_over_plain']:.2f} x plain  {row['x_floor']:.2f} x floor  "
            + "  ".join(f"{row[of]:.0f} MiB" for of in row if of.startswith("peak_mib") and row[of] is not None)
        )
    if args.output:
        Path(args.output).write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(report_error(error))
