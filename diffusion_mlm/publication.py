"""What of a directory goes to the Hub: an allow-list, without anything that is true of one machine only.

Weights (safetensors), tokenizer, configuration, generation settings, and the code that generates. Never optimizer
states unless asked for, arguments (they may hold a token), hidden or half-written files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .generation_config import DiffusionGenerationConfig
from .remote_code import ARCHITECTURE_FILES, CODE_FILE, CUSTOM_PIPELINES, architecture_code, remote_source
from .sealed_checkpoints import MANIFEST, manifest_text

CONFIG, GENERATION_CONFIG, CARD = "config.json", "generation_config.json", "README.md"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
}
# What transformers notes about where a file came from on this machine.
_LOCAL_FACTS = {
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "is_local",
    "local_files_only",
    "cache_dir",
    "tokenizer_file",
}
# What training goes on from, beside the model itself; `training_args.bin` is none of it.
_TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth|trainer_state\.json|"
    r"(run_state|adapter_model)\.safetensors"
)
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")  # what a token of the Hub looks like


def is_published(name: str) -> bool:
    """Whether a file of this name, at the top of a repository, is one that a push writes and may take away again.

    >>> [is_published(name) for name in ("model.safetensors", "training_args.bin", "optimizer.pt", "README.md")]
    [True, False, False, False]
    """
    own = name in (CONFIG, GENERATION_CONFIG, CODE_FILE, _INDEX, *ARCHITECTURE_FILES) or name in _TOKENIZER
    return own or _WEIGHTS.fullmatch(name) is not None


def model_files(directory: str | Path, argument: str = "directory") -> dict[str, bytes | Path]:
    """The files of a model: name in the repository -> its text, or where it lies.

    `config.json` says where the code is, `generation_config.json` and the code are added where they are missing.

    Raises:
        ValueError: the directory holds no model with safetensors weights, or no tokenizer.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        raise ValueError(
            f"`{argument}` is {str(directory)!r}, which holds no {CONFIG}: name the directory of a model."
        )
    files: dict[str, bytes | Path] = {
        path.name: path for path in sorted(directory.iterdir()) if path.is_file() and is_published(path.name)
    }
    _require_weights(files, directory, argument)
    if not files.keys() & _TOKENIZER - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}:
        raise ValueError(f"`{argument}` is {str(directory)!r}, which holds no tokenizer: save one beside the model.")
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    where, code = architecture_code(config.get("model_type", ""))
    files[CONFIG] = _clean_json({**config, "custom_pipelines": CUSTOM_PIPELINES, **where})
    for name in ("tokenizer_config.json", GENERATION_CONFIG):
        if name in files:
            files[name] = _clean_json(json.loads((directory / name).read_text(encoding="utf-8")))
    files.setdefault(GENERATION_CONFIG, _clean_json(DiffusionGenerationConfig().to_dict()))
    files[CODE_FILE] = remote_source().encode()
    return files | code


def training_state_files(checkpoint: str | Path, path_in_repo: str) -> dict[str, bytes | Path]:
    """What a run goes on from, the model included, under a folder of the repository; paths are cut to names.

    The manifest of a sealed checkpoint becomes that of the files that are sent, so that a run resumes from them
    exactly; it stays at home if a fact of the run is a path of this machine.
    """
    files: dict[str, bytes | Path] = {}
    for path in sorted(Path(checkpoint).iterdir()):
        if path.is_file() and (is_published(path.name) or _TRAINING_STATE.fullmatch(path.name)):
            files[f"{path_in_repo}/{path.name}"] = path
    adapter = Path(checkpoint) / "adapter_config.json"
    if adapter.is_file():
        files[f"{path_in_repo}/{adapter.name}"] = _clean_json(json.loads(adapter.read_text(encoding="utf-8")))
    state = Path(checkpoint) / "trainer_state.json"
    if state.is_file():
        found = json.loads(state.read_text(encoding="utf-8"))
        if found.get("best_model_checkpoint"):
            found["best_model_checkpoint"] = Path(found["best_model_checkpoint"]).name
            files[f"{path_in_repo}/{state.name}"] = _clean_json(found)
    manifest = Path(checkpoint) / MANIFEST
    if manifest.is_file():
        sealed = json.loads(manifest.read_text(encoding="utf-8"))
        facts = sealed["facts"]
        if not any(isinstance(value, str) and Path(value).is_absolute() for value in facts.values()):
            sent = {Path(name).name: _entry(content, sealed["files"]) for name, content in files.items()}
            files[f"{path_in_repo}/{MANIFEST}"] = manifest_text(sent, facts).encode()
    return files


def _entry(content: bytes | Path, sealed: Mapping[str, list[Any]]) -> list[Any]:
    if isinstance(content, Path):
        if content.name in sealed:
            return sealed[content.name]
        content = content.read_bytes()  # it came after the seal
    return [len(content), hashlib.sha256(content).hexdigest()]


def require_nothing_private(files: Mapping[str, bytes | Path], *private: str | None) -> None:
    """Raises ValueError if a file holds a token of the Hub or one of the texts `private`, such as a home directory.

    Of weights the header is read: numbers hold no text. Tokenizers hold words, and are searched for tokens only.
    """
    texts = [text.encode() for text in private if text and len(text) > 1]
    for name, content in files.items():
        data = content if isinstance(content, bytes) else _searchable(content)
        found = bool(_TOKEN.search(data))
        if Path(name).name not in _TOKENIZER - {"tokenizer_config.json"}:
            found = found or any(re.search(re.escape(text) + rb"(?![\w-])", data) for text in texts)
        if found:
            raise ValueError(
                f"{name} holds a token of the Hub or a path of this machine, so nothing is pushed. Take it out."
            )


def _searchable(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))


def _require_weights(files: Mapping[str, bytes | Path], directory: Path, argument: str) -> None:
    weights = {name for name in files if _WEIGHTS.fullmatch(name)}
    needed = set()
    if "model.safetensors" not in weights and _INDEX in files:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        needed = set(index.get("weight_map", {}).values())
    missing = sorted(needed - weights)
    if not weights or missing:
        lacks = f"lacks {missing[0]}" if missing else "holds no model.safetensors"
        raise ValueError(
            f"`{argument}` is {str(directory)!r}, which {lacks}: save the model there with `save_pretrained`."
        )


def _clean_json(facts: dict) -> bytes:
    kept = {name: value for name, value in facts.items() if name not in _LOCAL_FACTS}
    return (json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
