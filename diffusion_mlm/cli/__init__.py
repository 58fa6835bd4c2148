"""The command `diffusion-mlm VERB`; `python train.py` and `python generate.py` are the same code."""

import io
import os
import sys
import traceback
from collections.abc import Sequence

VERBS = {
    "train": "fine-tune a masked language model, or train one from scratch, as a generator",
    "generate": "write text by unmasking",
    "infill": "fill the blanks of a text",
    "edit": "write a share of a text anew",
    "replay": "show a recorded run again: in the terminal, as a page, an animation or a picture",
    "demo": "write, fill in and edit in the browser",
    "evaluate": "measure how well a model knows a text: the likelihood bound, in nats per token and bits per byte",
    "score": "say how likely sentences are, and which of them is the likeliest",
    "sweep": "try many settings of generation and find the best at each number of forwards",
    "push": "publish a model on the Hub, with its settings, its code and a measured card",
    "doctor": "look for what is wrong with a model, a data set or this machine, and say what to do",
    "lm-eval": "run tasks of lm-evaluation-harness, with its own options",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit status, see `report_error`."""
    # Large tensors in large pages, before PyTorch is loaded: gradients are new memory at every step, and each page of
    # new memory costs a trap. Where the system has no such pages, nothing changes.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the locale lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `| head`: nobody reads on, which is no failure
        _discard_output()
        return 0


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: diffusion-mlm VERB [options]\n\nTurns a masked language model into a text generator.\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items()))
        print("\n`diffusion-mlm VERB --help` lists the options of a verb.", flush=True)
        return 0 if argv else 2
    if argv[0] == "--version":
        from .. import __version__

        print(f"diffusion-mlm {__version__}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        print(f"diffusion-mlm: {verb!r} is no verb. Choose one of: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    # Alone it is ours; with a value it is an option of the Trainer.
    debug = [i for i, word in enumerate(rest) if word == "--debug" and "".join(rest[i + 1 : i + 2])[:2] in ("", "--")]
    try:
        return _run(verb, [word for i, word in enumerate(rest) if i not in debug])
    except SystemExit as error:  # argparse's --help
        sys.stdout.flush()
        return error.code if isinstance(error.code, int) else 2 if error.code else 0
    except BrokenPipeError:
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return report_error(error)


def _run(verb: str, argv: list[str]) -> int:
    if verb == "train":
        from .train import run
    elif verb == "generate":
        from .generate import run
    elif verb == "infill":
        from .rewrite import run_infill as run
    elif verb == "edit":
        from .rewrite import run_edit as run
    elif verb == "replay":
        from .replay import run
    elif verb == "demo":
        from .demo import run
    elif verb == "evaluate":
        from .evaluate import run
    elif verb == "score":
        from .score import run
    elif verb == "sweep":
        from .sweep import run
    elif verb == "push":
        from .push import run
    elif verb == "doctor":
        from .doctor import run
    else:
        from .harness import run
    return run(argv)


def _discard_output() -> None:
    """Lets the interpreter flush standard output into nothing at its end, instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: BaseException) -> int:
    """Prints one sentence to standard error and returns the exit status for it.

    2 wrong use, value or data; 69 a Hub or network that does not answer; 70 numbers that are not finite; 73 a
    directory refused or locked; 74 reading or writing failed; 77 not allowed; 130 and 143 interrupted; 1 what is left.
    """
    from ..errors import TrainingInterruptedError, TrainingMemoryError

    if isinstance(error, KeyboardInterrupt):
        saved = isinstance(error, TrainingInterruptedError)
        print(f"diffusion-mlm: {error if saved else 'interrupted.'}", file=sys.stderr)
        return 128 + error.signum if isinstance(error, TrainingInterruptedError) else 130
    status = _status(error)
    text = " ".join(str(error).split())
    text += "" if text.endswith((".", "!", "?", ")")) else "."
    if status == 1 and not isinstance(error, TrainingMemoryError):
        text = f"{type(error).__name__}: {text} (run again with --debug for the traceback)"
    print(f"diffusion-mlm: {text}", file=sys.stderr)
    return status


def _status(error: BaseException) -> int:
    from ..errors import HubUnavailableError, NonFiniteLossError, NotAllowedError, OutputDirectoryError

    statuses: list[tuple[type[BaseException], int]] = [
        (HubUnavailableError, 69),
        (NonFiniteLossError, 70),
        (OutputDirectoryError, 73),
        (NotAllowedError, 77),
        (OSError, 74),
    ]
    for kind, status in statuses:
        if isinstance(error, kind):
            return status
    if isinstance(error, ValueError):
        # Read from the modules that are loaded: a wrong option must not wait for torch to be told so.
        sampling = sys.modules.get("diffusion_mlm.sampling")
        return 70 if sampling is not None and isinstance(error, sampling.NonFiniteLogitsError) else 2
    return 1
