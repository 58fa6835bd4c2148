"""Samples of many prefixes: in batches of similar length, into a file or onto standard output, in order."""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .generation_settings import load
from .prefixes import Prefix, given_prefixes, read_prefixes
from .process import Process
from .sample_file import Key, SampleFile

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..continuation import Continuation
    from ..generation_config import DiffusionGenerationConfig
    from .generate import GenerateArguments

# Samples are sorted by length within so many batches: further apart, those on standard output would be held up.
_BATCHES_SORTED_TOGETHER = 32


@dataclass
class Job:
    """One sample to make.

    Attributes:
        key (`tuple[int, int]`): the row of its prefix in the file, and its number among the samples of that prefix.
        text (`Continuation`)
    """

    key: Key
    text: "Continuation"

    @property
    def content(self) -> tuple[str, int]:
        """By which a line is recognized."""
        return self.text.prefix, self.text.seed

    @property
    def length(self) -> int:
        """Positions of its rows."""
        return min(len(self.text.prefix_ids) + self.text.num_new + len(self.text.closing), self.text.window)


def run_batches(args: "GenerateArguments") -> int:
    """Makes the samples that the options ask for, those that the output file has not yet; returns exit status 0.

    Everything is checked before anything is written.

    Raises:
        ValueError: a prefix cannot be continued, its place named; or the file holds something else.
        OutputDirectoryError: another run is writing the file.
        OSError: reading or writing fails.
    """
    process = Process.of_environment()
    file = SampleFile(args.output_file, process) if args.output_file is not None else None
    if file is not None:
        file.require_usable(args.overwrite_output)
    elif process.num_processes > 1:
        raise ValueError("`--output-file` is missing: several processes need a file to write to.")
    prefixes = _prefixes(args, process)
    constraints = args.constraints()
    model, tokenizer = load(args)

    from ..continuation import constrain
    from ..generation import resolve_config

    config = resolve_config(model, None, args.settings())
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    jobs = make_jobs(model, tokenizer, prefixes, config, seed, show_progress=process.rank == 0)
    if constraints is not None:
        constrain(model, tokenizer, [job.text for job in jobs], constraints)
    if file is not None:
        from .fingerprint import fingerprint

        settings = fingerprint(model, tokenizer, prefixes, config, constraints, seed)
        settled = file.claim(settings, any_seed=args.seed is None, overwrite=args.overwrite_output)
        for job in jobs:
            job.text.seed = (job.text.seed - seed + settled) % 2**32
        seed = settled
    if args.seed is None and process.rank == 0:
        print(f"seed {seed}", file=sys.stderr)
    if file is not None:
        return _write_file(file, process, model, tokenizer, jobs, config)
    return _print(args, model, tokenizer, jobs, config)


def _prefixes(args: "GenerateArguments", process: Process) -> list[Prefix]:
    if args.prefixes_file is None:
        return given_prefixes(args.prefix)
    prefixes, scan = read_prefixes(args.prefixes_file, args.prefix_column, args.encoding)
    if (scan.num_null or scan.num_blank) and process.rank == 0:
        print(f"left out: {scan.num_null} null and {scan.num_blank} blank prefixes", file=sys.stderr)
    return prefixes


def make_jobs(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prefixes: Sequence[Prefix],
    config: "DiffusionGenerationConfig",
    seed: int,
    show_progress: bool = False,
) -> list[Job]:
    """The samples of all prefixes, in order, with the seeds that `generate` gives them.

    Raises:
        ValueError: a prefix leaves no room in the context; its place is named.
    """
    from ..continuation import make_continuations

    jobs: list[Job] = []
    seen: Counter[str] = Counter()
    for prefix in _bar(show_progress, iterable=prefixes, desc="checking", unit=" prefixes"):
        own = (seed + seen[prefix.text]) % 2**32  # a prefix that occurs again goes on where it left off
        seen[prefix.text] += config.num_return_sequences
        try:
            texts = make_continuations(model, tokenizer, prefix.text, config, own)
        except ValueError as error:
            raise ValueError(f"{prefix.place}: {error}") from error
        jobs += [Job((prefix.index, number), text) for number, text in enumerate(texts)]
    return jobs


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of all samples, in batches of at most `batch_size`, nearly equal in number and alike in length.

    The plan depends on nothing else, so that a run which was interrupted, or is split over processes, makes the same
    batches. Long ones come first: memory that does not suffice shows at once.

    >>> plan_batches([5, 9, 5, 8, 5], batch_size=2)
    [[1, 3], [0, 2], [4]]
    """
    batches = []
    together = batch_size * _BATCHES_SORTED_TOGETHER
    for start in range(0, len(lengths), together):
        places = sorted(range(start, min(start + together, len(lengths))), key=lambda place: -lengths[place])
        number = -(-len(places) // batch_size)
        size, larger = divmod(len(places), number)
        ends = [size * (place + 1) + min(place + 1, larger) for place in range(number)]
        batches += [places[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return batches


def write_batches(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    jobs: Sequence[Job],
    batches: Sequence[Sequence[int]],
    config: "DiffusionGenerationConfig",
    show_progress: bool,
) -> Iterator[list[tuple[int, str, str]]]:
    """Makes the samples of each batch: their places, their texts and their lines of JSON."""
    from ..continuation import continue_texts
    from ..generation import finish_text

    total = sum(jobs[place].text.num_new for batch in batches for place in batch)
    num_samples, num_made, num_tokens = sum(map(len, batches)), 0, 0
    with _bar(show_progress, total=total, unit=" tokens") as bar:
        for batch in batches:
            texts = [jobs[place].text for place in batch]
            for step, _ in continue_texts(model, tokenizer, texts, config):
                bar.update(int(step.revealed.sum()) - int(step.remasked.sum()))
            num_made, num_tokens = num_made + len(batch), num_tokens + sum(text.num_new for text in texts)
            bar.set_postfix_str(f"{num_made} of {num_samples} samples", refresh=False)
            bar.update(num_tokens - bar.n)  # texts that end write fewer tokens than they might
            bar.clear()
            made = []
            for place, text in zip(batch, texts, strict=True):
                sample = finish_text(tokenizer, text)
                prefix_index, sample_index = jobs[place].key
                line = {"prefix_index": prefix_index, "sample_index": sample_index, **vars(sample)}
                made.append((place, sample.text, json.dumps(line, allow_nan=False)))
                text.new_ids = []  # of a million samples that adds up
            yield made


def _bar(show: bool, **options: Any) -> Any:
    """A progress bar: only on a terminal, only after a second, and gone at the end."""
    from huggingface_hub.utils import tqdm

    return tqdm(**options, delay=1, leave=False, disable=None if show else True, file=sys.stderr)


def _write_file(
    file: SampleFile,
    process: Process,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    jobs: Sequence[Job],
    config: "DiffusionGenerationConfig",
) -> int:
    expected = {job.key: job.content for job in jobs}
    there = file.find(expected)
    if there and process.rank == 0:
        print(f"{len(there)} of {len(jobs)} samples are there already", file=sys.stderr)
    batches = plan_batches([job.length for job in jobs], config.batch_size)[process.rank :: process.num_processes]
    # A batch of which a sample is missing is made again as a whole: it must be the batch that it was.
    batches = [batch for batch in batches if any(jobs[place].key not in there for place in batch)]
    try:
        for made in write_batches(model, tokenizer, jobs, batches, config, show_progress=process.rank == 0):
            file.append([line for _, _, line in made])
    finally:
        file.close()
    missing = file.assemble(expected)
    if missing:
        message = f"process {process.rank} of {process.num_processes} is done, {missing} samples are left to others"
    else:
        message = f"{len(jobs)} samples of {len({job.key[0] for job in jobs})} prefixes are in {file.name}"
    print(message, file=sys.stderr)
    return 0


def _print(
    args: "GenerateArguments",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    jobs: Sequence[Job],
    config: "DiffusionGenerationConfig",
) -> int:
    """Prints the samples in order; if interrupted, also those that are waiting for an earlier one."""
    from ..visualization.terminal import printable

    waiting: dict[int, str] = {}
    printed = 0

    def show(text: str) -> None:
        nonlocal printed
        text = f"\n{text}" if printed and args.output_format == "text" else text
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
        printed += 1

    batches = plan_batches([job.length for job in jobs], config.batch_size)
    next_place = 0
    try:
        for made in write_batches(model, tokenizer, jobs, batches, config, show_progress=True):
            waiting |= {place: line if args.output_format == "json" else text for place, text, line in made}
            while next_place in waiting:
                show(waiting.pop(next_place))
                next_place += 1
    except KeyboardInterrupt:
        for place in sorted(waiting):
            show(waiting[place])
        raise
    return 0
