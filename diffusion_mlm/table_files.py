"""Rows of files that have columns: JSON lines, CSV, TSV and Parquet."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .file_format import DataError, FileFormat
from .text_lines import read_lines


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:60])


def _missing_columns(path: Path, missing: Sequence[str], there: Sequence[str]) -> DataError:
    shown = ", ".join(sorted(_printable(name) for name in there)[:40]) or "none"
    names = ", ".join(f"`{name}`" for name in missing)
    return DataError(f"{path} has no column {names}: the columns there are {shown}.")


def read_json(path: Path, form: FileFormat) -> Iterator[tuple[int, Sequence[Any]]]:
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
    lines = read_lines(path, form)
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


def read_csv(path: Path, form: FileFormat, delimiter: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """The first line names the columns; a value that a short row lacks is a null."""
    limit = csv.field_size_limit(2**31 - 1)  # the stock limit is 131,072 characters, too few for a document
    try:
        rows = csv.reader(read_lines(path, form), delimiter=delimiter, strict=True)
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


def read_parquet(path: Path, form: FileFormat) -> Iterator[tuple[int, Sequence[Any]]]:
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
