"""The rows of `from_scratch.py` in one file, and their table."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_mlm.evaluation.interval import RatioEstimate, ratio_estimate

Row = dict[str, Any]
_HEADS = (
    "recipe", "size, tokens", "authors report", "same settings", "our defaults", "difference", "words of the training "
    "text", "parameters", "tokens seen", "minutes", "machine",
)  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Replaces a file in one go: whoever reads it while others write finds one version or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fresh.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def collect(output: Path) -> str:
    """Puts the runs beside `output` into it, and their table into a Markdown file of that name; returns the table.

    Runs that it holds already and that are not beside it, made on another machine, stay.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.with_suffix("").glob("*.json"))]
    fresh = {_key(row): row for row in found if "bound" in row}  # the others are being made, or were cut short
    before = json.loads(output.read_text(encoding="utf-8"))["rows"] if output.is_file() else []
    for row in before:  # a difference to what was made anew is no longer true
        known = row.get("less_than", {})
        row["less_than"] = {name: of for name, of in known.items() if (*_key(row)[:5], name) not in fresh}
    rows = list(({_key(row): row for row in before} | fresh).values())
    for row in fresh.values():
        row["less_than"] = {  # for when the nats of every row of text, which are not collected, are gone
            of["setting"]: [paired.value, *(paired.interval or ())]
            for of in fresh.values()
            if _key(of)[:5] == _key(row)[:5] and of is not row and (paired := paired_difference(of, row)) is not None
        }
    lean = [{name: value for name, value in row.items() if name != "rows"} for row in rows]
    for row in lean:
        row["training"] = {name: value for name, value in row["training"].items() if name != "losses"}
    write_json(output, {"rows": lean})
    table = as_markdown(rows)
    output.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    return table


def _key(row: Row) -> tuple[Any, ...]:
    return (row["recipe"], row["characters"], row["size"], row["text"]["name"], row["seed"], row["setting"])


def as_markdown(rows: Sequence[Row]) -> str:
    """What the authors report, what their settings give here, and what ours give, for each recipe, size and text."""
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = (row["recipe"], row["characters"], row["size"], row["text"]["name"])
        groups[key][row["setting"]].append(row)
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    for (recipe, characters, size, text), settings in groups.items():
        ours = settings.get("ours", [])
        for name in [name for name in settings if name != "ours"] or ["theirs"]:
            theirs = settings.get(name, [])
            both = [*theirs, *ours]
            cells = [
                recipe + ("" if name == "theirs" else f" ({name.replace('_', ' ')})"),
                f"{size}, {'characters' if characters else 'BPE' if text != 'stories' else 'words'} of {text}",
                both[0]["reported"],
                _bounds(theirs),
                _bounds(ours),
                _difference(theirs, ours),
                " / ".join(filter(None, (_words(theirs), _words(ours)))),
                " / ".join(dict.fromkeys(f"{row['parameters']:,}" for row in both)),
                " / ".join(dict.fromkeys(f"{row['training']['tokens']:,}" for row in both)),
                " / ".join(
                    f"{_mean(row['training']['seconds'] for row in part) / 60:.1f}" for part in (theirs, ours) if part
                ),
                ", ".join(dict.fromkeys(row["machine"] for row in both)),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    notes = [
        "Bounds: nats per token (bits per byte) of held-out text, mean over seeds; lower is better. Difference: ours "
        "less theirs, with the 95 % interval over rows, in pairs where tokens are the same. Words: the share of words "
        "in samples that the training text holds (of those with 4 letters or more), of each way of writing, theirs / "
        "ours. Tokens seen: theirs / ours where a machine shared by several runs stopped them at one time.",
        *_checks(rows),
    ]
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes)]).rstrip()


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _bounds(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    nats = [row["bound"]["nats_per_token"] for row in rows]
    bits = [row["bound"]["bits_per_byte"] for row in rows if row["bound"]["bits_per_byte"] is not None]
    shown = f"{_mean(nats):.3f}" + (f" ({_mean(bits):.3f})" if bits else "")
    return shown + (f", {len(rows)} seeds: {min(nats):.3f} to {max(nats):.3f}" if len(rows) > 1 else "")


def paired_difference(theirs: Row, ours: Row) -> RatioEstimate | None:
    """Ours less theirs in nats per token, over the rows of held-out text; None if their tokens are not the same."""
    first, second = theirs["rows"], ours["rows"]
    if not first["nats"] or first["tokens"] != second["tokens"]:
        return None
    nats = torch.tensor(second["nats"], dtype=torch.float64) - torch.tensor(first["nats"], dtype=torch.float64)
    return ratio_estimate(nats, torch.tensor(first["tokens"]))


def _difference(theirs: Sequence[Row], ours: Sequence[Row]) -> str:
    """Of the first seed that both have; in bits per byte where tokens differ."""
    for first in theirs:
        for second in ours:
            if first["seed"] != second["seed"]:
                continue
            paired = second.get("less_than", {}).get(first["setting"])
            if paired is not None:
                value, *interval = (f"{number:+.3f}" for number in paired)
                return value + (f" [{', '.join(interval)}]" if interval else "")
            bits = [row["bound"]["bits_per_byte"] for row in (first, second)]
            return "" if None in bits else f"{bits[1] - bits[0]:+.3f} bits per byte"
    return ""


def _words(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(name for row in rows for name in row.get("samples", {}))
    shown = []
    for name in names:
        found = [row["samples"][name] for row in rows if name in row.get("samples", {})]
        shares, of_long = ([one[key] for one in found] for key in ("known_words", "known_long_words"))
        if None not in shares:
            shown.append(f"{name} {_mean(shares):.0%}" + (f" ({_mean(of_long):.0%})" if None not in of_long else ""))
    return ", ".join(shown)


def _checks(rows: Sequence[Row]) -> list[str]:
    """What is asked of every run, and which do not keep to it."""
    scratch = [row for row in rows if "preset" in row["options"]]
    first = [row for row in scratch if not row["first_loss"]["within_2_percent"]]
    rising = [row for row in rows if not row["loss_rises_with_mask_rate"]]
    real = {
        f"{row['text']['name']} {row['held_out_words']['known_words']:.0%} "
        f"({row['held_out_words']['known_long_words'] or 0:.0%})"
        for row in rows
        if row.get("held_out_words", {}).get("num_words")
    }
    found = [
        f"Loss before training within 2 % of the logarithm of the vocabulary: {len(scratch) - len(first)} of "
        f"{len(scratch)} runs from scratch" + _named(first) + ".",
        f"Loss rises with the mask rate, from tenth to tenth: {len(rows) - len(rising)} of {len(rows)} runs"
        + _named(rising)
        + ".",
    ]
    if real:
        found.append(f"Words of held-out text that the training text holds: {', '.join(sorted(real))}.")
    return found


def _named(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = [f"{row['recipe']} {row['size']} {row['setting']} {row['seed']}" for row in rows]
    return f" (not {', '.join(names)})"
