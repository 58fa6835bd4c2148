"""What local files are read as: their kind by the suffix, the columns asked for, the encoding; and what goes wrong."""

from dataclasses import dataclass
from pathlib import Path

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


def file_kind(path: str | Path) -> str:
    """`"json"`, `"csv"`, `"tsv"` or `"parquet"` by the suffix, before `.gz` if there is one; else `"text"`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _FORMATS.get(suffixes[-1], "text") if suffixes else "text"
