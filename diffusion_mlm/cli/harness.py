"""`diffusion-mlm lm-eval`: the command `lm_eval` of lm-evaluation-harness, with this package's model in it.

    diffusion-mlm lm-eval --model_args checkpoint=results/final-model,estimator=chain --tasks lambada_openai

The options are the harness's own. It looks for no models outside itself, so its own command cannot find this one.
"""

import sys

_COMMANDS = ("run", "ls", "validate")  # of the harness; `run` may be left out


def run(argv: list[str]) -> int:
    """Runs `lm_eval` with these arguments and returns the exit status 0; errors are raised."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from ..evaluation import lm_eval_model  # noqa: F401  # makes the model known
    except ImportError as error:
        raise ValueError(
            f"`lm-eval` needs lm-evaluation-harness, which cannot be imported ({error}): "
            f"pip install 'diffusion-mlm[lm-eval]'."
        ) from error
    before = sys.argv
    sys.argv = ["diffusion-mlm lm-eval", *harness_arguments(argv)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


def harness_arguments(argv: list[str]) -> list[str]:
    """Arguments for `lm_eval`: those given, the model if none is named, and a batch size, on which nothing depends.

    >>> harness_arguments(["--tasks", "hellaswag", "--batch_size=8"])
    ['run', '--model', 'diffusion_mlm', '--tasks', 'hellaswag', '--batch_size=8']
    """
    if argv and argv[0] in _COMMANDS and argv[0] != "run":
        return argv
    given = argv[1:] if argv and argv[0] == "run" else argv
    names = {word.split("=")[0] for word in given}
    model = [] if names & {"--model", "-M"} else ["--model", "diffusion_mlm"]
    # The harness passes 1 otherwise. A file of options may name another.
    rows = [] if names & {"--batch_size", "-b", "--config", "-C"} else ["--batch_size", "auto"]
    return ["run", *model, *rows, *given]
