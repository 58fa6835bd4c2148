"""What every verb that reads a checkpoint takes, and how that is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .process import Process

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FINAL_MODEL = "results/final-model"


@dataclass
class CheckpointArguments:
    """The checkpoint, and how results are printed."""

    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": f"Directory or Hub id. (default: {FINAL_MODEL} if it exists, else the package's story generator)"
        },
    )
    output_format: str = field(
        default="text", metadata={"help": "json prints one object a line.", "choices": ["text", "json"]}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code in the repository run."})

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint that was named, else the default one."""
        return self.checkpoint if self.checkpoint is not None else default_checkpoint()


def default_checkpoint() -> str:
    """What is taken when no checkpoint is named."""
    from ..checkpoints import STORIES_GENERATOR

    return FINAL_MODEL if (Path(FINAL_MODEL) / "config.json").is_file() else STORIES_GENERATOR


def load_checkpoint(
    checkpoint: str, trust_remote_code: bool = False, argument: str = "--checkpoint"
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The generator of this name, on the GPU if there is one; processes take one GPU after another."""
    from ..generation import load_generator

    with no_loading_bar():
        model, tokenizer = load_generator(checkpoint, trust_remote_code=trust_remote_code, argument=argument)
    model.to(device_of_process())  # type: ignore[arg-type]  # `to` hides behind a wrapper
    return model, tokenizer


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Without the bar of the weights that are read; it silences every bar of the Hub's library too."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def device_of_process() -> str:
    """The GPU of this process, if there is one."""
    import torch

    gpu = Process.of_environment().local_rank % max(torch.cuda.device_count(), 1)
    return f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
