"""Text to train on: from the Hub, from local files, or from the built-in stories; and its split into two parts.

Every function gives a data set of the datasets library with one column, `text` (or two, `prompt` and `response`),
whose rows are all usable: no nulls, nothing blank. `tokenize_and_pack` and `tokenize_prompts` then make rows of token
ids of it.
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from .data_report import DataReport
from .errors import HubUnavailableError
from .file_format import DataError, FileFormat
from .hub_access import require_repository
from .packing import store_rows, tokenize_and_pack, tokenize_prompts
from .randomness import make_key, uniform
from .text_files import FileScan, read_usable, scan_file

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = [
    "DataError",
    "DataReport",
    "HubUnavailableError",
    "load_prompts",
    "load_stories",
    "load_texts",
    "tokenize_and_pack",
    "tokenize_prompts",
    "train_validation_split",
]

PathLike: TypeAlias = str | os.PathLike[str]
_VERSION = 1  # part of the fingerprint of what is read from files: raise it when the same file gives other texts

logger = logging.getLogger(__name__)


def load_texts(
    dataset: str | None = None,
    *,
    files: PathLike | Sequence[PathLike] | None = None,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    text_unit: str = "line",
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
    cache_dir: str | None = None,
    report: DataReport | None = None,
) -> "Dataset | IterableDataset":
    """Loads texts from the Hub or from local files.

    Local files are read by suffix: `.jsonl`, `.ndjson` and `.json` (one object a line, or one array), `.csv`, `.tsv`,
    `.parquet`, and anything else as plain text; with `.gz` behind it, unpacked. Each is read whole and checked before
    anything is stored, also when it is to be streamed. Line ends become `\\n`; a byte order mark is dropped.

    Args:
        dataset (`str`, *optional*): a data set of the Hub, or a directory with one. Either this or `files`.
        files (*optional*): one path or several; their texts follow one another.
        config, split (`str`): of the Hub data set.
        streaming (`bool`): reads on the fly. Nulls and blanks are then left out without being counted.
        text_column (`str`): where the text is; text files have no columns.
        text_unit (`str`): one text of a text file: `"line"`, `"paragraph"` or `"file"`.
        encoding, encoding_errors (`str`): of text, JSON and CSV files; see `FileFormat`.
        cache_dir (`str`, *optional*): where the texts are stored; the cache of the datasets library by default.
        report (`DataReport`, *optional*): gets the nulls and blanks counted.

    Returns:
        `Dataset`, or `IterableDataset` if `streaming`, with the only column `text`.

    Raises:
        ValueError: the arguments contradict one another, or `dataset` is a path to no directory.
        DataError: the data cannot be used: says where and why.
        HubUnavailableError: the Hub does not answer or does not know the name (after 5 seconds at most), and the data
            set is not in the local cache.
        NotAllowedError: the Hub refuses the data set to this user.
    """
    if (dataset is None) == (files is None):
        raise ValueError("Pass either `dataset`, a name on the Hub or a directory, or `files`, and not both.")
    if files is not None:
        form = FileFormat((text_column,), text_unit, encoding, encoding_errors)
        return _from_files(files, form, ("text",), streaming, cache_dir, report)
    name = str(dataset)
    if Path(name).is_file():
        raise ValueError(f"`dataset` is {name!r}, which is a file: pass it as `files` (`--train-file`).")
    loaded = _load_by_name(name, config, split, streaming, cache_dir)
    return _usable_texts(loaded, name, text_column, report)


def load_prompts(
    files: PathLike | Sequence[PathLike],
    *,
    prompt_column: str = "prompt",
    response_column: str = "response",
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
    cache_dir: str | None = None,
    report: DataReport | None = None,
) -> "Dataset":
    """Loads pairs of prompt and response from JSON, CSV, TSV or Parquet files into the columns of these names.

    A prompt may be blank, a response may not. Raises as `load_texts`; a text file has no columns and is a `DataError`.
    """
    form = FileFormat((prompt_column, response_column), "line", encoding, encoding_errors)
    dataset: Any = _from_files(files, form, ("prompt", "response"), False, cache_dir, report)
    return dataset


def load_stories(num_stories: int, seed: int = 0) -> "Dataset":
    """`num_stories` texts of the built-in story language; equal seeds give equal stories."""
    if num_stories < 1:
        raise ValueError(f"`num_stories` must be at least 1, got {num_stories}.")
    from datasets import Dataset

    from . import story_language

    return Dataset.from_dict({"text": story_language.sample(num_stories, seed)})


def train_validation_split(
    dataset: "Dataset | IterableDataset", validation: float | int, seed: int = 0, *, tail: bool = False
) -> "tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]":
    """Splits texts into a part for training and one for validation that have no row in common.

    Which texts validate is drawn at random, by `seed` and the number of texts alone; both parts keep the order of the
    texts. Equal texts may still stand in both. A single text (`text_unit="file"`) is cut in two by characters, and its
    end validates. Of a stream, the first texts validate: they are read at once, and no text equal to one is left.

    Args:
        dataset: of texts, before it is packed.
        validation (`float` or `int`): a share in (0, 1), rounded up to whole texts, or a number of texts; 0 for none.
        seed (`int`): of the draw.
        tail (`bool`): takes the last texts instead, for texts in an order, such as the chapters of a book.

    Returns:
        The two parts; `(dataset, None)` if `validation` is 0.

    Raises:
        ValueError: `validation` is negative, not finite, neither a share nor whole, or a share of a stream.
        DataError: nothing would be left on one of the sides.
    """
    from datasets import Dataset

    number = float(validation)
    is_share = 0 < number < 1
    if isinstance(validation, bool) or not (is_share or (math.isfinite(number) and number >= 0 and number % 1 == 0)):
        raise ValueError(f"`validation` must be a share in (0, 1), a whole number of texts, or 0, got {validation!r}.")
    if number == 0:
        return dataset, None
    if not isinstance(dataset, Dataset):
        if is_share:
            raise ValueError(
                f"`validation` is the share {validation}, but a stream has no known length: pass a number of texts."
            )
        # Read now: `skip` and `take` count anew in each part of a stream, so that processes would train on these.
        held_out = Dataset.from_list(list(dataset.take(int(number))))
        return dataset.filter(_IsOther(held_out["text"]), input_columns=["text"]), held_out
    size = len(dataset)
    if size == 1 and is_share and dataset.column_names == ["text"]:
        return _cut_in_two(dataset[0]["text"], number)
    count = math.ceil(number * size) if is_share else int(number)
    if count >= size:
        raise DataError(
            f"`validation` is {validation}, which takes {count} of {size} texts and leaves none to train on: pass "
            f"less, or more text (a text file can be read by `line` or `paragraph`)."
        )
    if tail:
        return dataset.select(range(size - count)), dataset.select(range(size - count, size))
    draws = uniform(torch.tensor(make_key("validation", seed)), size)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[draws.argsort(stable=True)[:count]] = True
    return dataset.select((~chosen).nonzero()[:, 0].numpy()), dataset.select(chosen.nonzero()[:, 0].numpy())


class _IsOther:
    """Whether a text is none of those held out."""

    def __init__(self, held_out: Iterable[str]) -> None:
        self.held_out = frozenset(held_out)

    def __call__(self, text: str) -> bool:
        return text not in self.held_out


def _cut_in_two(text: str, share: float) -> "tuple[Dataset, Dataset]":
    from datasets import Dataset

    place = len(text) - math.ceil(share * len(text))
    if not text[:place].strip() or not text[place:].strip():
        raise DataError(f"The only text ({len(text)} characters) is too short to validate on a share {share} of it.")
    logger.info("There is one text: its last %d characters are for validation.", len(text) - place)
    return Dataset.from_dict({"text": [text[:place]]}), Dataset.from_dict({"text": [text[place:]]})


# Local files


def _from_files(
    files: PathLike | Sequence[PathLike],
    form: FileFormat,
    names: tuple[str, ...],
    streaming: bool,
    cache_dir: str | None,
    report: DataReport | None,
) -> "Dataset | IterableDataset":
    from datasets import Features, IterableDataset, Value
    from datasets.fingerprint import Hasher

    paths = [os.fspath(path) for path in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ValueError("`files` must name at least one file.")
    scans = [scan_file(path, form) for path in paths]
    _add_left_out(report, sum(scan.num_null for scan in scans), sum(scan.num_blank for scan in scans))
    # Large strings have 64-bit offsets: a batch of long texts may hold more than 2 GB.
    features = Features({name: Value("large_string") for name in names})
    arguments = {"paths": [os.path.abspath(path) for path in paths], "form": form, "names": names}
    if streaming:
        return IterableDataset.from_generator(_generate_texts, features=features, gen_kwargs=arguments)
    key = (_fingerprint_of(paths, scans), form, names, _VERSION)
    return store_rows(_generate_texts, arguments, features, Hasher.hash(key), cache_dir)


def _fingerprint_of(paths: Sequence[str], scans: Sequence[FileScan]) -> list[tuple[str, str]]:
    """What decides on the texts: the bytes of each file and how its name tells to read it."""
    return [("".join(Path(path).suffixes[-2:]).lower(), scan.digest) for path, scan in zip(paths, scans, strict=True)]


def _generate_texts(paths: list[str], form: FileFormat, names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for path in paths:
        for values in read_usable(path, form):
            yield dict(zip(names, values, strict=True))


def _add_left_out(report: DataReport | None, num_null: int, num_blank: int) -> None:
    if num_null:
        logger.warning("%d rows hold no value and are left out.", num_null)
    if report is not None:
        report.num_null += num_null
        report.num_blank += num_blank


# The Hub, and directories


def _load_by_name(name: str, config: str | None, split: str, streaming: bool, cache_dir: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    unavailable: HubUnavailableError | None = None
    try:
        # No file of this name is in any cache, so that the Hub is asked: `load_dataset` would go on asking for 24 s.
        require_repository(name, "dataset", "dataset", probe_file=".probe")
    except HubUnavailableError as error:
        unavailable = error  # a copy that was prepared earlier still serves
    try:
        with _offline() if unavailable else contextlib.nullcontext():
            if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
                return _load_saved(name, split)
            return load_dataset(name, config, split=split, streaming=streaming, cache_dir=cache_dir)
    except Exception as error:
        if unavailable is not None:
            raise unavailable from error
        if isinstance(error, DataError):
            raise
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, DatasetNotFoundError | ConnectionError):
            raise HubUnavailableError(
                f"The data set {name!r} cannot be had from the Hub: {_one_line(cause)}"
            ) from error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from None  # a full disk, a directory one may not read
        if isinstance(error, DatasetGenerationError):  # its message may hold the bytes of the file
            raise DataError(
                f"The data set {name!r} holds a file that cannot be read ({type(cause).__name__})."
            ) from None
        if isinstance(cause, (ValueError, FileNotFoundError, RuntimeError)):  # no such config or split, no data files
            raise DataError(f"The data set {name!r} cannot be loaded: {_one_line(cause)}") from error
        raise


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Makes the datasets library look in its cache only, at once."""
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _load_saved(path: str, split: str) -> Any:
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(path)
    if isinstance(saved, Dataset):
        return saved
    if split not in saved:
        raise DataError(f"The data set {path!r} has no split {split!r} but {', '.join(saved)}.")
    return saved[split]


def _one_line(error: BaseException | None) -> str:
    text = " ".join("".join(character if character.isprintable() else " " for character in str(error)).split())
    return text[:300] or type(error).__name__


def _usable_texts(loaded: Any, name: str, text_column: str, report: DataReport | None) -> Any:
    from datasets import Dataset

    columns = loaded.column_names
    if columns is None:  # some streams tell only with their first row
        columns = list(next(iter(loaded), {}))
    if text_column not in columns:
        there = ", ".join(columns) or "none"
        raise DataError(f"The data set {name!r} has no column `{text_column}`: the columns there are {there}.")
    if loaded.features is not None:
        kind = getattr(loaded.features[text_column], "dtype", type(loaded.features[text_column]).__name__)
        if kind not in ("string", "large_string", "null"):
            raise DataError(f"The data set {name!r}: column `{text_column}` holds values of type {kind}, not text.")
    loaded = loaded.select_columns([text_column])
    if text_column != "text":
        loaded = loaded.rename_column(text_column, "text")
    if not isinstance(loaded, Dataset):
        return loaded.filter(_is_usable, input_columns=["text"])
    texts = loaded.filter(_has_value, input_columns=["text"], desc="Looking for nulls")
    usable = texts.filter(_is_usable, input_columns=["text"], desc="Looking for blanks")
    if len(usable) == 0:
        raise DataError(f"The data set {name!r} has 0 usable texts of {len(loaded)} in column `{text_column}`.")
    _add_left_out(report, len(loaded) - len(texts), len(texts) - len(usable))
    return usable


def _has_value(text: object) -> bool:
    return text is not None


def _is_usable(text: object) -> bool:
    if text is not None and not isinstance(text, str):
        raise DataError(f"The text column holds a value of type {type(text).__name__}, not text.")
    return text is not None and bool(text.strip())
