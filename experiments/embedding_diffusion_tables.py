"""What the arms of `embedding_diffusion_study.py` found, as one JSON file, one page of Markdown and one picture."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from diffusion_mlm.visualization.colours import INK, PALE_INK

sys.path.insert(0, str(Path(__file__).parent))
from pictures import COLOURS, DASHES, new_figure, save, tidy

Arms = dict[str, dict[str, Any]]


def write_tables(output: str) -> None:
    """Puts together all arms that lie in the directory beside `output`; what is missing is left out."""
    path = Path(output)
    arms: Arms = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(path.with_suffix("").glob("*.json"))
    }
    replace(path, json.dumps(arms, indent=2, allow_nan=False) + "\n")
    replace(path.with_suffix(".md"), markdown(arms))


def replace(path: Path, text: str) -> None:
    """Writes a file as a whole: another arm may be writing it too."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:], ""]


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def steps_of(point: dict[str, Any]) -> int:
    """The forwards that there might be at most; earlier figures tell those that there were."""
    return point.get("steps", point["forwards"])


def valid_share(point: dict[str, Any]) -> str:
    early = f" ({point['forwards']:.1f})" if point["forwards"] < steps_of(point) - 0.05 else ""
    return share(point["valid_share"]) + early


def markdown(arms: Arms) -> str:
    """All figures as tables."""
    lines = ["# Continuous against masked diffusion on the stories", "", "Made by", "", "```"]
    lines += [str(arm["command"]) for arm in arms.values()] + ["```", ""]
    devices = sorted({arm["device"] for arm in arms.values()})
    lines += [f"on {', '.join(devices)}. Valid stories: the share that the grammar accepts.", ""]
    lines += ["## Valid stories at equal forwards", ""]
    lines += ["In brackets the mean number of forwards where texts were done before their steps.", ""]
    forwards = sorted({steps_of(at) for arm in arms.values() for way in arm.get("writing", {}).values() for at in way})
    rows = []
    for name, arm in arms.items():
        for way, points in arm.get("writing", {}).items():
            cells = {steps_of(point): valid_share(point) for point in points}
            rows.append([name, way, *(cells.get(at, "") for at in forwards)])
    lines += table(["model", "sampler", *(str(at) for at in forwards)], rows)
    lines += ["## What was trained", ""]
    rows = []
    for name, arm in arms.items():
        training, embeddings = arm.get("training", {}), arm.get("embeddings", {})
        below = arm.get("curve_below_lookup", {})
        rows.append(
            [
                name,
                f"{arm.get('parameters', 0):,}",
                f"{training.get('stories', 0):,}" if training else "",
                number(training.get("seconds"), 0),
                number(arm.get("bound", {}).get("nats_per_token")),
                share(below.get("greatest_share_of_lookup")),
                number(embeddings.get("nearest_neighbor")),
                number(embeddings.get("embedding_norm"), 2),
            ]
        )
    head = ["model", "parameters", "stories seen", "seconds", "bound, nats per token"]
    head += ["CE of the lookup's, at most, in the middle band"]
    lines += table([*head, "nearest neighbour / norm", "norm"], rows)
    for name, arm in arms.items():
        if "curve" in arm:
            lines += [f"## Noise levels: {name}", ""]
            curve, again = arm["curve"], arm.get("curve_self_conditioned", {})
            rows = [
                [
                    f"{level:.1f}",
                    number(curve["lookup_cross_entropy"][at]),
                    number(curve["cross_entropy"][at]),
                    number(again["cross_entropy"][at]) if again else "",
                    share(curve["lookup_accuracy"][at]),
                    share(curve["accuracy"][at]),
                    number(curve["lookup_eps_mse"][at], 4),
                    number(curve["eps_mse"][at], 4),
                ]
                for at, level in enumerate(curve["log_snr"])
            ]
            head = ["log-SNR", "CE lookup", "CE model", "CE self-conditioned", "right: lookup", "right: model"]
            lines += table([*head, "eps-MSE lookup", "eps-MSE model"], rows)
    return "\n".join(lines)


def picture(arms: Arms, output: str) -> None:
    """Cross-entropy by noise level beside the lookup, and valid stories by forwards."""
    figure = new_figure(
        "Continuous diffusion on the stories",
        "Left: thin lines know no context. Right: 95 % intervals; the best sampler of each.",
        11.5,
        4.4,
    )
    left, right = figure.subplots(1, 2)
    for place, (name, arm) in enumerate(arms.items()):
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        if "curve" in arm:
            curve = arm["curve"]
            left.plot(curve["log_snr"], curve["cross_entropy"], label=name, linewidth=2, **look)
            left.plot(curve["log_snr"], curve["lookup_cross_entropy"], linewidth=0.8, **look)
        if "writing" in arm:
            best = max(arm["writing"].values(), key=lambda points: sum(point["valid_share"] for point in points))
            points = sorted(best, key=steps_of)
            x, y = [steps_of(point) for point in points], [100 * point["valid_share"] for point in points]
            ends = [[100 * end for end in point["valid_interval"]] for point in points]
            errors = [
                [max(at - low, 0) for at, (low, _) in zip(y, ends, strict=True)],
                [max(high - at, 0) for at, (_, high) in zip(y, ends, strict=True)],
            ]
            right.errorbar(x, y, yerr=errors, label=name, linewidth=2, capsize=2, **look)
    tidy(left, "cross-entropy of held-out stories", "log-SNR   (left: noise, right: clear)", "nats per token")
    left.set_ylim(0, 5)
    tidy(right, "stories that the grammar accepts", "forwards at most", "%")
    right.set_xscale("log", base=2)
    right.set_ylim(0, 101)
    for panel in (left, right):
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8, labelcolor=INK)
        panel.axhline(0, color=PALE_INK, linewidth=0.6)
    save(figure, output)


def main(argv: list[str]) -> int:
    output = argv[0] if argv else "results/embedding_diffusion.json"
    write_tables(output)
    picture(json.loads(Path(output).read_text(encoding="utf-8")), str(Path(output).with_suffix(".png")))
    return 0


if __name__ == "__main__":
    from pictures import run_script

    run_script(main)
