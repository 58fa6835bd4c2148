"""Files made of a trace: a page of all its texts, and an animation and pictures of one of them."""

from collections.abc import Mapping
from pathlib import Path

from .trace import Trace

PICTURES = ("html", "gif", "png", "svg")


def require_targets(targets: Mapping[str, str | None]) -> None:
    """Refuses names of files that cannot be written, or that would overwrite one another.

    Args:
        targets: the file of each option, `trace` and those of `PICTURES`.

    Raises:
        ValueError: names the option.
    """
    seen: dict[Path, str] = {}
    for name, file in targets.items():
        if file is None:
            continue
        path = Path(file)
        if not file or path.is_dir():
            raise ValueError(f"`--{name}` is {file!r}, which is a directory: name a file.")
        if name in PICTURES and path.suffix.lower() != f".{name}":
            raise ValueError(f"`--{name}` is {file!r}, whose name must end in .{name}.")
        if (other := seen.setdefault(path.absolute(), name)) != name:
            raise ValueError(f"`--{name}` and `--{other}` are both {file!r}: name two files.")
        if name not in ("trace", "html"):
            from .picture import require_pillow

            require_pillow(f"--{name}")


def write_targets(trace: Trace, targets: Mapping[str, str | None], text: int = 0, seconds: float = 8.0) -> list[str]:
    """Writes what is asked for, folders included, and returns the names of the files.

    Args:
        text (`int`): which text GIF, PNG and SVG show; a page holds all of them.
        seconds (`float`): of the animation.

    Raises:
        ValueError: an extra is missing, or the text is too long for a picture.
    """
    written = []
    for name, file in targets.items():
        if file is None:
            continue
        data = _file(trace, name, text, seconds)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(data)
        written.append(file)
    return written


def _file(trace: Trace, name: str, text: int, seconds: float) -> bytes:
    if name == "html":
        from .html import trace_page

        return trace_page(trace).encode()
    from .picture import make_gif, make_png, make_svg

    sample = trace.samples[text]
    if name == "gif":
        return make_gif(sample, seconds=seconds)
    return make_png(sample) if name == "png" else make_svg(sample).encode()
