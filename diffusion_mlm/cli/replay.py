"""`diffusion-mlm replay`: shows a recorded run again. Neither torch nor transformers is loaded, nor any model."""

import argparse
import difflib
import sys

from ..visualization.trace import Trace
from ..visualization.trace_files import PICTURES, require_targets, write_targets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="replay", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("trace", help="JSON file that `generate --trace` wrote")
    parser.add_argument(
        "--text", type=int, default=None, metavar="N", help="only the N-th text, from 1 (default: all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="how long a text takes in the terminal and in a GIF (default: 8)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page that plays the steps of all texts instead")
    for name, what in (
        ("gif", "an animation of the first text (or of --text)"),
        ("png", "a picture of it, coloured by step"),
        ("svg", "the same as a drawing"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {what} instead")
    parser.add_argument("--output-format", choices=["text", "json"], default="text", help="json: one object a text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(argv: list[str]) -> int:
    """Runs `replay` with these arguments and returns the exit status 0; errors are raised.

    Raises:
        ValueError: an argument is wrong, or the file is no trace.
    """
    parser = _parser()
    if not [word for word in argv if not word.startswith("-")] and not {"-h", "--help"} & set(argv):
        raise ValueError("`trace` is missing: name a file that `diffusion-mlm generate --trace FILE` wrote.")
    try:
        args, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from error
    if unknown:
        names = [action.option_strings[-1] for action in parser._actions if action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists the options."
        raise ValueError(f"{unknown[0]} is no option of `replay`. {hint}")
    if not 0 <= args.seconds <= 3600:
        raise ValueError(f"`--seconds` must lie in [0, 3600], not {args.seconds}.")
    targets = {name: getattr(args, name) for name in PICTURES}
    require_targets(targets)
    trace = Trace.load(args.trace)
    if args.text is not None and not 1 <= args.text <= len(trace.samples):
        raise ValueError(f"`--text` is {args.text}, but {args.trace!r} holds {len(trace.samples)}, counted from 1.")
    if any(targets.values()):
        for file in write_targets(trace, targets, (args.text or 1) - 1, args.seconds):
            print(file)
        return 0
    return _show(trace, args)


def _show(trace: Trace, args: argparse.Namespace) -> int:
    """Each text forms on standard error, and is then printed on standard output."""
    import json

    from rich.console import Console

    from ..visualization.terminal_text import printable, replay

    console = Console(stderr=True)
    chosen = trace.samples if args.text is None else trace.samples[args.text - 1 : args.text]
    for place, sample in enumerate(chosen):
        if args.output_format == "json":
            facts = {"text": sample.text, "seed": sample.seed, "num_forwards": sample.num_forwards}
            print(json.dumps(facts), flush=True)
            continue
        replay(sample, console, args.seconds)
        text = sample.text if place == 0 else f"\n{sample.text}"
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
    return 0
