"""Streams of rows, divided among the processes and workers that train on them.

With fewer shards (files) than processes, each process reads the whole stream and keeps its own rows: the same batches
as one process with the same global batch, each row in its place. With at least as many shards as processes, each
process reads its own shards and nothing else, which is what many processes need to be fed. A row still comes once a
pass; but which rows share a batch depends on the number of processes, and a process of fewer rows begins its next pass
earlier.

Workers divide the shards that their process reads, and batches come from them in turn. So with workers, too, a row
comes once a pass, and the order depends on their number; more workers than shards are idle.
"""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from .endless_stream import EndlessStream
from .interruption import keep_worker_through_signals


def has_shards_for_all(dataset: Any, num_processes: int) -> bool:
    """Whether it is a stream that can be divided by shards among several processes."""
    return num_processes > 1 and not has_length(dataset) and getattr(dataset, "num_shards", 0) >= num_processes


def loader_of_own_shards(
    dataset: Any, collate: Callable[[list[Any]], Any], args: Any, accelerator: Accelerator
) -> DataLoader:
    """The loader of those shards of a stream that belong to this process, pass after pass.

    Args:
        dataset (`datasets.IterableDataset`): of rows.
        collate: makes a batch of a list of rows.
        args (`transformers.TrainingArguments`): the size of a batch, and how workers are run.
        accelerator: knows the processes.
    """
    own = dataset.shard(num_shards=accelerator.num_processes, index=accelerator.process_index)
    loader = DataLoader(
        EndlessStream(own),
        batch_size=args.train_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=keep_worker_through_signals,
    )
    # As if there were one process: what is left of the stream is this one's alone.
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
