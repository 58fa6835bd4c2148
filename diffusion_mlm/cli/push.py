"""`diffusion-mlm push DIR ID`: a model, its settings, its code and a measured card go to the Hub, or nothing does."""

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import parse

if TYPE_CHECKING:
    from ..hub import HubRepository, Published

_PICTURES = ("loss_by_mask_rate.png", "calibration.png", "quality_by_forwards.png", "frontier.png")


@dataclass
class PushArguments:
    """What `push` takes: the directory of a model, and the id of a repository on the Hub."""

    target: list[str] = field(
        default_factory=list,
        metadata={"help": "DIR ID: the directory of a model and `owner/name` on the Hub. The option may be left out."},
    )
    private: bool = field(
        default=True, metadata={"help": "Make a new repository private; `--private false` makes it public."}
    )
    overwrite_card: bool = field(
        default=False, metadata={"help": "Replace a README.md that is there and was not made by a push."}
    )
    license: str | None = field(default=None, metadata={"help": "Of the model, as the Hub names it: apache-2.0, mit."})
    language: str | None = field(default=None, metadata={"help": "Of the text, as a code: en."})
    report: str | None = field(
        default=None, metadata={"help": "Directory that `evaluate --report` wrote: its figures and plots go along."}
    )
    frontier: str | None = field(default=None, metadata={"help": "Directory that `sweep` wrote: its plot goes along."})
    num_samples: int = field(default=3, metadata={"help": "Texts that the card shows, with seed 0; 0 is none."})
    sample_prefix: str = field(default="", metadata={"help": "What begins them."})
    commit_message: str = field(default="Upload the model", metadata={"help": "Of the commit."})
    space: str | None = field(default=None, metadata={"help": "Also make, or renew, a Space that shows the model."})
    output_format: str = field(
        default="text", metadata={"help": "json prints one object.", "choices": ["text", "json"]}
    )

    def __post_init__(self) -> None:
        if len(self.target) != 2:
            raise ValueError(
                # The words are not shown: one of them may be a token.
                f"`push` takes a directory and an id, `diffusion-mlm push DIR ID`, not {len(self.target)} words. A "
                f"token is none of them: set HF_TOKEN or use `hf auth login`."
            )
        if not Path(self.directory).is_dir():
            raise ValueError(f"`DIR` is {self.directory!r}, and there is no such directory.")
        if self.num_samples < 0:
            raise ValueError(f"`--num-samples` must be a whole number of at least 0, not {self.num_samples}.")
        for name, file in (("report", "report.json"), ("frontier", "frontier.png")):
            value = getattr(self, name)
            if value is not None and not (Path(value) / file).is_file():
                raise ValueError(f"`--{name}` is {value!r}, which holds no {file}.")

    @property
    def directory(self) -> str:
        return self.target[0]

    @property
    def repo_id(self) -> str:
        return self.target[1]

    def command(self, repo_id: str) -> str:
        """What does the same again."""
        words = ["diffusion-mlm", "push", self.directory, repo_id]
        for of in dataclasses.fields(self):
            value = getattr(self, of.name)
            if of.name != "target" and value != of.default:
                words += [
                    f"--{of.name.replace('_', '-')}",
                    str(value).lower() if isinstance(value, bool) else str(value),
                ]
        return shlex.join(words)


def run(argv: list[str]) -> int:
    """Runs `push` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([PushArguments], argv, "push", positional="target")
    from ..hub import HubRepository

    model = HubRepository(args.repo_id, argument="ID")
    space = HubRepository(args.space, "space", argument="--space") if args.space is not None else None
    for found in push(args, model, space):
        if args.output_format == "json":
            print(json.dumps({**vars(found), "files": list(found.files)}))
        else:
            who = "private" if found.private else "public"
            print(f"{found.url} ({who}) holds what was sent: {len(found.files)} files, commit {found.sha}")
            if found.kept_card:
                print("Its README.md was written by somebody and is kept; --overwrite-card replaces it.")
    return 0


def push(args: PushArguments, model: "HubRepository", space: "HubRepository | None" = None) -> "list[Published]":
    """Checks everything, then pushes.

    Raises:
        ValueError: the directory holds no whole generator.
        NotAllowedError, HubUnavailableError: nothing was published; the message says how to repeat it.
    """
    from ..errors import HubUnavailableError, NotAllowedError

    for repository in (model, space):
        if repository is not None:
            repository.require_writable()
    files = files_to_push(args, model.id)
    done = []
    try:
        model.create(args.private)
        done.append(model.publish(files, args.commit_message, overwrite_card=args.overwrite_card))
        if space is not None:
            from ..space import space_files

            space.create(args.private)
            done.append(space.publish(space_files(model.id), f"Show {model.id}", overwrite_card=True))
    except (HubUnavailableError, NotAllowedError) as error:
        state = f"{model.id} is published, the Space is not" if done else "Nothing was published"
        raise type(error)(
            f"{error} {state}; {args.directory} is as it was. Repeat: {args.command(model.id)}"
        ) from error
    return done


def files_to_push(args: PushArguments, repo_id: str) -> dict[str, bytes | Path]:
    """Everything that will be in the repository; the model is loaded, so that nothing is pushed that does not load."""
    from ..generation import generate
    from ..hub import signed
    from ..model_card import CardFacts, model_card
    from ..publication import CARD, CONFIG, model_files
    from .checkpoint_arguments import load_checkpoint

    directory = Path(args.directory)
    files = model_files(directory, "DIR")
    generator, tokenizer = load_checkpoint(args.directory, argument="DIR")
    if (directory / CARD).is_file():
        files[CARD] = directory / CARD
        return files
    samples = []
    if args.num_samples:
        samples = generate(
            generator, tokenizer, args.sample_prefix, num_return_sequences=args.num_samples, seed=0
        ).samples
    settings: Any = generator.generation_config
    how = f"{settings.sampling} sampling at temperature {settings.temperature}, and what `generation_config.json` says"
    pictures = _pictures(args)
    facts = CardFacts(
        repo_id,
        json.loads(files[CONFIG]),  # type: ignore[arg-type]  # the text of config.json
        generator.num_parameters(),
        summary_of(directory),
        _report(args),
        [(sample.prefix, sample.completion) for sample in samples],
        f"{args.num_samples} with seed 0, {how}",
        sorted(pictures),
        args.license,
        args.language,
        mask_token=str(tokenizer.mask_token),
    )
    return {**files, **pictures, CARD: signed(model_card(facts)).encode()}


def summary_of(directory: Path) -> dict[str, Any]:
    """What training wrote beside the model, if it is about this model."""
    path = directory.absolute().with_name("summary.json")
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: remove it, or train again.") from error
    if not isinstance(summary, dict) or summary.get("diffusion") != config.get("diffusion"):
        print(f"{path} is about another model and is left out of the card.", file=sys.stderr)
        return {}
    return summary


def _report(args: PushArguments) -> dict[str, Any] | None:
    if args.report is None:
        return None
    from ..evaluation.report import EvaluationReport

    text = (Path(args.report) / "report.json").read_text(encoding="utf-8")
    return EvaluationReport.from_json(text).to_dict()


def _pictures(args: PushArguments) -> dict[str, bytes | Path]:
    places = [Path(name) for name in (args.report, args.frontier) if name is not None]
    return {f"figures/{name}": place / name for place in places for name in _PICTURES if (place / name).is_file()}
