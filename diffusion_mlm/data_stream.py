"""Streams of rows, divided among the processes and workers that train on them."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader


def stream_loader(dataset: Any, collate: Callable[[list[Any]], Any], args: Any) -> DataLoader:
    """The loader of a stream in training; `accelerator.prepare` gives each process its part of it.

    With fewer shards (files) than processes, each process reads the whole stream and keeps its own rows. One pass is
    then what one process sees with the same global batch: the same batches, each row in its place, and each row once
    but for the last ones, which fill no global batch. With at least as many shards as processes, each process reads
    its own shards and nothing else, which is what many processes need to be fed. Each row still comes at most once a
    pass; but which rows share a batch depends on the number of processes, and the pass ends when the first process has
    no whole step left.

    Workers divide the shards that their process reads, and batches come from them in turn. So with workers, too, a row
    comes once, and the order depends on their number; more workers than shards are idle.

    Args:
        dataset (`torch.utils.data.IterableDataset`): of rows; those of the datasets library know their shards.
        collate: makes a batch of a list of rows.
        args (`transformers.TrainingArguments`): the size of a batch, and how workers are run.
    """
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        collate_fn=collate,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
