"""Command lines and configuration files: dataclasses are the one description of both."""

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except where there is none: the help then says in words what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse(dataclasses: list[type], argv: list[str], prog: str, positional: str | None = None) -> tuple[Any, ...]:
    """Builds the dataclasses from `argv` and the file that `--config` names; arguments win over the file.

    Values of the file go through the same parser as arguments, so that both are checked alike. `positional` names the
    option, of several values, that words without one belong to.

    Raises:
        ValueError: an unknown name (near ones are listed), a file that is missing or no YAML mapping, or whatever the
            dataclasses refuse.
    """
    parser = HfArgumentParser(
        dataclasses,  # type: ignore[arg-type]  # any dataclasses, which the stub narrows
        prog=prog,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="read options from a file; the command line wins")
    if not any(action.dest == "debug" for action in parser._actions):  # the Trainer has a `--debug` of its own
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        config_file, _ = _config_parser().parse_known_args(argv)
        from_file = arguments_of_file(config_file.config) if config_file.config else []
        if positional is not None:
            loose = [word for word in parser.parse_known_args(from_file + argv)[1] if not word.startswith("-")]
            for word in loose:
                argv = [*argv[: argv.index(word)], *argv[argv.index(word) + 1 :]]
            argv = [*argv, f"--{positional}", *loose] if loose else argv
        *parsed, remaining = parser.parse_args_into_dataclasses(
            args=from_file + argv, return_remaining_strings=True, look_for_args_file=False
        )
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from error
    if remaining:
        known = [action.option_strings[-1] for action in parser._actions if action.option_strings]
        name = remaining[0].split("=")[0]
        near = difflib.get_close_matches(name.replace("_", "-"), known, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists the options."
        raise ValueError(f"{name} is no option of `{prog}`. {hint}")
    # The extra namespace of --config and --debug comes last, if the parser returns one.
    return tuple(parsed[: len(dataclasses)])


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    return parser


def arguments_of_file(path: str) -> list[str]:
    """The options in a YAML file as a command line.

    The file is read with every scalar as a string (YAML would turn `1e-4` into text and `off` into False) and left to
    the argument parser to convert.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"`--config` is {path!r}, and there is no such file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"`--config` is {path!r}, which is no UTF-8 text (byte {error.start}).") from None
    try:
        options = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` is {path!r}, which is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"`--config` is {path!r}, which must hold `option: value` lines.")
    arguments: list[str] = []
    for name, value in options.items():
        flag = f"--{name}"
        if isinstance(value, list):
            arguments += [flag, *map(str, value)]
        elif isinstance(value, dict):
            arguments.append(f"{flag}={json.dumps(value)}")
        elif value not in ("null", "~", ""):
            arguments.append(f"{flag}={value}")
    return arguments
