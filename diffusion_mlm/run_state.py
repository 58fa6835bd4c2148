"""What a training run must remember beside weights, optimizer and random state, as one file of its checkpoints."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

FILE_NAME = "run_state.safetensors"


def save_run_state(directory: str, parts: dict[str, Any]) -> None:
    """Writes the `state_dict` of each part; no file if there is none.

    Args:
        directory (`str`): of the checkpoint.
        parts (`dict`): by name, objects with `state_dict` and `load_state_dict` over tensors.
    """
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
    if tensors:
        save_file(tensors, Path(directory) / FILE_NAME)


def load_run_state(directory: str, parts: dict[str, Any]) -> list[str]:
    """Gives each part its state back.

    Returns:
        The names of the parts that the checkpoint has no state for, because it was saved with other settings; they
        are as they were.
    """
    path = Path(directory) / FILE_NAME
    tensors = load_file(path) if path.is_file() else {}
    absent = []
    for name, part in parts.items():
        prefix = f"{name}."
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if state:
            part.load_state_dict(state)
        else:
            absent.append(name)
    return absent
