"""Text from files and names to rows: faults are one sentence, and no token is lost or mixed up."""

import csv
import gzip
import http.server
import io
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.fingerprint import Hasher
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffusion_mlm.data import (
    DataError,
    DataReport,
    HubUnavailableError,
    load_prompts,
    load_stories,
    load_texts,
    tokenize_and_pack,
    tokenize_prompts,
    train_validation_split,
)
from diffusion_mlm.file_format import FileFormat
from diffusion_mlm.packing import pack
from diffusion_mlm.text_files import FileScan, read_usable, scan_file
from diffusion_mlm.tokenization import encode_text, train_characters

ALPHABET = "abcdefghijklmnopqrstuvwxyz <>/\n"


def properties(examples: int) -> Any:
    return settings(deadline=None, derandomize=True, database=None, max_examples=examples)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_characters([ALPHABET])


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def texts_of(path: Path, unit: str = "line", **more: Any) -> list[str]:
    return [text for (text,) in read_usable(path, FileFormat(text_unit=unit, **more))]


def parquet_bytes(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


# Local text files


def test_text_units_are_lines_paragraphs_or_the_file(write: Any, tmp_path: Path) -> None:
    path = write("a.txt", "one \n two\n\n \nthree\n")
    assert texts_of(path) == ["one ", " two", "three"]
    assert texts_of(path, "paragraph") == ["one \n two", "three"]
    assert texts_of(path, "file") == ["one \n two\n\n \nthree\n"]
    report = DataReport()
    loaded = load_texts(files=path, cache_dir=str(tmp_path / "cache"), report=report)
    assert loaded.column_names == ["text"] and loaded["text"][:] == ["one ", " two", "three"]
    assert (report.num_blank, report.num_null) == (2, 0)


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_byte_order_mark_and_foreign_line_ends_change_nothing(write: Any, end: str, unit: str) -> None:
    text = "ab\ncd\n\n\u2028e\x0bf \x00 \U0001f600\n"
    expected = texts_of(write("lf.txt", text), unit)
    assert "".join(expected).count("\u2028e\x0bf \x00 \U0001f600") == 1, "these end no line"
    assert texts_of(write("other.txt", b"\xef\xbb\xbf" + text.replace("\n", end).encode()), unit) == expected


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", b"", "is empty: 0 usable texts of 0"),
        ("blank.txt", b"\n \t\n\r\n", r"0 usable lines of 3 \(0 null, 3 blank\)"),
        ("latin.txt", "gut\nschön".encode("latin-1"), r"line 2, byte 7: not valid UTF-8; .*--encoding"),
        ("utf16.txt", "hello".encode("utf-16"), "line 1, byte 0: .*UTF-16.*--encoding utf-16"),
        ("bare.txt", ("hello " * 9).encode("utf-16-le"), "UTF-16-LE"),
        ("utf32.txt", "hello".encode("utf-32"), "UTF-32"),
        ("binary.txt", bytes(range(256)), "byte 128: .*binary file"),
        ("packed.txt", gzip.compress(b"hello", mtime=0), "compressed by gzip"),
        ("notpacked.txt.gz", b"hello", "no gzip file or is damaged"),
        ("torn.txt.gz", gzip.compress(b"hello" * 99, mtime=0)[:20], "no gzip file or is damaged"),
        ("latin.txt.gz", gzip.compress(b"a\r\nb\r\n\xe9", mtime=0), "line 3, byte 6"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: not valid JSON"),
        ("b.jsonl", b'{"title": "a", "body": "b"}', "no column `text`: the columns there are body, title"),
        ("c.jsonl", b'{"text": "a"}\n\n{"text": 3}', "row 2: column `text` holds a value of type int"),
        ("d.jsonl", b'{"text": null}\n{"text": " "}\n{}', r"0 usable rows of 3 \(2 null, 1 blank\)"),
        ("e.jsonl", b'"text"', "row 1: not a JSON object .* a string"),
        ("f.jsonl", b'{"text": "\\ud800"}', "row 1: character 0 .*lone surrogate"),
        ("g.json", b'[{"text": "a"}, 3]', "row 2: not a JSON object"),
        ("h.json", b"[" * 100_000, "nested too deep"),
        ("i.csv", b"id,body\n1,a\n", "no column `text`: the columns there are body, id"),
        ("j.csv", b'text\n"a\n', "line 2: not valid CSV"),
        ("k.csv", b"text\n", "0 usable rows of 0: there is nothing in it"),
        ("l.parquet", b"PAR1 no", "no Parquet file"),
        ("m.parquet", parquet_bytes({"text": [1, 2]}), "column `text` holds values of type int64"),
        ("n.parquet", parquet_bytes({"body": ["a"]}), "no column `text`: the columns there are body"),
    ],
)
def test_fault_in_a_file_is_one_sentence_that_says_where(write: Any, name: str, content: bytes, message: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_texts(files=path)
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and len(text) < len(str(path)) + 300


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_texts(files=tmp_path / "no.txt")
    with pytest.raises(DataError, match="is a directory"):
        load_texts(files=[tmp_path])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "shift_jis"])
def test_any_encoding_of_python_is_read_when_named(write: Any, encoding: str) -> None:
    text = "\u65e5\u672c" if encoding in ("utf-8", "utf-16", "shift_jis") else "schön"
    path = write("a.txt", f"{text}\n{text}x\n".encode(encoding))
    assert texts_of(path, encoding=encoding) == [text, text + "x"]


@properties(60)
@given(before=st.integers(0, 3000), lines=st.integers(0, 40), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_line_and_byte_of_a_wrong_byte_are_exact(before: int, lines: int, end: str) -> None:
    good = ("é" + end) * lines + "x" * before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(good.encode() + b"\xff" + b"y\n" * 50)
        with pytest.raises(DataError, match=f"line {lines + 1}, byte {len(good.encode())}:"):
            scan_file(path, FileFormat())


def test_wrong_byte_is_found_behind_the_first_megabyte(write: Any) -> None:
    good = "é\r\n".encode() * 400_000
    with pytest.raises(DataError, match=f"line 400001, byte {len(good)}:"):
        scan_file(write("a.txt", good + b"\xff"), FileFormat())


def test_wrong_bytes_can_be_replaced_or_left_out(write: Any) -> None:
    path = write("a.txt", b"a\xffb\n")
    assert texts_of(path, encoding_errors="replace") == ["a\ufffdb"]
    assert texts_of(path, encoding_errors="ignore") == ["ab"]


def scan_or_error(path: Path, unit: str, encoding: str = "utf-8") -> tuple[FileScan | None, str]:
    try:
        return scan_file(path, FileFormat(text_unit=unit, encoding=encoding)), ""
    except DataError as error:
        return None, str(error)


SEEDS = [
    b"",
    b"a b\nc",
    b'{"text": "a"}\n',
    b'[{"text": "a"}]',
    b'text,x\n"a",1\n',
    b'text\n"a"b',
    b"\xff\xfea\0",
    b"\x1f\x8b",
    b"\0" * 20,
]


@properties(300)
@given(
    suffix=st.sampled_from([".txt", ".txt.gz", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ""]),
    start=st.sampled_from(SEEDS),
    rest=st.binary(max_size=60),
    unit=st.sampled_from(["line", "paragraph", "file"]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-32", "utf-7", "ascii", "shift_jis", "cp1252"]),
    pack_it=st.booleans(),
)
def test_any_bytes_as_a_file_are_texts_or_a_data_error(
    suffix: str, start: bytes, rest: bytes, unit: str, encoding: str, pack_it: bool
) -> None:
    content = gzip.compress(start + rest) if pack_it and suffix.endswith(".gz") else start + rest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a" + suffix)
        path.write_bytes(content)
        scan, error = scan_or_error(path, unit, encoding)
        if scan is not None:
            texts = texts_of(path, unit, encoding=encoding)
            assert len(texts) == scan.num_usable > 0 and all(text.strip() for text in texts)
        else:
            assert error.isprintable() and error.startswith(str(path))


@properties(150)
@given(seed=st.integers(0, 10**6), flips=st.integers(1, 8))
def test_damaged_parquet_is_texts_or_a_data_error(seed: int, flips: int) -> None:
    generator = np.random.default_rng(seed)
    content = bytearray(parquet_bytes({"text": ["one", "two", None, "three"] * 5}))
    for place in generator.integers(0, len(content), flips):
        content[place] = generator.integers(256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        path.write_bytes(content)
        scan, error = scan_or_error(path, "line")
        assert error.isprintable() and (scan is None or scan.num_usable > 0)


# Files with columns


def test_every_format_gives_the_same_texts(write: Any, tmp_path: Path) -> None:
    texts = ["plain", 'quoted "word", comma', "two\nlines", "NA", "12", " spaces ", "null", "\U0001f600"]
    table = io.StringIO()
    csv.writer(table).writerows([["id", "body"], *([i, text] for i, text in enumerate(texts))])
    tabbed = io.StringIO()
    csv.writer(tabbed, delimiter="\t").writerows([["body"], *([text] for text in texts)])
    lines = "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts)
    paths = [
        write("a.jsonl", lines),
        write("b.json", json.dumps([{"body": text} for text in texts], indent=1)),
        write("c.csv", table.getvalue()),
        write("d.tsv", "\ufeff" + tabbed.getvalue()),
        write("e.parquet", parquet_bytes({"x": list(range(8)), "body": texts})),
        write("f.jsonl.gz", gzip.compress(lines.encode())),
        write("g.parquet", parquet_bytes({"body": pyarrow.array(texts).dictionary_encode()})),
    ]
    loaded = load_texts(files=paths, text_column="body", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"][:] == texts * len(paths)


def test_nulls_are_left_out_and_counted(write: Any, tmp_path: Path) -> None:
    report = DataReport()
    lines = '{"text": "a"}\n{"text": null}\n{"other": 1}\n{"text": ""}\n'
    files = [write("a.jsonl", lines), write("b.parquet", parquet_bytes({"text": [None, "b"]}))]
    loaded = load_texts(files=files, cache_dir=str(tmp_path / "cache"), report=report)
    assert loaded["text"][:] == ["a", "b"]
    assert (report.num_null, report.num_blank) == (3, 1)


def test_a_field_of_a_megabyte_is_read_and_the_stock_limit_stays(write: Any) -> None:
    limit = csv.field_size_limit()
    assert [len(text) for text in texts_of(write("a.csv", "text\n" + "x" * 10**6))] == [10**6]
    assert csv.field_size_limit() == limit


def test_changed_file_of_the_same_name_is_read_anew(write: Any, tmp_path: Path) -> None:
    for text in ("one", "two", "one"):
        loaded = load_texts(files=write("a.txt", text), cache_dir=str(tmp_path / "cache"))
        assert loaded["text"][:] == [text]
        assert load_texts(files=tmp_path / "a.txt", text_unit="file", cache_dir=str(tmp_path / "cache"))["text"][
            :
        ] == [text]


def test_streamed_files_are_checked_before_the_first_text(write: Any) -> None:
    stream = load_texts(files=write("a.txt", "a\n\nb\n"), streaming=True)
    assert isinstance(stream, IterableDataset) and [row["text"] for row in stream] == ["a", "b"]
    with pytest.raises(DataError, match="line 3"):
        load_texts(files=write("b.txt", b"a\nb\n\xff"), streaming=True)


def test_prompts_come_in_pairs(write: Any, tmp_path: Path) -> None:
    rows = [("a", "b"), ("", "c"), ("d", None), (None, "e"), ("f", " ")]
    path = write("a.jsonl", "".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows))
    report = DataReport()
    pairs = load_prompts(path, prompt_column="q", response_column="a", cache_dir=str(tmp_path / "c"), report=report)
    assert [tuple(pair.values()) for pair in pairs] == [("a", "b"), ("", "c")]
    assert (report.num_null, report.num_blank) == (2, 1)
    with pytest.raises(DataError, match="no column `response`: the columns there are prompt"):
        load_prompts(write("b.csv", "prompt\na\n"))
    with pytest.raises(DataError, match="plain text, which has no columns"):
        load_prompts(write("b.txt", "a"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either `dataset`"),
        ({"dataset": "a", "files": "b"}, "either `dataset`"),
        ({"files": []}, "at least one file"),
        ({"files": "a", "text_unit": "word"}, "`text_unit` must be one of"),
        ({"files": "a", "encoding": "klingon"}, "`encoding` is 'klingon'"),
        ({"files": "a", "encoding": "hex"}, "`encoding` is 'hex'"),
        ({"files": "a", "encoding_errors": "surrogateescape"}, "`encoding_errors` must be"),
        ({"dataset": "./no/such"}, "no such directory"),
        ({"dataset": "a b"}, "valid Hub id"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_texts(**arguments)


def test_stories_are_the_same_for_the_same_seed() -> None:
    pytest.importorskip("diffusion_mlm.story_language")
    first, second = load_stories(5, seed=1), load_stories(5, seed=1)
    assert first["text"][:] == second["text"][:] != load_stories(5, seed=2)["text"][:]
    assert len(first) == 5 and first.column_names == ["text"]


# Directories and the Hub


def test_directory_with_a_data_set_is_loaded_and_cleaned(tmp_path: Path) -> None:
    rows = {"body": ["a", None, " ", "b"], "n": [1, 2, 3, 4]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(tmp_path / "several")
    (tmp_path / "files").mkdir()
    Dataset.from_dict(rows).to_parquet(tmp_path / "files" / "train.parquet")
    for name in ("one", "several", "files"):
        report = DataReport()
        folder = str(tmp_path / name)
        loaded = load_texts(folder, text_column="body", cache_dir=str(tmp_path / "cache"), report=report)
        assert loaded.column_names == ["text"] and loaded["text"][:] == ["a", "b"]
        assert (report.num_null, report.num_blank) == (1, 1)
        with pytest.raises(DataError, match="no column `text`: the columns there are body, n"):
            load_texts(folder, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(DataError, match="values of type int64"):
            load_texts(folder, text_column="n", cache_dir=str(tmp_path / "cache"))
    stream = load_texts(str(tmp_path / "files"), text_column="body", streaming=True)
    assert [row["text"] for row in stream] == ["a", "b"]
    for folder in ("several", "files"):
        with pytest.raises(DataError, match="nonsense"):
            load_texts(str(tmp_path / folder), split="nonsense", cache_dir=str(tmp_path / "cache"))


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A Hub that knows nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def empty_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["refused", "offline", "unknown"])
def test_hub_that_does_not_answer_is_named_in_under_ten_seconds(
    fault: str, empty_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", empty_hub if fault == "unknown" else "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", fault == "offline")
    start = time.perf_counter()
    with pytest.raises(HubUnavailableError) as caught:
        load_texts("someone/something", cache_dir=str(tmp_path))
    assert time.perf_counter() - start < 10
    expected = {"refused": "cannot be reached", "offline": "HF_HUB_OFFLINE", "unknown": "no such repository"}[fault]
    assert "'someone/something'" in str(caught.value) and expected in str(caught.value)


def test_copy_in_the_cache_serves_when_the_hub_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "made"))
    [made] = (tmp_path / "made").glob("parquet/*/*/*/")
    place = tmp_path / "cache" / "someone___something" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(made, place)  # where the library puts what it has loaded from the Hub
    (place / "parquet-train.arrow").rename(place / "something-train.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    info.update(dataset_name="something", config_name="default")
    (place / "dataset_info.json").write_text(json.dumps(info))

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    assert load_texts("someone/something", cache_dir=str(tmp_path / "cache"))["text"][:] == ["a", "b"]
    assert time.perf_counter() - start < 10
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(HubUnavailableError):
        load_texts("someone/something", config="other", cache_dir=str(tmp_path / "cache"))


# Packing


def naive_blocks(documents: list[list[int]], body: int, separate: bool) -> list[list[int]]:
    stream: list[int] = []
    for document in [document for document in documents if document]:
        stream += ([2] if separate and stream else []) + document
    return [stream[start : start + body] for start in range(0, len(stream), body)]


@properties(200)
@given(
    documents=st.lists(st.lists(st.integers(4, 99), max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    max_length=st.integers(3, 9),
    separate=st.booleans(),
    keep_last=st.sampled_from([True, False, None]),
)
def test_packing_conserves_tokens_and_their_order(
    documents: list[list[int]], cuts: list[int], max_length: int, separate: bool, keep_last: bool | None
) -> None:
    edges = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    batches = [
        (np.fromiter(chain(*part), dtype=np.int32), np.array([len(document) for document in part], dtype=np.int64))
        for part in (documents[first:last] for first, last in pairwise(edges))
    ]
    rows = list(pack(batches, max_length, 0, 2, separate, keep_last))
    expected = naive_blocks(documents, max_length - 2, separate)
    if (
        expected
        and len(expected[-1]) < max_length - 2
        and not (len(expected) == 1 if keep_last is None else keep_last)
    ):
        expected.pop()
    assert rows == [[0, *block, 2] for block in expected]


def test_packed_rows_are_full_and_hold_the_texts_in_order(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    texts = [f"text {'abcdefghij'[i % 10]} <mask> it is" for i in range(2500)]  # more than one batch of the map
    dataset = Dataset.from_dict({"text": texts})
    report = DataReport()
    rows = tokenize_and_pack(dataset, tokenizer, 16, cache_dir=str(tmp_path), report=report)
    assert rows.column_names == ["input_ids"]
    assert {len(row) for row in rows["input_ids"]} == {16}
    assert {(row[0], row[-1]) for row in rows["input_ids"]} == {(0, 2)}
    stream = [token for row in rows["input_ids"] for token in row[1:-1]]
    whole = tokenizer.decode(stream, skip_special_tokens=False)
    assert "</s>".join(texts).startswith(whole)
    assert tokenizer.mask_token_id not in stream
    per_text = len(encode_text(tokenizer, texts[0]))
    assert (report.num_texts, report.num_literal, report.num_tokens) == (2500, 2500, 2500 * per_text)
    assert report.num_dropped_tokens == 2500 * per_text + 2499 - 14 * report.num_rows < 14
    assert report.num_rows == len(rows)

    kept = tokenize_and_pack(dataset, tokenizer, 16, keep_last=True, cache_dir=str(tmp_path))
    assert len(kept) == len(rows) + 1 and len(kept[-1]["input_ids"]) == report.num_dropped_tokens + 2
    joined = tokenize_and_pack(dataset, tokenizer, 16, separate_texts=False, keep_last=True, cache_dir=str(tmp_path))
    assert 2 not in [token for row in joined["input_ids"] for token in row[1:-1]]


def test_one_text_a_row_is_filled_with_end_tokens_and_cut_without_one(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["a", "abcd", "abcde", "abcdef"]})
    a, b, c, d, e = encode_text(tokenizer, "abcde")
    report = DataReport()
    rows = tokenize_and_pack(dataset, tokenizer, 6, "one_per_row", report=report)
    assert rows["input_ids"][:] == [[0, a, 2, 2, 2, 2], [0, a, b, c, d, 2], [0, a, b, c, d, e], [0, a, b, c, d, e]]
    assert (report.num_cut, report.num_dropped_tokens, report.num_fill, report.num_tokens) == (2, 1, 3, 16)
    short = tokenize_and_pack(dataset, tokenizer, 6, "one_per_row", fill=False)
    assert [len(row) for row in short["input_ids"]] == [3, 6, 6, 6]


def test_prompt_rows_tell_how_many_tokens_are_given(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [("ab", "c"), ("", "a"), ("ab", "cdef"), ("abcd", "e"), ("abcde", "f")]
    dataset = Dataset.from_dict({"prompt": [p for p, _ in pairs], "response": [r for _, r in pairs]})
    a, b, c, d, e = encode_text(tokenizer, "abcde")
    report = DataReport()
    rows = tokenize_prompts(dataset, tokenizer, 6, report=report)
    expected = [[0, a, b, c, 2, 2], [0, a, 2, 2, 2, 2], [0, a, b, c, d, e], [0, a, b, c, d, e]]
    assert rows["input_ids"][:] == expected
    assert rows["prompt_length"][:] == [3, 1, 3, 5]
    assert (report.num_texts, report.num_rows, report.num_dropped, report.num_cut) == (5, 4, 1, 2)
    assert (report.num_tokens, report.num_dropped_tokens, report.num_fill) == (21, 1 + 6, 4)
    with pytest.raises(DataError, match="all 5 prompts fill the row"):
        tokenize_prompts(Dataset.from_dict({"prompt": ["abc"] * 5, "response": ["a"] * 5}), tokenizer, 4)


@pytest.mark.parametrize("packing", ["packed", "one_per_row"])
def test_stream_gives_the_same_rows_as_the_stored_texts(
    packing: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dataset = Dataset.from_dict({"text": ["abc de", "f", "ghi jkl mno"] * 20})
    stored = tokenize_and_pack(dataset, tokenizer, 8, packing, cache_dir=str(tmp_path))
    stream = tokenize_and_pack(dataset.to_iterable_dataset(), tokenizer, 8, packing)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == list(stored)
    assert list(stream.column_names) == ["input_ids"]


def test_cache_is_found_again_after_the_tokenizer_was_saved_and_used(tmp_path: Path) -> None:
    train_characters([ALPHABET]).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("abc\n" * 50)
    files = []
    for _ in range(2):
        texts = load_texts(files=tmp_path / "a.txt", cache_dir=str(tmp_path / "cache"))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        files.append(tokenize_and_pack(texts, tokenizer, 8, cache_dir=str(tmp_path / "cache")).cache_files)
        before = Hasher.hash(tokenizer)
        tokenizer("abc", truncation=True, max_length=3, padding="max_length")
        assert Hasher.hash(tokenizer) == before
    assert files[0] == files[1] != []
    other = train_characters([ALPHABET.upper()])
    changed = tokenize_and_pack(texts, other, 8, cache_dir=str(tmp_path / "cache"))
    assert changed.cache_files != files[0] and changed[0]["input_ids"][1] == 3


def test_huge_line_is_cut_into_blocks(tokenizer: PreTrainedTokenizerFast, write: Any, tmp_path: Path) -> None:
    path = write("a.txt", "abc " * 250_000)
    rows = tokenize_and_pack(load_texts(files=path, cache_dir=str(tmp_path)), tokenizer, 1002, cache_dir=str(tmp_path))
    assert len(rows) == 1000 and {len(row) for row in rows[:5]["input_ids"]} == {1002}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_length": 2}, "`max_length` must be a whole number of at least 3"),
        ({"max_length": 8.0}, "`max_length` must be"),
        ({"max_length": 8, "packing": "tight"}, "`packing` must be one of packed, one_per_row"),
        ({"max_length": 512, "keep_last": False}, "No row results: 3 tokens do not fill a block of 512"),
    ],
)
def test_wrong_packing_arguments_are_refused(
    arguments: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_and_pack(Dataset.from_dict({"text": ["abc"]}), tokenizer, cache_dir=str(tmp_path), **arguments)


def test_few_texts_give_one_short_row_rather_than_none(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = tokenize_and_pack(Dataset.from_dict({"text": ["abc"]}), tokenizer, 512, cache_dir=str(tmp_path))
    assert [len(row) for row in rows["input_ids"]] == [5]


def test_data_set_without_text_column_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no column `text` but body"):
        tokenize_and_pack(Dataset.from_dict({"body": ["a"]}), tokenizer, 8)


def test_report_says_what_was_left_out() -> None:
    report = DataReport(num_texts=1200, num_rows=3)
    report.add(DataReport(num_null=2, num_rows=1))
    assert str(report) == "1,200 texts, 0 tokens, 4 rows, 2 null rows left out"


# Splits


@properties(60)
@given(size=st.integers(2, 40), share=st.floats(0.01, 0.9), seed=st.integers(0, 2**32 - 1), tail=st.booleans())
def test_parts_are_disjoint_and_keep_every_text_in_order(size: int, share: float, seed: int, tail: bool) -> None:
    dataset = Dataset.from_dict({"text": [str(i) for i in range(size)]})
    try:
        train, validation = train_validation_split(dataset, share, seed, tail=tail)
    except DataError:
        assert np.ceil(share * size) >= size
        return
    parts = [[int(text) for text in part["text"]] for part in (train, validation)]
    assert sorted(parts[0] + parts[1]) == list(range(size))
    assert parts[0] == sorted(parts[0]) and parts[1] == sorted(parts[1])
    assert len(parts[1]) == np.ceil(share * size)
    assert not tail or parts[0] == list(range(len(parts[0])))
    again = train_validation_split(dataset, share, seed, tail=tail)[1]
    assert again["text"][:] == validation["text"][:]


def test_seed_decides_which_texts_validate() -> None:
    dataset = Dataset.from_dict({"text": [str(i) for i in range(1000)]})
    drawn = [train_validation_split(dataset, 100, seed)[1]["text"][:] for seed in range(3)]
    assert all(len(part) == 100 for part in drawn) and drawn[0] != drawn[1] != drawn[2]
    share_of_first_half = np.mean([int(text) < 500 for part in drawn for text in part])
    assert 0.35 < share_of_first_half < 0.65, "validation texts come from everywhere"


def test_single_text_is_cut_by_characters() -> None:
    train, validation = train_validation_split(Dataset.from_dict({"text": ["x" * 90 + "y" * 10]}), 0.1)
    assert (train["text"][:], validation["text"][:]) == (["x" * 90], ["y" * 10])


def test_stream_validates_on_its_first_texts() -> None:
    stream = Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()
    train, validation = train_validation_split(stream, 1)
    assert ([row["text"] for row in validation], [row["text"] for row in train]) == (["a"], ["b", "c"])
    with pytest.raises(ValueError, match="a stream has no known length"):
        train_validation_split(stream, 0.5)


def test_a_stream_that_is_divided_trains_on_no_text_that_validates() -> None:
    """`skip` of the library takes off the first texts of each part instead, and leaves in those that validate."""
    texts = [str(number) for number in range(20)]
    stream = Dataset.from_dict({"text": [*texts, "3"]}).to_iterable_dataset(num_shards=3)
    train, validation = train_validation_split(stream, 4)
    assert [row["text"] for row in validation] == texts[:4]
    parts = [train.shard(num_shards=3, index=index) for index in range(3)]
    assert [row["text"] for part in parts for row in part] == texts[4:]


def test_no_validation_is_no_part() -> None:
    dataset = Dataset.from_dict({"text": ["a", "b"]})
    assert train_validation_split(dataset, 0) == (dataset, None)


@pytest.mark.parametrize("validation", [-1, -0.1, 1.5, float("nan"), float("inf"), True])
def test_impossible_validation_is_refused(validation: float) -> None:
    with pytest.raises(ValueError, match="`validation` must be a share"):
        train_validation_split(Dataset.from_dict({"text": ["a", "b", "c"]}), validation)


@pytest.mark.parametrize("validation", [2, 3, 0.9])
def test_split_that_leaves_nothing_is_refused(validation: float) -> None:
    with pytest.raises(DataError, match="leaves none to train on"):
        train_validation_split(Dataset.from_dict({"text": ["a", "b"]}), validation)
