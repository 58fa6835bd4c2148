"""Lines of text files, gzipped or not, decoded strictly: what does not decode is named by line and byte."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from .file_format import DataError, FileFormat

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_CHUNK = 2**20


def read_lines(path: Path, form: FileFormat) -> Iterator[str]:
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
