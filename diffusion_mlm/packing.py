"""From texts to rows of token ids: packed blocks, one text a row, or prompt and response.

Every step is a `map` or a generator of the datasets library, cached on disk under a fingerprint of its input, the
tokenizer and the arguments. All fill is `</s>`, a real token that the model sees and learns, never `<pad>`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from .data_report import DataReport
from .file_format import DataError
from .tokenization import boundary_token_ids, encode_texts, special_token_ids

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Packing: TypeAlias = Literal["packed", "one_per_row"]
PACKINGS = ("packed", "one_per_row")
_TEXTS_AT_ONCE = 1000
_VERSION = 1  # part of every fingerprint: raise it when the rows of the same texts change, or old caches are read

logger = logging.getLogger(__name__)


def tokenize_and_pack(
    dataset: "Dataset | IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    packing: Packing = "packed",
    *,
    separate_texts: bool = True,
    keep_last: bool | None = None,
    fill: bool = True,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    report: DataReport | None = None,
) -> "Dataset | IterableDataset":
    """Tokenises the column `text` and makes rows of at most `max_length` tokens, each opened by `<s>`.

    * `"packed"`: the texts follow one another, a `</s>` between two of them, and are cut into blocks of
      `<s>`, `max_length - 2` tokens, `</s>` (RoBERTa's FULL-SENTENCES). No token is lost but those of a dropped last
      block. A stream is packed in batches of 1000 texts, and the incomplete block of *each* batch is treated as last.
    * `"one_per_row"`: `<s>`, the text, `</s>`, and more `</s>` up to `max_length`. A text that is too long is cut to
      `max_length - 1` tokens and has no `</s>`: the row does not pretend that the text ends there.

    Args:
        dataset: as from `load_texts`. One that streams gives one that streams.
        tokenizer: with a mask token. Its special tokens inside a text are read as plain characters.
        max_length (`int`): tokens in a row, at least 3. Whether the model takes as many is the caller's to check.
        packing (`str`): `"packed"` or `"one_per_row"`.
        separate_texts (`bool`): packed: False joins the texts with nothing between, for the rows of continuous text.
        keep_last (`bool`, *optional*): packed: whether a last, shorter block is kept, without fill. By default only if
            there is no other, so that all rows have equal length.
        fill (`bool`): one_per_row: False leaves the rows as short as their texts.
        num_proc (`int`, *optional*): processes that tokenise.
        cache_dir (`str`, *optional*): for the packed blocks; the cache of the datasets library by default.
        report (`DataReport`, *optional*): gets the counts added.

    Returns:
        The data set of rows: `input_ids`, a list of int32, is its only column.

    Raises:
        ValueError: an argument is out of range, or the tokenizer lacks a token.
        DataError: there is no column `text`, or no row results.
    """
    if packing not in PACKINGS:
        raise ValueError(f"`packing` must be one of {', '.join(PACKINGS)}, got {packing!r}.")
    settings = _row_settings(tokenizer, max_length)
    _require_columns(dataset, ("text",), "Make one with `load_texts`, or call `tokenize_prompts` for pairs.")
    if _is_stream(dataset):
        return _stream_rows(dataset, tokenizer, packing, settings, separate_texts, keep_last, fill)

    tokens = _tokenize(dataset, tokenizer, ("text",), num_proc)
    lengths = _list_lengths(tokens, "text_ids")
    counts = DataReport(num_texts=len(dataset), num_literal=_count_literal(tokens), num_tokens=int(lengths.sum()))
    if counts.num_tokens == 0:
        raise DataError("The texts give no token at all: look at the tokenizer and the text column.")
    if packing == "one_per_row":
        rows = tokens.map(
            _rows_of_texts,
            batched=True,
            remove_columns=tokens.column_names,
            features=_row_features(),
            fn_kwargs={**settings, "fill": fill, "version": _VERSION},
            desc="Making rows",
        )
        counts.num_cut = int((lengths > max_length - 2).sum())
        counts.num_dropped_tokens = int(np.maximum(lengths - (max_length - 1), 0).sum())
        counts.num_fill = int(np.maximum(max_length - 2 - lengths, 0).sum()) if fill else 0
    else:
        total = counts.num_tokens + (int((lengths > 0).sum()) - 1 if separate_texts else 0)
        if total < max_length - 2 and keep_last is False:
            raise DataError(
                f"No row results: {total:,} tokens do not fill a block of {max_length}. Pass more text, a smaller "
                f"`max_length`, or keep the last block."
            )
        rows = _packed_dataset(tokens, settings, separate_texts, keep_last, cache_dir)
        counts.num_dropped_tokens = total - (int(_list_lengths(rows, "input_ids").sum()) - 2 * len(rows))
    counts.num_rows = len(rows)
    _finish(counts, report)
    return rows


def tokenize_prompts(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    fill: bool = True,
    num_proc: int | None = None,
    report: DataReport | None = None,
) -> "Dataset":
    """Rows `<s>`, prompt, response, `</s>`, filled with `</s>`, from the columns `prompt` and `response`.

    Nothing is put between the two: a space there belongs to one of the texts. A response that is too long is cut as in
    `tokenize_and_pack`; a prompt that leaves no room for a token behind it drops the pair.

    Returns:
        The data set of rows: `input_ids`, and `prompt_length`, the number of tokens that are given (`<s>` and prompt),
        never masked in training.

    Raises: as `tokenize_and_pack`.
    """
    settings = _row_settings(tokenizer, max_length)
    _require_columns(dataset, ("prompt", "response"), "Make one with `load_prompts`.")
    if _is_stream(dataset):
        raise ValueError("`dataset` must not stream: pairs of prompt and response are read whole.")
    from datasets import Value

    tokens = _tokenize(dataset, tokenizer, ("prompt", "response"), num_proc)
    prompts, responses = _list_lengths(tokens, "prompt_ids"), _list_lengths(tokens, "response_ids")
    has_room = prompts <= max_length - 2
    if not has_room.any():
        raise DataError(f"No row results: all {len(dataset):,} prompts fill the row. Pass a larger `max_length`.")
    rows = tokens.map(
        _rows_of_prompts,
        batched=True,
        remove_columns=tokens.column_names,
        features=_row_features(prompt_length=Value("int32")),
        fn_kwargs={**settings, "fill": fill, "version": _VERSION},
        desc="Making rows",
    )
    lengths = (prompts + responses)[has_room]
    counts = DataReport(
        num_texts=len(dataset),
        num_literal=_count_literal(tokens),
        num_tokens=int(prompts.sum() + responses.sum()),
        num_rows=len(rows),
        num_cut=int((lengths > max_length - 2).sum()),
        num_dropped=int((~has_room).sum()),
        num_dropped_tokens=int(
            np.maximum(lengths - (max_length - 1), 0).sum() + (prompts + responses)[~has_room].sum()
        ),
        num_fill=int(np.maximum(max_length - 2 - lengths, 0).sum()) if fill else 0,
    )
    _finish(counts, report)
    return rows


# Rows: pure functions of token ids


def pack(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    max_length: int,
    start_id: int,
    end_id: int,
    separate_texts: bool = True,
    keep_last: bool | None = None,
) -> Iterator[list[int]]:
    """Blocks of exactly `max_length` tokens from texts that follow one another.

    Args:
        batches: pairs of the token ids of several texts, one after the other, and the number of tokens of each text.

    Yields:
        `list[int]`: `<s>`, `max_length - 2` tokens, `</s>`; the last one, if it is kept, may be shorter.
    """
    body = max_length - 2
    rest = np.zeros(0, dtype=np.int32)
    found_text = found_block = False
    for flat, lengths in batches:
        lengths = lengths[lengths > 0]
        if len(lengths) == 0:
            continue
        if separate_texts:
            before = np.cumsum(lengths) - lengths  # where each text begins; the very first has no separator before it
            flat = np.insert(flat, before if found_text else before[1:], end_id)
        found_text = True
        stream = np.concatenate([rest, flat])
        count = len(stream) // body
        rest = stream[count * body :]
        for block in stream[: count * body].reshape(count, body).tolist():
            found_block = True
            yield [start_id, *block, end_id]
    if len(rest) and (not found_block if keep_last is None else keep_last):
        yield [start_id, *rest.tolist(), end_id]


def _row(ids: list[int], max_length: int, start_id: int, end_id: int, fill: bool) -> list[int]:
    row = [start_id, *ids[: max_length - 1]]
    if len(ids) <= max_length - 2:
        row.extend([end_id] * (max_length - len(row) if fill else 1))
    return row


def _rows_of_texts(
    batch: dict[str, Any], max_length: int, start_id: int, end_id: int, fill: bool, version: int
) -> dict[str, Any]:
    return {"input_ids": [_row(ids, max_length, start_id, end_id, fill) for ids in batch["text_ids"]]}


def _rows_of_prompts(
    batch: dict[str, Any], max_length: int, start_id: int, end_id: int, fill: bool, version: int
) -> dict[str, Any]:
    pairs = zip(batch["prompt_ids"], batch["response_ids"], strict=True)
    kept = [(prompt, response) for prompt, response in pairs if len(prompt) <= max_length - 2]
    return {
        "input_ids": [_row(prompt + response, max_length, start_id, end_id, fill) for prompt, response in kept],
        "prompt_length": [1 + len(prompt) for prompt, _ in kept],
    }


# The platform's side


def _row_settings(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> dict[str, int]:
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3:
        raise ValueError(
            f"`max_length` must be a whole number of at least 3 (<s>, one token, </s>), got {max_length!r}."
        )
    special_token_ids(tokenizer)  # refuses a tokenizer without a mask token
    start_id, end_id = boundary_token_ids(tokenizer)
    return {"max_length": max_length, "start_id": start_id, "end_id": end_id}


def _is_stream(dataset: Any) -> bool:
    from datasets import IterableDataset

    return isinstance(dataset, IterableDataset)


def _require_columns(dataset: Any, names: tuple[str, ...], remedy: str) -> None:
    columns = dataset.column_names
    missing = [name for name in names if columns is not None and name not in columns]
    if missing:
        raise DataError(f"The data set has no column `{missing[0]}` but {', '.join(columns) or 'none'}. {remedy}")


def _row_features(**more: Any) -> Any:
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32")), **more})


def _tokenize(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", columns: tuple[str, ...], num_proc: int | None
) -> "Dataset":
    """Token ids without special tokens, a column `<name>_ids` for each column, and `has_literal`."""
    from datasets import Features, List, Value

    return dataset.map(
        _encode_batch,
        batched=True,
        batch_size=_TEXTS_AT_ONCE,
        num_proc=num_proc,
        remove_columns=dataset.column_names,
        features=Features({**{f"{name}_ids": List(Value("int32")) for name in columns}, "has_literal": Value("bool")}),
        fn_kwargs={"tokenizer": tokenizer, "columns": columns, "version": _VERSION},  # all of it in the fingerprint
        desc="Tokenising",
    )


def _encode_batch(
    batch: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", columns: tuple[str, ...], version: int
) -> dict[str, Any]:
    strings = [token for token in tokenizer.all_special_tokens if token]
    texts = zip(*(batch[name] for name in columns), strict=True)
    encoded: dict[str, Any] = {f"{name}_ids": encode_texts(tokenizer, batch[name]) for name in columns}
    encoded["has_literal"] = [any(string in part for string in strings for part in parts) for parts in texts]
    return encoded


def _arrow_batches(dataset: "Dataset", column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batch by batch: the values of a column of lists, one after the other, and the length of each list."""
    for table in dataset.select_columns([column]).with_format("arrow").iter(_TEXTS_AT_ONCE):
        for chunk in table.column(column).chunks:
            yield chunk.flatten().to_numpy(zero_copy_only=False), chunk.value_lengths().to_numpy(zero_copy_only=False)


def _list_lengths(dataset: "Dataset", column: str) -> np.ndarray:
    lengths = [lengths for _, lengths in _arrow_batches(dataset, column)]
    return np.concatenate(lengths).astype(np.int64) if lengths else np.zeros(0, dtype=np.int64)


def _count_literal(tokens: "Dataset") -> int:
    batches = tokens.select_columns(["has_literal"]).with_format("numpy").iter(10 * _TEXTS_AT_ONCE)
    return int(sum(batch["has_literal"].sum() for batch in batches))


def _generate_packed(
    tokens: "Dataset", settings: dict[str, int], separate_texts: bool, keep_last: bool | None
) -> Iterator[dict[str, list[int]]]:
    for block in pack(
        _arrow_batches(tokens, "text_ids"), **settings, separate_texts=separate_texts, keep_last=keep_last
    ):
        yield {"input_ids": block}


def _packed_dataset(
    tokens: "Dataset", settings: dict[str, int], separate_texts: bool, keep_last: bool | None, cache_dir: str | None
) -> "Dataset":
    from datasets.fingerprint import Hasher

    # The tokens are one stream across all batches, which no `map` can see; so a generator, with its own fingerprint.
    arguments = {"tokens": tokens, "settings": settings, "separate_texts": separate_texts, "keep_last": keep_last}
    key = (tokens._fingerprint, sorted(settings.items()), separate_texts, keep_last, _VERSION)
    return store_rows(_generate_packed, arguments, _row_features(), Hasher.hash(key), cache_dir)


def store_rows(
    generator: Callable[..., Iterator[dict[str, Any]]],
    arguments: dict[str, Any],
    features: Any,
    fingerprint: str,
    cache_dir: str | None,
) -> "Dataset":
    """A data set of what `generator(**arguments)` yields, stored on disk and read from there if it is stored already.

    Raises: what the generator raises, and `OSError` for a full disk, not the wrapper that the library puts around.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return Dataset.from_generator(
            generator, features=features, gen_kwargs=arguments, fingerprint=fingerprint, cache_dir=cache_dir
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError | OSError):
            raise error.__cause__ from None
        raise


def _stream_rows(
    dataset: "IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    packing: Packing,
    settings: dict[str, int],
    separate_texts: bool,
    keep_last: bool | None,
    fill: bool,
) -> "IterableDataset":
    def rows_of(batch: dict[str, Any]) -> dict[str, Any]:
        encoded = encode_texts(tokenizer, batch["text"])
        if packing == "one_per_row":
            return _rows_of_texts({"text_ids": encoded}, **settings, fill=fill, version=_VERSION)
        flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int32)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64)
        return {
            "input_ids": list(pack([(flat, lengths)], **settings, separate_texts=separate_texts, keep_last=keep_last))
        }

    columns = dataset.column_names or ["text"]
    return dataset.map(
        rows_of, batched=True, batch_size=_TEXTS_AT_ONCE, remove_columns=columns, features=_row_features()
    )


def _finish(counts: DataReport, report: DataReport | None) -> None:
    if counts.num_cut:
        logger.warning(
            "%d texts are longer than a row and are cut; `packing='packed'` keeps all of a text.", counts.num_cut
        )
    if counts.num_literal:
        logger.info("%d texts hold the string of a special token; it is read as plain characters.", counts.num_literal)
    if report is not None:
        report.add(counts)
