"""What a sweep has found: the frontier as a table and a picture, and the best setting in the checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sweep_record import replace_file

if TYPE_CHECKING:
    from ..evaluation.sweep import Quality, Settings, SweepPoint


def as_table(points: Sequence["SweepPoint"], places: Sequence[int], quality: "Quality") -> str:
    """The frontier as a Markdown table that can be read as it is, and real text in its last line."""
    from ..evaluation.sweep import names_of

    names, same = names_of(points)
    heads = [f"setting ({same})" if same else "setting", "forwards", "quality", *quality.columns]
    rows = [
        [names[place], f"{point.forwards:.1f}", f"{point.quality:.3f}", *_cells(point.figures, quality.columns)]
        for place, point in ((place, points[place]) for place in places)
    ]
    rows.append(["real text", "", "1.000", *_cells(quality.reference, quality.columns)])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (heads, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines) + "\n"


def _cells(figures: dict[str, Any], columns: Sequence[str]) -> list[str]:
    return ["" if figures[name] is None else f"{figures[name]:.3f}" for name in columns]


def save_picture(path: Path, points: Sequence["SweepPoint"], places: Sequence[int], note: str) -> None:
    """Draws all settings and the frontier.

    Raises:
        OSError: writing fails.
    """
    from ..evaluation.sweep import names_of
    from ..visualization.frontier import FrontierPoint, draw_frontier

    names, same = names_of(points)
    drawn = [
        FrontierPoint(names[place], point.forwards, point.quality, point.collapsed, place in places)
        for place, point in enumerate(points)
    ]
    note = f"{note} All: {same}." if same else note
    draw_frontier(drawn, "Quality against forwards", note).savefig(path)


def require_own_directory(checkpoint: str) -> None:
    """Refuses at once a checkpoint whose generation_config.json cannot be, or should not be, written.

    Raises:
        ValueError: it is no directory, or one of the package.
        OSError: it cannot be written to.
    """
    from ..checkpoints import STORIES_GENERATOR

    path = Path(checkpoint)
    if not path.is_dir():
        raise ValueError(
            f"`--write-best` writes into a directory, and `--checkpoint` is {checkpoint!r}: download it, name that."
        )
    if path.resolve().parent == Path(STORIES_GENERATOR).resolve().parent:
        raise ValueError(
            "`--write-best` would change a checkpoint of the package: copy it, and name the copy by `--checkpoint`."
        )
    if not os.access(path, os.W_OK):
        raise PermissionError(f"`--write-best` cannot write into `--checkpoint` {checkpoint!r}.")


def write_best(checkpoint: str, settings: "Settings") -> list[str]:
    """Makes a setting the default of a checkpoint; lengths, number and batch size stay as they are.

    Returns:
        `list[str]`: what has changed, as "steps: None -> 32".

    Raises:
        OSError: writing fails; the file is as it was.
    """
    from ..evaluation.sweep import config_of
    from ..generation import saved_generation_config
    from ..generation_config import DEFAULTS

    before = saved_generation_config(checkpoint)
    after = config_of(settings, before)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # of the file, not ours
        setattr(after, name, getattr(before, name, None))
    replace_file(Path(checkpoint) / "generation_config.json", after.to_json_string(use_diff=True))
    old, new = ({name: getattr(config, name) for name in DEFAULTS} for config in (before, after))
    return [f"{name}: {old[name]} -> {new[name]}" for name in DEFAULTS if old[name] != new[name]]
