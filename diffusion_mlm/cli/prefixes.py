"""Prefixes from a file: one a line, or a column of JSON lines, CSV or Parquet."""

from dataclasses import dataclass
from pathlib import Path

from ..file_format import FileFormat, file_kind
from ..text_files import FileScan, read_numbered, scan_file


@dataclass(frozen=True)
class Prefix:
    """A text to continue.

    Attributes:
        index (`int`): its row in the file, from 0 (of a text file: its line less one; rows left out count too).
        text (`str`)
        place (`str`): where it stands, for messages.
    """

    index: int
    text: str
    place: str


def read_prefixes(path: str, column: str = "prefix", encoding: str = "utf-8") -> tuple[list[Prefix], FileScan]:
    """The prefixes of a file, byte for byte, without null and blank ones, and what was found in it.

    Raises:
        DataError: the file is missing, empty, damaged, not in the encoding, or has no such column or no text in it.
        ValueError: there is no such encoding, or the column has no name.
        OSError: the file cannot be opened or read.
    """
    form = FileFormat(columns=(column,), encoding=encoding)
    scan = scan_file(path, form)
    unit = "line" if file_kind(path) == "text" else "row"
    rows = read_numbered(path, form)
    return [Prefix(number - 1, text, f"{Path(path)}, {unit} {number}") for number, (text,) in rows], scan


def given_prefixes(texts: list[str]) -> list[Prefix]:
    """Prefixes of the command line."""
    return [Prefix(index, text, f"`--prefix` {index + 1}") for index, text in enumerate(texts)]
