"""`diffusion-mlm sweep`: tries settings of generation and finds the best at each number of forwards."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub_access import require_repository
from .checkpoint_arguments import load_checkpoint, no_loading_bar
from .parsing import parse
from .sweep_arguments import SweepArguments
from .sweep_record import SweepRecord, replace_file
from .sweep_report import as_table, require_own_directory, save_picture, write_best

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.sweep import Quality, SettingsGrid, SweepPoint
    from ..generation_config import DiffusionGenerationConfig


def run(argv: list[str]) -> int:
    """Runs `sweep` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([SweepArguments], argv, "sweep")
    checkpoint = args.checkpoint_name
    require_repository(checkpoint, "model", "--checkpoint")
    if args.judge is not None:
        require_repository(args.judge, "model", "--judge")
    if args.write_best:
        require_own_directory(checkpoint)
    record = SweepRecord(args.output_dir)
    record.require_usable(args.overwrite_output)

    from .. import __version__
    from ..canvas import is_gaussian_checkpoint
    from ..embedding_diffusion.generation import require_gaussian_settings
    from ..evaluation.sweep import config_of, settings_grid
    from ..filling import require_masked_settings
    from ..generation import load_tokenizer, resolve_config, saved_generation_config
    from ..generation_config import PRESETS
    from ..modeling import unwrap
    from ..visualization.frontier import require_matplotlib

    if args.picture:
        require_matplotlib("--picture")
    # 1. Everything that can be known is checked before anything heavy is loaded.
    saved = saved_generation_config(checkpoint)
    base = _base(args, saved)
    is_gaussian = is_gaussian_checkpoint(checkpoint)
    values, names = args.values(is_gaussian), args.presets(is_gaussian)
    settings_grid(values, names, base)
    presets = {name: PRESETS[name] for name in names}  # what a name stands for may change
    asked = {"presets": presets, "values": values, "prefixes": args.prefix, "seed": args.seed}
    known = {**asked, "num_samples": args.num_samples, "version": __version__}
    record.require_same(known, args.overwrite_output)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=args.trust_remote_code)
    if args.judge is None:
        _require_stories(args, checkpoint, tokenizer)

    # 2. The models, and what can be known by them alone.
    model, tokenizer = load_checkpoint(checkpoint, args.trust_remote_code)
    num_new, num_tokens = _lengths(model, tokenizer, args.prefix, base)
    # One step a token is the most that masks can do with, not Gaussian noise.
    grid = settings_grid(values, names, base, None if is_gaussian else num_new)
    for settings in grid.settings:  # what only the vocabulary, or the kind of model, can refuse
        config = resolve_config(model, config_of(settings, base), {})
        if is_gaussian:
            gaussian: Any = unwrap(model)
            require_gaussian_settings(config, gaussian.config)
        else:
            require_masked_settings(config)
        if args.write_best:
            _require_possible_at_own_length(model, tokenizer, args.prefix, config_of(settings, saved))
    quality, judged_by = _quality(args, model, tokenizer, num_tokens)
    record.claim({**known, **judged_by, **_digests(args, model, tokenizer, base)}, args.overwrite_output)
    _say(grid, args)
    try:
        points = sweep(model, tokenizer, grid, quality, args, base, record)
    finally:
        record.close()

    # 3. What has come out.
    return _report(points, quality, args, checkpoint)


def sweep(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    grid: "SettingsGrid",
    quality: "Quality",
    args: SweepArguments,
    base: "DiffusionGenerationConfig",
    record: SweepRecord,
) -> list["SweepPoint"]:
    """Measures the settings that the record does not have yet, each written down as soon as it is done."""
    from huggingface_hub.utils import tqdm

    from ..evaluation.sweep import SweepPoint, measure_setting

    points = [SweepPoint(**line) for line in record.finished(grid.settings)]
    if points:
        print(f"{len(points)} of {len(grid.settings)} settings are there already", file=sys.stderr)
    # Only on a terminal, only after a second, and gone at the end.
    form = "{l_bar}{bar}| {n:.1f} of {total} settings [{elapsed}<{remaining}{postfix}]"
    bar = tqdm(total=len(grid.settings), delay=1, leave=False, disable=None, file=sys.stderr, bar_format=form)

    def progress(visible: int, total: int) -> None:
        bar.update(len(points) + visible / total - bar.n)

    with bar:
        for settings in grid.settings[len(points) :]:
            bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in settings.items()), refresh=False)
            point = measure_setting(model, tokenizer, settings, quality, args.prefix, base, args.seed, progress)
            record.append(point.to_dict())
            points.append(point)
    return points


def _report(points: list["SweepPoint"], quality: "Quality", args: SweepArguments, checkpoint: str) -> int:
    from ..evaluation.sweep import best_place, frontier

    places = frontier(points)
    table = as_table(points, places, quality)
    directory = Path(args.output_dir)
    replace_file(directory / "frontier.md", table)
    if args.picture:
        note = f"{len(points)} settings, {args.num_samples * len(args.prefix)} texts each. {quality.description}"
        save_picture(directory / "frontier.png", points, places, note)
    print(f"the figures of all settings and the frontier are in {args.output_dir}", file=sys.stderr)
    best, no_best = None, ""
    try:
        best = best_place(points, args.max_forwards)
    except ValueError as error:
        no_best = str(error)
    if best is not None and args.write_best:  # before anything is printed that nobody may read
        changes = write_best(checkpoint, points[best].settings)
        what = "; ".join(changes) if changes else "it is what it was"
        print(f"{Path(checkpoint) / 'generation_config.json'}: {what}", file=sys.stderr)
    if args.output_format == "json":
        for place, point in enumerate(points):
            line = {**point.to_dict(), "on_frontier": place in places, "is_best": place == best}
            print(json.dumps(line, allow_nan=False))
    else:
        print(table, end="")
        if best is not None:
            print(f"best: {', '.join(f'{name} {value}' for name, value in points[best].settings.items())}")
    if best is None and (args.write_best or args.max_forwards is not None):
        raise ValueError(no_best)
    if best is None:
        print(no_best, file=sys.stderr)
    return 0


def _base(args: SweepArguments, saved: "DiffusionGenerationConfig") -> "DiffusionGenerationConfig":
    """The lengths of texts, which are the checkpoint's; all else is as in the preset `default`."""
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    return saved.updated("default", num_return_sequences=args.num_samples, batch_size=args.batch_size, **length)


def _say(grid: "SettingsGrid", args: SweepArguments) -> None:
    texts = args.num_samples * len(args.prefix)
    left_out = [
        f"{number} {what}"
        for number, what in (
            (grid.num_impossible, "impossible combinations"),
            (grid.num_same, "that come to the same as others"),
        )
        if number
    ]
    also = f"; left out: {', '.join(left_out)}" if left_out else ""
    print(f"{len(grid.settings)} settings of {texts} texts each{also}", file=sys.stderr)


def _require_stories(args: SweepArguments, checkpoint: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    from ..evaluation.story_quality import writes_stories

    if not writes_stories(tokenizer):
        raise ValueError(
            f"`--judge` is missing: {checkpoint!r} does not write the built-in stories, whose grammar judges exactly. "
            f"Name a causal language model, and held-out text by `--eval-file`."
        )
    if args.prefix != [""]:
        raise ValueError(
            "`--prefix` is for models with a `--judge`: the grammar judges whole stories, written from nothing."
        )


def _lengths(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prefixes: Sequence[str],
    base: "DiffusionGenerationConfig",
) -> tuple[int, int]:
    """The most tokens that are generated at once, and the most of a text, prefix included."""
    from ..continuation import make_continuations

    texts = make_continuations(model, tokenizer, list(prefixes), base.updated(num_return_sequences=1), seed=0)
    places = [text.next_window()[1] for text in texts]
    num_tokens = max(len(text.prefix_ids) - text.num_start + text.num_new for text in texts)
    return max(place.stop - place.start for place in places), num_tokens


def _require_possible_at_own_length(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", prefixes: Sequence[str], own: "DiffusionGenerationConfig"
) -> None:
    """Raises ValueError if a setting that may be the best could not be the default of the checkpoint."""
    from ..continuation import make_continuations

    try:
        make_continuations(model, tokenizer, list(prefixes), own.updated(num_return_sequences=1), seed=0)
    except ValueError as error:
        raise ValueError(
            f"`--write-best` may have to write a setting that is impossible at the checkpoint's own length, without "
            f"`--max-new-tokens`: {error}"
        ) from error


def _quality(
    args: SweepArguments, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", num_tokens: int
) -> tuple["Quality", dict[str, Any]]:
    """What measures texts, and what decides its figures."""
    num_texts = args.num_samples * len(args.prefix)
    if args.judge is None:
        from ..evaluation.story_quality import StoryQuality

        return StoryQuality(num_texts), {"judge": "the grammar of the stories"}
    from ..data import load_texts
    from ..evaluation.judge import Judge
    from ..evaluation.judged_quality import JudgedQuality, held_out_texts
    from .fingerprint import digest, digest_of_model

    found = load_texts(
        files=list(args.eval_file), text_column=args.text_column, text_unit=args.text_unit, encoding=args.encoding
    )
    real = held_out_texts(list(found["text"]), tokenizer, num_texts, num_tokens)
    with no_loading_bar():
        judge = Judge.from_pretrained(args.judge, trust_remote_code=args.trust_remote_code, argument="--judge")
    decides = {"judge": digest_of_model(judge.model), "eval_texts": digest(text.encode() for text in real)}
    return JudgedQuality(judge, real), decides


def _digests(
    args: SweepArguments, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", base: "DiffusionGenerationConfig"
) -> dict[str, Any]:
    from .fingerprint import fingerprint
    from .prefixes import given_prefixes

    of_samples = fingerprint(model, tokenizer, given_prefixes(args.prefix), base, None, args.seed)
    return {name: of_samples[name] for name in ("checkpoint", "tokenizer", "max_new_tokens", "stride")}
