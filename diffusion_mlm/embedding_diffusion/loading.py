"""Checkpoints of embedding diffusion: recognizing and loading them."""

from transformers import PreTrainedConfig

from ..hub_access import require_repository
from .modeling import MODEL_TYPE, EmbeddingDiffusionModel


def is_embedding_diffusion(name_or_path: str) -> bool:
    """Whether `config.json` of a directory or a repository says so; False where there is none to read."""
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError):
        return False
    return found.get("model_type") == MODEL_TYPE


def load_embedding_diffusion(name_or_path: str, argument: str = "--checkpoint") -> EmbeddingDiffusionModel:
    """Loads a model of embedding diffusion from a directory or the Hub, from safetensors only.

    Raises:
        ValueError: the weights are missing, incomplete or damaged.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    require_repository(name_or_path, "model", argument)
    try:
        model, info = EmbeddingDiffusionModel.from_pretrained(
            name_or_path, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # safetensors raises a class of its own that derives from Exception alone
        if not isinstance(error, (OSError, ValueError, RuntimeError, KeyError)) and (
            type(error).__name__ != "SafetensorError"
        ):
            raise
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
        raise ValueError(f"`{argument}` is {name_or_path!r}, which cannot be loaded: {reason}.") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"`{argument}` is {name_or_path!r}, which lacks {missing}. Choose a complete checkpoint.")
    return model
