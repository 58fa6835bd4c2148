"""Checkpoints of embedding diffusion."""

from ..hub_access import HubSource, require_repository
from .modeling import EmbeddingDiffusionModel


def load_embedding_diffusion(
    name_or_path: str, argument: str = "--checkpoint", source: HubSource | None = None
) -> EmbeddingDiffusionModel:
    """Loads a model of embedding diffusion from a directory or the Hub, from safetensors only.

    Raises:
        ValueError: the weights are missing, incomplete or damaged.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    require_repository(name_or_path, "model", argument, source=source)
    try:
        model, info = EmbeddingDiffusionModel.from_pretrained(
            name_or_path, use_safetensors=True, output_loading_info=True, **(source or {})
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
