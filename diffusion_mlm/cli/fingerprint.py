"""The fingerprint of samples: all that decides them, so that samples of two kinds never come into one file."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__
from ..canvas import training_facts
from ..generation_config import DEFAULTS, DiffusionGenerationConfig
from .prefixes import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..constraints import Constraints


def fingerprint(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prefixes: Sequence[Prefix],
    config: DiffusionGenerationConfig,
    constraints: "Constraints | None",
    seed: int,
) -> dict[str, Any]:
    """What decides samples, by name: values of settings, and digests of what is long.

    The name of the checkpoint is none of it, its contents are; nor is `batch_size`, which changes no text.
    """
    return {
        "checkpoint": digest_of_model(model),
        "tokenizer": digest([json.dumps(sorted(tokenizer.get_vocab().items())).encode()]),
        "prefixes": digest(json.dumps([prefix.index, prefix.text]).encode() for prefix in prefixes),
        "constraints": dataclasses.asdict(constraints) if constraints is not None else None,
        **{name: getattr(config, name) for name in DEFAULTS if name != "batch_size"},
        "seed": seed,
        "version": __version__,
    }


def digest_of_model(model: nn.Module) -> str:
    """Of all weights, and of what the model says about its training; about a second a gigabyte."""

    def parts() -> Iterable[bytes]:
        yield json.dumps(training_facts(model), sort_keys=True).encode()
        for name, tensor in sorted(model.state_dict().items()):
            plain = tensor if type(tensor) is torch.Tensor else tensor.dequantize()  # int8 of torchao
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return digest(parts())


def digest(parts: Iterable[bytes]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()
