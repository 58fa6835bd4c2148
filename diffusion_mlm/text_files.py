"""Reading local files strictly: text, JSON lines, CSV, TSV and Parquet, gzipped or not, one text at a time.

Whatever is wrong with a file becomes one `DataError` that says where; the bytes themselves are never shown. A file
that cannot be opened stays an `OSError`, as everywhere.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .file_format import DataError, FileFormat, file_kind
from .table_files import read_csv, read_json, read_parquet
from .text_lines import read_lines

_LONGEST_TEXT = 2**30  # characters; Arrow's strings end at 2**31 bytes
_CHUNK = 2**20

# One row of a file: its number, counted from 1, and the value of each column asked for (None: null or missing).
Row = tuple[int, tuple[str | None, ...]]


@dataclass
class FileScan:
    """What one pass over a file found.

    Attributes:
        num_rows (`int`): lines, paragraphs or rows there are.
        num_null (`int`): rows without a value in a column asked for.
        num_blank (`int`): rows whose last column holds nothing but white space.
        digest (`str`): of the bytes of the file, so that a changed file is never mistaken for its old self.
    """

    num_rows: int = 0
    num_null: int = 0
    num_blank: int = 0
    digest: str = ""

    @property
    def num_usable(self) -> int:
        return self.num_rows - self.num_null - self.num_blank


def scan_file(path: str | Path, form: FileFormat) -> FileScan:
    """Reads the whole of a file once, so that all its faults show before any work.

    Raises:
        DataError: the file is missing, no regular file, empty, without a usable text, damaged, not in the encoding,
            lacks a column, or holds something else than text in it.
        OSError: the file cannot be opened or read.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a directory: name the files in it.")
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if not path.is_file():  # a pipe can be read once only
        raise DataError(f"{path} is no regular file: write the text to a file first.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: 0 usable texts of 0.")
    if len(form.columns) > 1 and file_kind(path) == "text":
        names = ", ".join(f"`{name}`" for name in form.columns)
        raise DataError(
            f"{path} is read as plain text, which has no columns {names}: pass JSON lines, CSV or Parquet."
        )
    scan = FileScan()
    for _, values in _read_rows(path, form):
        scan.num_rows += 1
        if None in values:
            scan.num_null += 1
        elif _is_blank(values):
            scan.num_blank += 1
    if scan.num_usable == 0:
        unit = form.text_unit if file_kind(path) == "text" else "row"
        raise DataError(
            f"{path} has 0 usable {unit}s of {scan.num_rows}"
            + (f" ({scan.num_null} null, {scan.num_blank} blank)." if scan.num_rows else ": there is nothing in it.")
        )
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    scan.digest = digest.hexdigest()
    return scan


def read_usable(path: str | Path, form: FileFormat) -> Iterator[tuple[str, ...]]:
    """The rows of a file whose columns all have a value and whose last one is not blank. Raises as `scan_file`."""
    for _, values in read_numbered(path, form):
        yield values


def read_numbered(path: str | Path, form: FileFormat) -> Iterator[tuple[int, tuple[str, ...]]]:
    """What `read_usable` gives, with the number of each row among all rows (of a text: its line), from 1."""
    for number, values in _read_rows(Path(path), form):
        if None not in values and not _is_blank(values):
            yield number, values  # type: ignore[misc]  # no None among them, which mypy cannot see


def _is_blank(values: Sequence[str | None]) -> bool:
    last = values[-1]
    return last is not None and not last.strip()


def _read_rows(path: Path, form: FileFormat) -> Iterator[Row]:
    kind = file_kind(path)
    if kind == "text":
        rows: Iterator[tuple[int, Sequence[Any]]] = ((number, (text,)) for number, text in _read_texts(path, form))
    elif kind == "json":
        rows = read_json(path, form)
    elif kind == "parquet":
        rows = read_parquet(path, form)
    else:
        rows = read_csv(path, form, "\t" if kind == "tsv" else ",")
    names = form.columns if kind != "text" else ("text",)
    for number, values in rows:
        for name, value in zip(names, values, strict=True):
            _check_value(value, f"{path}, {'line' if kind == 'text' else 'row'} {number}", name)
        yield number, tuple(values)


def _check_value(value: object, place: str, column: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(f"{place}: column `{column}` holds a value of type {type(value).__name__}, not text.")
    if len(value) > _LONGEST_TEXT:
        raise DataError(f"{place}: a text of {len(value)} characters is too long to store: cut it into several.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: character {error.start} of the text is half a character (a lone surrogate)."
            ) from None


def _read_texts(path: Path, form: FileFormat) -> Iterator[tuple[int, str]]:
    lines = read_lines(path, form)
    if form.text_unit == "line":
        for number, line in enumerate(lines, start=1):
            yield number, line.removesuffix("\n")
    elif form.text_unit == "file":
        yield 1, "".join(lines)
    else:
        paragraph: list[str] = []
        start = 1
        for number, line in enumerate(lines, start=1):
            if line.strip():
                start = start if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield start, "".join(paragraph).removesuffix("\n")
                paragraph = []
        if paragraph:
            yield start, "".join(paragraph).removesuffix("\n")
