"""Reading local files strictly: text, JSON lines, CSV, TSV and Parquet, gzipped or not, one text at a time.

Whatever is wrong with a file becomes one `DataError` that says where; the bytes themselves are never shown. A file
that cannot be opened stays an `OSError`, as everywhere.
"""

import codecs
import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

TEXT_UNITS = ("line", "paragraph", "file")
ENCODING_ERRORS = ("strict", "replace", "ignore")
_FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_LONGEST_TEXT = 2**30  # characters; Arrow's strings end at 2**31 bytes
_CHUNK = 2**20

# One row of a file: its number, counted from 1, and the value of each column asked for (None: null or missing).
Row = tuple[int, tuple[str | None, ...]]


class DataError(ValueError):
    """Data that cannot be used: says in one sentence which file or data set, where in it, and what to do."""


@dataclass(frozen=True)
class FileFormat:
    """How to read local files.

    Attributes:
        columns (`tuple[str, ...]`): columns to read; text files have one column whatever its name.
        text_unit (`str`): what one text of a text file is: a `"line"`, a `"paragraph"` (lines up to a blank line,
            joined by newlines) or the whole `"file"`.
        encoding (`str`): a text encoding of Python. A byte order mark at the start is dropped in UTF-8.
        encoding_errors (`str`): `"strict"`, `"replace"` (by U+FFFD) or `"ignore"`.
    """

    columns: tuple[str, ...] = ("text",)
    text_unit: str = "line"
    encoding: str = "utf-8"
    encoding_errors: str = "strict"

    def __post_init__(self) -> None:
        if self.text_unit not in TEXT_UNITS:
            raise ValueError(f"`text_unit` must be one of {', '.join(TEXT_UNITS)}, got {self.text_unit!r}.")
        if self.encoding_errors not in ENCODING_ERRORS:
            raise ValueError(
                f"`encoding_errors` must be one of {', '.join(ENCODING_ERRORS)}, got {self.encoding_errors!r}."
            )
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"`encoding` is {self.encoding!r}, which is no text encoding that Python knows."
            ) from None
        if not self.columns or not all(self.columns):
            raise ValueError(f"The names of the columns must not be empty, got {self.columns!r}.")


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


def file_kind(path: str | Path) -> str:
    """`"json"`, `"csv"`, `"tsv"` or `"parquet"` by the suffix, before `.gz` if there is one; else `"text"`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _FORMATS.get(suffixes[-1], "text") if suffixes else "text"


def _is_blank(values: Sequence[str | None]) -> bool:
    last = values[-1]
    return last is not None and not last.strip()


def _read_rows(path: Path, form: FileFormat) -> Iterator[Row]:
    kind = file_kind(path)
    if kind == "text":
        rows: Iterator[tuple[int, Sequence[Any]]] = ((number, (text,)) for number, text in _read_texts(path, form))
    elif kind == "json":
        rows = _read_json(path, form)
    elif kind == "parquet":
        rows = _read_parquet(path, form)
    else:
        rows = _read_csv(path, form, "\t" if kind == "tsv" else ",")
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


# Text


def _read_texts(path: Path, form: FileFormat) -> Iterator[tuple[int, str]]:
    lines = _read_lines(path, form)
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


def _read_lines(path: Path, form: FileFormat) -> Iterator[str]:
    r"""Lines ending in `\n`, whether the file ends them by LF, CRLF or CR; U+2028 and `\x0b` end none."""
    encoding = "utf-8-sig" if form.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else form.encoding
    with _open(path) as binary:
        try:
            if encoding == "utf-8-sig" and form.encoding_errors == "strict":
                _refuse_other_encodings(path, binary)
            yield from TextIOWrapper(binary, encoding=encoding, errors=form.encoding_errors, newline=None)
        except UnicodeError:
            raise _decoding_error(path, form) from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise DataError(
                f"{path} is named .gz, but is no gzip file or is damaged: unpack or download it again."
            ) from None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _refuse_other_encodings(path: Path, binary: BinaryIO) -> None:
    """UTF-16 is named as such: with a byte order mark, or by a zero in every second byte (which is valid UTF-8)."""
    start = binary.read(4096)
    binary.seek(0)
    name = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    for first in (0, 1):
        zeros, others = start[first::2], start[1 - first :: 2]
        if len(start) >= 16 and not any(zeros) and all(others):
            name = "utf-16-be" if first == 0 else "utf-16-le"
    if name is not None:
        raise DataError(
            f"{path}, line 1, byte 0: the file is not UTF-8 but looks like {name.upper()}: pass the encoding {name!r} "
            f"(`--encoding {name}`)."
        )
    if start.startswith(b"\x1f\x8b"):
        raise DataError(f"{path}, line 1, byte 0: the file is compressed by gzip: let its name end in .gz.")


def _decoding_error(path: Path, form: FileFormat) -> DataError:
    """Finds the first place that does not decode: the line, and the bytes before it in the (unpacked) file."""
    decoder = codecs.getincrementaldecoder(form.encoding)("strict")
    line, offset, chunk, last_was_return = 1, 0, b"", False
    hint = "pass its true encoding (`--encoding`), or `--encoding-errors replace` to put U+FFFD in such places."
    with _open(path) as binary:
        while True:
            chunk = binary.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                if isinstance(error, UnicodeDecodeError):
                    # `object` is the chunk behind the bytes that the decoder kept from the one before.
                    offset += error.start - (len(error.object) - len(chunk))
                    text = bytes(error.object[: error.start]).decode(form.encoding, "replace")
                    line += _count_line_ends(text, last_was_return)
                    if b"\0" in chunk[:4096]:
                        hint = "it looks like a binary file, not text."
                return DataError(f"{path}, line {line}, byte {offset}: not valid {form.encoding.upper()}; {hint}")
            line += _count_line_ends(text, last_was_return)
            last_was_return = text.endswith("\r") if text else last_was_return
            offset += len(chunk)
            if not chunk:
                return DataError(f"{path} is not valid {form.encoding.upper()}; {hint}")


def _count_line_ends(text: str, after_return: bool) -> int:
    count = text.count("\n") + text.count("\r") - text.count("\r\n")
    return count - (after_return and text.startswith("\n"))


# Rows with columns


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:60])


def _missing_columns(path: Path, missing: Sequence[str], there: Sequence[str]) -> DataError:
    shown = ", ".join(sorted(_printable(name) for name in there)[:40]) or "none"
    names = ", ".join(f"`{name}`" for name in missing)
    return DataError(f"{path} has no column {names}: the columns there are {shown}.")


def _read_json(path: Path, form: FileFormat) -> Iterator[tuple[int, Sequence[Any]]]:
    """One object a line, or one array of objects; a key that a row lacks is a null."""
    seen: set[str] = set()
    number = 0
    for number, row in _json_rows(path, form):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number}: not a JSON object with the column `{form.columns[0]}` but a {_json_type(row)}."
            )
        if len(seen) < 1000:
            seen.update(row)
        yield number, [row.get(name) for name in form.columns]
    missing = [name for name in form.columns if name not in seen]
    if number and missing:
        raise _missing_columns(path, missing, list(seen))


def _json_type(value: object) -> str:
    return {list: "list", str: "string", bool: "truth value", type(None): "null"}.get(type(value), "number")


def _json_rows(path: Path, form: FileFormat) -> Iterator[tuple[int, Any]]:
    lines = _read_lines(path, form)
    row = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if row == 0 and line.lstrip().startswith("["):
            content = _parse_json("".join([line, *lines]), f"{path}, from line {number} on")
            yield from enumerate(content, start=1)
            return
        row += 1
        yield row, _parse_json(line, f"{path}, line {number}")


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"character {error.pos} of it" if "\n" not in text[: error.pos] else f"{error.lineno} lines into it"
        raise DataError(f"{place}: not valid JSON ({error.msg}, {where}); write one object a line.") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested thousands deep
        raise DataError(f"{place}: JSON that Python cannot read (a huge number, or nested too deep).") from None


def _read_csv(path: Path, form: FileFormat, delimiter: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """The first line names the columns; a value that a short row lacks is a null."""
    limit = csv.field_size_limit(2**31 - 1)  # the stock limit is 131,072 characters, too few for a document
    try:
        rows = csv.reader(_read_lines(path, form), delimiter=delimiter, strict=True)
        header = next(rows, [])
        missing = [name for name in form.columns if name not in header]
        if missing:
            raise _missing_columns(path, missing, header)
        places = [header.index(name) for name in form.columns]
        for number, row in enumerate((row for row in rows if row), start=1):
            yield number, [row[place] if place < len(row) else None for place in places]
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not valid CSV ({_printable(str(error))}).") from None
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, form: FileFormat) -> Iterator[tuple[int, Sequence[Any]]]:
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".gz":
        raise DataError(f"{path}: a Parquet file in gzip cannot be read in place: unpack it first.")
    number = 0
    with path.open("rb") as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file)
            schema = parquet.schema_arrow
            missing = [name for name in form.columns if name not in schema.names]
            if missing:
                raise _missing_columns(path, missing, schema.names)
            for name in form.columns:
                if schema.names.count(name) > 1:
                    raise DataError(f"{path} has several columns `{name}`: rename all but one.")
                kind = schema.field(name).type
                value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
                if str(value) not in ("string", "large_string", "string_view", "null"):
                    raise DataError(f"{path}: column `{name}` holds values of type {value}, not text.")
            for batch in parquet.iter_batches(batch_size=256, columns=list(form.columns)):
                for values in zip(*(batch.column(name).to_pylist() for name in form.columns), strict=True):
                    number += 1
                    yield number, values
        except UnicodeDecodeError:
            raise DataError(f"{path}, after row {number}: text that is not valid UTF-8.") from None
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                f"{path}, after row {number}: no Parquet file, or a damaged one: write or fetch it again."
            ) from None
