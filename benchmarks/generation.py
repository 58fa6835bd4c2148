"""Speed of generation: the shipped engine beside a plain loop that stands for the samplers of today.

    python benchmarks/generation.py --rows 'small-*-float32-float32' --output results/generation_small.json
    python benchmarks/generation.py --rows 'base-b8-16+64-greedy-*' --max-seconds 250 --output results/base.json
    python benchmarks/generation.py --device cuda --rows '*-greedy-bfloat16-bfloat16' --output results/gpu.json
    python benchmarks/generation.py --table results/generation_*.json --output results/generation_speed.md

The plain loop asks for the logits of every position at every step, draws from them by float64 Gumbel noise over the
vocabulary and picks places row by row. Both fill the same canvases with the same weights, by the same rule, in the
same number of forwards. In float32 the greedy texts must be equal, token for token, and another prompt must change
them, or nothing is timed; the weights are random, of such sizes that texts depend on prompts.

The variants take turns, ours under two names: the ratio of these two is what noise does, and nothing below it is a
difference. Seconds are of all threads of the process (one by default) on a CPU, of the wall clock on a GPU. `x_floor`
is the time over that of the matrix products that are needed, at the best rate the machine reached in the same run:
those of the encoder at every position, of its last layer and the head where a token may come.
"""

import fnmatch
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from generation_sides import AGAIN, OURS, PLAIN, Bench, Row  # a neighbour, not a package

from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rows_of_table() -> list[Row]:
    """All rows; `--rows` chooses among them."""
    dtypes = [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("int8", "float32")]
    steps = {("small", 1): 16, ("small", 8): 16, ("small", 16): 8, ("base", 1): 16, ("base", 8): 4, ("base", 16): 4}
    return [
        Row(shape, batch_size, prompt, new, number, rule, *both)
        for prompt, new in ((16, 64), (128, 128))
        for (shape, batch_size), number in steps.items()
        for rule in ("greedy", "confidence", "random")
        for both in dtypes
    ]


@dataclass
class GenerationBenchmarkArguments:
    """What is timed."""

    rows: list[str] = field(
        default_factory=lambda: ["small-b*-16+64-greedy-float32-float32"],
        metadata={"help": "Names of rows, or patterns of names; --list-rows shows them."},
    )
    list_rows: bool = field(default=False, metadata={"help": "Print the names of all rows."})
    device: str = field(default="cpu", metadata={"help": "Where.", "choices": ["cpu", "cuda"]})
    threads: int = field(default=1, metadata={"help": "Threads on the CPU."})
    rounds: int = field(default=7, metadata={"help": "Turns of every variant."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "No turn begins later than that; each row gets its share. (default: no limit)"}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the layers, on our side."})
    output: str | None = field(default=None, metadata={"help": "File to write: JSON, or Markdown with --table."})
    table: list[str] = field(
        default_factory=list, metadata={"help": "Time nothing: make one table of these JSON files."}
    )


def needed_flops(size: dict[str, int], row: Row, head_rows: int) -> float:
    """Of the matrix products that `head_rows` distributions take in all steps; see the head of this file."""
    width, layers, vocab = size["hidden_size"], size["num_hidden_layers"], size["vocab_size"]
    length = row.prompt + row.new
    positions = row.steps * row.batch_size * length
    whole_layers = positions * (layers - 1) * (24 * width**2 + 4 * length * width)
    last_layer = positions * 4 * width**2 + head_rows * (20 * width**2 + 4 * length * width)
    return whole_layers + last_layer + head_rows * 2 * (width**2 + width * vocab)


def timed(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of the wall clock, and of all threads of the process."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """Memory that a call needs beyond what there is before it, in MiB; None where the system does not tell."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(
    bench: Bench, row: Row, rounds: int, seconds: float, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Times one row, and reports after every round what is known by then."""
    deadline = time.perf_counter() + seconds
    facts = bench.compare(row)
    variants, canvas = bench.variants(row), bench.canvas(row)
    peaks = {name: peak_mib(lambda name=name: variants[name](canvas), bench.device) for name in (PLAIN, OURS)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    clock = 0 if bench.device == "cuda" else 1
    rates = [gemm_rate(row.ours, bench.device)]
    longest = 0.0
    for turn in range(rounds):
        if turn > 0 and time.perf_counter() + longest > deadline:
            break
        start = time.perf_counter()
        for name in variants if turn % 2 == 0 else reversed(variants):
            times[name].append(timed(lambda name=name: variants[name](canvas), bench.device))
        longest = time.perf_counter() - start
        result = {**asdict(row), "name": row.name, "device": bench.device, "compiled": bench.torch_compile, **facts}
        result |= summary(bench, row, times, clock, rates, facts["work"][OURS]["head_rows"])
        result["peak_mib"] = peaks
        report(result)
    rates.append(gemm_rate(row.ours, bench.device))
    result |= summary(bench, row, times, clock, rates, facts["work"][OURS]["head_rows"])
    report(result)
    return result


def gemm_rate(dtype: str, device: str) -> float | None:
    """The best of ten large matrix products, in operations a second, by the clock of the rows; None for int8."""
    if dtype not in DTYPES:
        return None
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device)[device == "cpu"] for _ in range(10))


def summary(
    bench: Bench,
    row: Row,
    times: dict[str, list[tuple[float, float]]],
    clock: int,
    rates: list[float | None],
    head_rows: int,
) -> dict[str, Any]:
    """Medians, and ratios that are medians of the ratios within a round."""

    def ratio(above: str, below: str, which: int = clock) -> float:
        pairs = zip(times[above], times[below], strict=True)
        return statistics.median(first[which] / second[which] for first, second in pairs)

    flops = needed_flops(bench.shapes[row.shape], row, head_rows)
    known = [rate for rate in rates if rate is not None]
    seconds = {name: statistics.median(pair[clock] for pair in pairs) for name, pairs in times.items()}
    return {
        "rounds": len(times[OURS]),
        "seconds": seconds,
        "seconds_least": {name: min(pair[clock] for pair in pairs) for name, pairs in times.items()},
        "seconds_most": {name: max(pair[clock] for pair in pairs) for name, pairs in times.items()},
        "wall_seconds": {name: statistics.median(pair[0] for pair in pairs) for name, pairs in times.items()},
        "tokens_per_second": {name: row.batch_size * row.new / value for name, value in seconds.items()},
        "speed_over_plain": ratio(PLAIN, OURS),
        "wall_speed_over_plain": ratio(PLAIN, OURS, 0),
        "ours_against_itself": ratio(AGAIN, OURS),
        "needed_gflop": flops / 1e9,
        "matmul_gflops_before_after": [rate / 1e9 for rate in known],
        "x_floor": seconds[OURS] * max(known) / flops if known else None,
        "load": os.getloadavg()[0],
    }


def machine(device: str) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def benchmark(args: GenerationBenchmarkArguments) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    chosen = [row for row in rows_of_table() if any(fnmatch.fnmatchcase(row.name, name) for name in args.rows)]
    if not chosen:
        raise ValueError(f"`--rows` {' '.join(args.rows)} is none of the rows: --list-rows shows them.")
    bench, figures = Bench(args.device, args.torch_compile), {"machine": machine(args.device), "rows": []}
    end = time.perf_counter() + (args.max_seconds if args.max_seconds is not None else float("inf"))
    failed: list[str] = []
    for number, row in enumerate(chosen):
        figures["rows"].append(None)

        def report(result: dict[str, Any]) -> None:
            figures["rows"][-1] = result
            write(args.output, json.dumps(figures, indent=2, allow_nan=False) + "\n")
            print(line_of(result), file=sys.stderr, flush=True)

        try:
            measure(bench, row, args.rounds, (end - time.perf_counter()) / (len(chosen) - number), report)
        except (RuntimeError, ImportError) as error:  # the other rows may yet be measured
            failed.append(f"{row.name}: {' '.join(str(error).split())[:300]}")
            print(failed[-1], file=sys.stderr, flush=True)
    if failed:
        raise RuntimeError(" ".join(failed))
    return figures


def line_of(result: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.3f}" for name, value in result["seconds"].items())
    floor = "" if result["x_floor"] is None else f", {result['x_floor']:.2f} x floor"
    return (
        f"{result['name']}: {result['rounds']} rounds, {result['speed_over_plain']:.2f} x plain "
        f"(A/A {result['ours_against_itself']:.2f}){floor}; s: {seconds}"
    )


def write(path: str | None, text: str) -> None:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")


def table_of(files: Iterable[str]) -> str:
    """One Markdown table of what several runs measured."""
    head = (
        "| shape | batch | tokens | rule | forwards | ours / plain | tokens/s ours | speed over plain | A/A | x floor "
        "| equal tokens | head rows ours / plain | peak MiB ours / plain | rounds | load | machine |"
    )
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for name in files:
        figures = json.loads(Path(name).read_text(encoding="utf-8"))
        where = figures["machine"]
        described = f"{where['device']}, {where['threads']} thread, torch {where['torch']}"
        for row in filter(None, figures["rows"]):
            work, peaks = row["work"], row["peak_mib"]
            known = [row["ours"] + (", compiled" if row["compiled"] else ""), row["plain"]]
            cells = [
                row["shape"],
                row["batch_size"],
                f"{row['prompt']} + {row['new']}",
                row["rule"],
                work[OURS]["forwards"],
                " / ".join(known),
                f"{row['tokens_per_second'][OURS]:.0f}",
                f"{row['speed_over_plain']:.2f}",
                f"{row['ours_against_itself']:.2f}",
                "" if row["x_floor"] is None else f"{row['x_floor']:.2f}",
                "" if row["equal_tokens"] is None else f"{row['equal_tokens']:.1%}",
                f"{work[OURS]['head_rows']} / {work[PLAIN]['head_rows']}",
                " / ".join("" if peaks[key] is None else f"{peaks[key]:.0f}" for key in (OURS, PLAIN)),
                row["rounds"],
                f"{row['load']:.1f}",
                described,
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    (args,) = parse([GenerationBenchmarkArguments], argv, "generation benchmark")
    if args.list_rows:
        print("\n".join(row.name for row in rows_of_table()))
    elif args.table:
        text = table_of(args.table)
        write(args.output, text)
        print(text, end="")
    else:
        for result in benchmark(args)["rows"]:
            print(line_of(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(report_error(error))
