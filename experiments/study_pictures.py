"""The table and the pictures of `from_scratch_study.py`."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from diffusion_mlm.evaluation.interval import student_quantile

sys.path.insert(0, str(Path(__file__).parent))
from pictures import COLOURS, DASHES, new_figure, save, tidy
from scratch_table import paired_difference

Run = dict[str, Any]
PALE = "#9a9a9a"


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each arm, in their order."""
    return {name: [run for run in runs if run["arm"] == name] for name in dict.fromkeys(run["arm"] for run in runs)}


def mean_and_reach(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and half its 95 % interval (Student), which one seed has not."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), student_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def differences(arm: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """Bits per byte of an arm less those of the base, for each seed that both have."""
    of_base = {run["seed"]: run["bound"]["bits_per_byte"] for run in base}
    return [run["bound"]["bits_per_byte"] - of_base[run["seed"]] for run in arm if run["seed"] in of_base]


def as_markdown(runs: Sequence[Run]) -> str:
    """One line for each arm, then what steps and remasking do to the texts of the base."""
    arms = by_arm(runs)
    base = arms.get("base", [])
    lines = [
        "| arm | seeds | bits per byte | against base | over rows | nats per token | known words | parameters | "
        "tokens | text seen | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of_arm in arms.items():
        found = differences(of_arm, base) if name != "base" else []
        words = [
            run["samples"]["known_words"] for run in of_arm if run.get("samples", {}).get("known_words") is not None
        ]
        cut = any(run["training"]["steps"] < run["training"]["steps_planned"] for run in of_arm)
        cells = [
            name + (" (cut short)" if cut else ""),
            str(len(of_arm)),
            _with_reach([run["bound"]["bits_per_byte"] for run in of_arm]),
            _with_reach(found, "+") if found else "",
            _over_rows(of_arm, base) if name != "base" else "",
            f"{fmean(run['bound']['nats_per_token'] for run in of_arm):.3f}",
            f"{fmean(words):.0%}" if words else "",
            f"{of_arm[0]['parameters']:,}",
            f"{of_arm[0]['training']['tokens']:,}",
            f"{fmean(run['training']['passes'] for run in of_arm):.1f} times",
            f"{fmean(run['training']['seconds'] for run in of_arm) / 60:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Bits per byte of held-out text (bound; lower is better). ±: half the 95 % interval over seeds. Over rows: "
        "the difference in nats per token of the first seed, in pairs over rows, with its 95 % interval. "
        f"Machine: {', '.join(dict.fromkeys(run['machine'] for run in runs))}.",
    ]
    writing = _writing(base)
    if writing:
        heads = ("steps", "remasking", "known words", "of 4 letters or more", "forwards", "distinct 3-grams")
        lines += ["", f"| {' | '.join(heads)} |", "|---:|---|---:|---:|---:|---:|"]
        for (steps, remask), found in writing.items():
            distinct = [one["distinct_3"] for one in found if one["distinct_3"] is not None]
            shown = [
                str(steps),
                remask,
                _share(found, "known_words"),
                _share(found, "known_long_words"),
                f"{fmean(one['forwards'] for one in found):.0f}",
                f"{fmean(distinct):.2f}" if distinct else "",
            ]
            lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _with_reach(values: Sequence[float], sign: str = "") -> str:
    mean, reach = mean_and_reach(values)
    return f"{mean:{sign}.4f}" + ("" if reach is None else f" ± {reach:.4f}")


def _over_rows(arm: Sequence[Run], base: Sequence[Run]) -> str:
    pairs = ((run, other) for run in arm for other in base if run["seed"] == other["seed"])
    for run, other in pairs:
        paired = paired_difference(other, run)
        if paired is not None and paired.interval is not None:
            return f"{paired.value:+.4f} [{paired.interval[0]:+.4f}, {paired.interval[1]:+.4f}]"
    return ""


def _share(found: Sequence[Run], name: str) -> str:
    shares = [one[name] for one in found if one[name] is not None]
    return f"{fmean(shares):.0%}" if shares else ""


def _writing(base: Sequence[Run]) -> dict[tuple[int, str], list[Run]]:
    """What was written, by number of steps and remasking."""
    found: dict[tuple[int, str], list[Run]] = {}
    for run in base:
        for one in run.get("writing", []):
            found.setdefault((one["settings"]["steps"], one["settings"]["remask"]), []).append(one)
    return found


# Pictures


def draw(runs: Sequence[Run], target: Path) -> None:
    """Three pictures; `{}` in the name of the target is the name of each."""
    draw_bounds(runs, str(target).format("bounds"))
    draw_curves(runs, str(target).format("mask_rates"))
    if _writing([run for run in runs if run["arm"] == "base"]):
        draw_writing([run for run in runs if run["arm"] == "base"], str(target).format("writing"))


def draw_bounds(runs: Sequence[Run], output: str) -> None:
    """Bits per byte of each arm: a dot for each seed, a mark and an interval for their mean."""
    arms = by_arm(runs)
    note = f"{runs[0]['tokens']:,} tokens of {runs[0]['text']} each; bars: 95 % over seeds."
    figure = new_figure("What changes the bound", note, 7.5, 1.6 + 0.32 * len(arms))
    panel = figure.subplots()
    for place, (name, of_arm) in enumerate(arms.items()):
        bits = [run["bound"]["bits_per_byte"] for run in of_arm]
        mean, reach = mean_and_reach(bits)
        colour = COLOURS[1] if name == "base" else COLOURS[0]
        panel.plot(bits, [place] * len(bits), "o", color=colour, markersize=4, alpha=0.45)
        panel.errorbar(mean, place, xerr=reach, fmt="D", color=colour, markersize=5, capsize=3)
    if "base" in arms:
        panel.axvline(
            fmean(run["bound"]["bits_per_byte"] for run in arms["base"]),
            color=PALE,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
    panel.set_yticks(range(len(arms)), list(arms))
    panel.invert_yaxis()
    tidy(panel, "", "bits per byte of held-out text, lower is better", "", grid="x")
    save(figure, output)


def draw_curves(runs: Sequence[Run], output: str) -> None:
    """The loss at each tenth of the mask rates, less that of the base where tokens are the same."""
    arms = by_arm(runs)
    figure = new_figure("Where the loss is", "Nats per masked token of held-out text, mean over seeds.", 10.5, 4.4)
    left, right = figure.subplots(1, 2)
    means = {
        name: [
            (rate, fmean(run["loss_by_mask_rate"][i][1] for run in of_arm))
            for i, (rate, _) in enumerate(of_arm[0]["loss_by_mask_rate"])
        ]
        for name, of_arm in arms.items()
    }
    base = dict(means.get("base", []))
    for place, (name, curve) in enumerate(means.items()):
        style = {"color": COLOURS[place % 6], "linestyle": DASHES[(place // 6 + place) % 6], "linewidth": 1.6}
        left.plot(*zip(*curve, strict=True), label=name, **style)
        same = arms[name][0]["vocabulary"] == arms["base"][0]["vocabulary"] if "base" in arms else False
        if same and name != "base":
            points = [(rate, nats - base[rate]) for rate, nats in curve if rate in base]
            right.plot(*zip(*points, strict=True), label=name, **style)
    right.axhline(0, color=PALE, linewidth=1)
    tidy(left, "loss", "mask rate, upper end of a tenth", "nats per masked token")
    tidy(right, "less that of the base", "mask rate, upper end of a tenth", "nats per masked token")
    left.legend(fontsize=7, frameon=False, ncols=2)
    save(figure, output)


def draw_writing(base: Sequence[Run], output: str) -> None:
    """Known long words against the number of steps, with and without remasking; and the bound of the samplers."""
    figure = new_figure("How many steps writing takes", "Texts from nothing by the base; mean over seeds.", 10.5, 4.2)
    left, right = figure.subplots(1, 2)
    writing = _writing(base)
    for place, remask in enumerate(dict.fromkeys(remask for _, remask in writing)):
        points = [
            (steps, 100 * fmean(one["known_long_words"] or 0 for one in found))
            for (steps, rule), found in writing.items()
            if rule == remask
        ]
        left.plot(
            *zip(*points, strict=True),
            label=remask,
            color=COLOURS[place],
            linestyle=DASHES[place],
            marker="o",
            markersize=4,
        )
    steps: dict[int, list[float]] = {}
    for run in base:
        for one in run.get("bound_of_steps", []):
            steps.setdefault(one["steps"], []).append(one["nats_per_token"])
    if steps:
        right.plot(list(steps), [fmean(nats) for nats in steps.values()], color=COLOURS[0], marker="o", markersize=4)
    numbers = sorted({number for number, _ in writing})
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xticks(numbers, [str(number) for number in numbers])
        panel.minorticks_off()
    left.set_ylim(bottom=0)
    tidy(left, "words of 4 letters or more that the training text holds, %", "steps", "")
    tidy(right, "bound of the sampler: random order, linear schedule", "steps", "nats per token")
    left.legend(fontsize=8, frameon=False, title="remasking", title_fontsize=8)
    save(figure, output)
