"""What decides the weights that a training run ends with, as JSON: a checkpoint is resumed by a run of equal facts."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from .corruption import ForwardProcess
from .rate_distributions import RateHistogram

# Arguments that change no weight. Whatever else there is, or will be, counts.
_HARMLESS = (
    "allow_inexact", "auto_find", "batch_eval", "dataloader_", "ddp_timeout", "debug", "disable_", "do_", "enable_jit",
    "eval_", "greater_is", "hub_", "include_", "label_names", "load_best", "local_rank", "log", "metric_for",
    "output_dir", "overwrite_", "per_device_eval", "prediction_", "project", "push_", "remove_unused", "report_to",
    "restore_callback", "resume_from", "run_name", "sample_", "save_", "skip_memory", "torch_empty", "trackio_",
    "use_cache", "use_cpu",
)  # fmt: skip
_COLUMNS = ("input_ids", "prompt_length", "attention_mask", "labels")
_ROWS_AT_ONCE, _MAX_BLOCKS = 1000, 1000
_ROWS_OF_ANY_DATASET = 1000
_ROWS_OF_A_STREAM = 8


def run_facts(
    args: TrainingArguments, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, dataset: Any
) -> dict[str, Any]:
    """All facts by name: arguments, model, tokenizer, data, processes, device, threads and versions."""
    facts = {field.name: getattr(args, field.name) for field in fields(args) if not field.name.startswith(_HARMLESS)}
    if args.max_steps > 0:
        del facts["num_train_epochs"]
    facts["processes"] = args.world_size
    facts["threads"] = torch.get_num_threads()
    facts["device"] = _device_name(args.device)
    facts["model"] = _model_digest(model)
    facts["tokenizer"] = None if tokenizer is None else _tokenizer_digest(tokenizer)
    facts["data"] = data_digest(dataset)
    if isinstance(dataset, IterableDataset):  # its rows are dealt out by workers
        facts["dataloader_num_workers"] = args.dataloader_num_workers
    facts.update((f"version of {package.__name__}", package.__version__) for package in _packages())
    return json.loads(json.dumps(facts, sort_keys=True, default=str))


def masking_words(process: ForwardProcess) -> str:
    """How rows are masked, as the next process will find it again: numbers are known by their values."""
    words, law, weights = repr(process), process.rates, process.token_weights
    if isinstance(law, RateHistogram) and not isinstance(process.rate_distribution, str):
        words = words.replace(repr(process.rate_distribution), f"density {_tensor_digest(law.masses)}")
    if isinstance(weights, torch.Tensor):
        words += f", token weights {_tensor_digest(weights)}"
    elif weights is not None:  # of a function only the name can be known
        words += f", token weights {getattr(weights, '__qualname__', type(weights).__name__)}"
    return words


def _tensor_digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`name was X, is Y` for every fact that differs or that one side lacks."""
    return [
        f"`{name}` was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def data_digest(dataset: Any) -> str | None:
    """A digest of the rows, not of the files or caches that they come from.

    A `datasets.Dataset` is read whole up to a million rows; of more, a thousand blocks of a thousand rows that lie
    evenly spread. Of any other data set a thousand rows are read, of a stream of the datasets library the first
    8, and of another stream none: it may be one that can be read but once.
    """
    if dataset is None:
        return None
    import datasets

    sha = hashlib.sha256()
    if isinstance(dataset, datasets.Dataset):
        sha.update(f"{len(dataset)} rows".encode())
        rows = dataset.with_format("arrow")
        for start in _spread(len(dataset), _ROWS_AT_ONCE, _MAX_BLOCKS):
            table = rows[start : start + _ROWS_AT_ONCE]
            names = set(table.column_names)
            for name in sorted(names & set(_COLUMNS) or names):  # texts, if they are made into ids when they are read
                _add_column(sha.update, table.column(name).combine_chunks())
    elif isinstance(dataset, datasets.IterableDataset):
        sha.update(f"stream of {dataset.num_shards} shards".encode())
        for row in dataset.take(_ROWS_OF_A_STREAM):
            _add_row(sha.update, row)
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        sha.update(f"{len(dataset)} rows".encode())
        with torch.random.fork_rng(devices=[]):
            for index in _spread(len(dataset), 1, _ROWS_OF_ANY_DATASET):
                _add_row(sha.update, dataset[index])
    else:
        return type(dataset).__name__
    return sha.hexdigest()[:16]


def _spread(count: int, size: int, max_blocks: int) -> Iterator[int]:
    """Where at most `max_blocks` blocks of `size` begin, from the first to the last of `count` rows."""
    num_blocks = -(-count // size)
    step = max(num_blocks / max_blocks, 1)
    seen = -1
    for place in range(min(num_blocks, max_blocks)):
        block = min(int(place * step), num_blocks - 1)
        if block > seen:
            yield block * size
            seen = block


def _add_column(add: Callable[[bytes], None], column: Any) -> None:
    import pyarrow

    if hasattr(column, "value_lengths"):
        add(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
        column = column.flatten()
    if pyarrow.types.is_primitive(column.type) and not column.null_count:
        add(column.to_numpy(zero_copy_only=False).tobytes())
    else:
        add(repr(column.to_pylist()).encode())


def _add_row(add: Callable[[bytes], None], row: Any) -> None:
    for name, value in sorted(row.items()) if isinstance(row, dict) else []:
        if isinstance(value, str):
            add(f"{name} {value!r}".encode())
        elif name in _COLUMNS:
            add(f"{name} {torch.as_tensor(value).tolist()}".encode())


def _model_digest(model: nn.Module) -> str:
    """Of names and shapes of the weights and of the settings: not of the weights, which a checkpoint replaces."""
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}".encode())
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    for name in ("_name_or_path", "architectures", "diffusion", "dtype", "transformers_version"):
        settings.pop(name, None)
    attention = getattr(config, "_attn_implementation", None)
    sha.update(json.dumps([settings, attention], sort_keys=True, default=str).encode())
    return sha.hexdigest()[:16]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    parts = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _packages() -> list[Any]:
    import accelerate
    import datasets
    import transformers

    import diffusion_mlm

    return [diffusion_mlm, torch, transformers, accelerate, datasets]
