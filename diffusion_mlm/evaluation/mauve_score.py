"""MAUVE: how close the distribution of generated texts is to that of real ones, in the features of a judge."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor


def require_mauve() -> Callable[..., Any]:
    """The function that the package mauve-text computes it by.

    Raises:
        ImportError: the extra `mauve` is not installed.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ImportError("MAUVE needs another package: pip install 'diffusion-mlm[mauve]'.") from error
    return compute_mauve  # type: ignore[no-any-return]  # the package has no types


def mauve_score(generated: Tensor, real: Tensor, seed: int = 0) -> float:
    """MAUVE of two sets of features, in (0, 1]; 1 if they cannot be told apart.

    It depends on the number of texts, on their length and on what the features are of: compare figures of equal ones
    only, and with that of two sets of real texts. Settings are those of the paper: a tenth as many clusters as texts,
    scaling factor 5.

    Args:
        generated, real (`torch.Tensor` of shape `(num_texts, hidden_size)`): see `Judge.features`.
        seed (`int`): of the clustering.

    Raises:
        ImportError: the extra `mauve` is not installed.
        ValueError: there are fewer than two texts in one of the sets.

    Source: Pillutla et al. 2021, arXiv:2102.01454.
    """
    compute_mauve = require_mauve()
    if min(len(generated), len(real)) < 2:
        raise ValueError(f"`mauve` needs at least two texts on either side, not {len(generated)} and {len(real)}.")
    found = compute_mauve(
        p_features=np.asarray(generated, dtype=np.float32),
        q_features=np.asarray(real, dtype=np.float32),
        seed=seed,
        verbose=False,
    )
    return float(found.mauve)
