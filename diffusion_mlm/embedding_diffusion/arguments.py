"""What `train.py --process gaussian` takes: the choices of embedding diffusion. Imports nothing heavy."""

from dataclasses import dataclass, field, fields
from typing import Any

PROCESSES = ("masked", "gaussian")


@dataclass
class GaussianArguments:
    """Gaussian noise on embeddings in place of masks."""

    process: str = field(
        default="masked",
        metadata={
            "help": "masked: tokens are masked; gaussian: their embeddings get noise. Either turns a masked language "
            "model into a generator, or starts from a --preset.",
            "choices": list(PROCESSES),
        },
    )
    embedding_dim: int | None = field(
        default=None,
        metadata={
            "help": "Of --process gaussian: dimensions that get noise. Default: 16, 32, 64 or 128 by vocabulary."
        },
    )
    noise_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Of --process gaussian: how noise grows; informative is made for the vocabulary at hand, "
            "warped follows what the model learns. Default: informative; without --stagger warped; of eps_mse cosine.",
            "choices": ["warped", "informative", "cosine", "sqrt"],
        },
    )
    noise_objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "Of --process gaussian: cross_entropy of the token, or eps_mse, the squared error of the noise "
            "(then embeddings are as wide as the model and free).",
            "choices": ["cross_entropy", "eps_mse"],
        },
    )
    self_conditioning: float | None = field(
        default=None,
        metadata={
            "help": "Of --process gaussian: share of rows that see a first prediction of their own. Default: 0.5; of "
            "eps_mse and with --stagger, which writes without one, 0."
        },
    )
    stagger: float | None = field(
        default=None,
        metadata={
            "help": "Of --process gaussian: noise leaves the places of a text one after another, and that far apart; "
            "0: all at once. Default: 20; of eps_mse 0."
        },
    )

    def require_own_options(self) -> None:
        """Raises ValueError for options of another process, or values that are impossible."""
        if self.process not in PROCESSES:
            raise ValueError(f"`--process` must be one of {', '.join(PROCESSES)}, not {self.process!r}.")
        for of in fields(GaussianArguments):
            if self.process == "masked" and of.name != "process" and getattr(self, of.name) != of.default:
                raise ValueError(f"`--{of.name.replace('_', '-')}` belongs to `--process gaussian`: add that.")
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise ValueError(f"`--embedding-dim` must be at least 1, not {self.embedding_dim}.")
        if self.self_conditioning is not None and not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"`--self-conditioning` must lie in [0, 1], not {self.self_conditioning}.")
        if self.noise_objective == "eps_mse" and self.noise_schedule == "warped":
            raise ValueError(
                "`--noise-schedule` is 'warped', which follows the cross-entropy, and `--noise-objective eps_mse` "
                "trains none: leave one of them out."
            )
        if self.stagger is not None and not self.stagger >= 0:
            raise ValueError(f"`--stagger` must be at least 0, not {self.stagger}.")

    def settings(self, vocab_size: int, width: int) -> dict[str, Any]:
        """The settings of `EmbeddingDiffusionConfig` for a vocabulary and an encoder of this size.

        The squared error of the noise comes with what its literal recipe has: embeddings as wide as the encoder that
        are trained freely, and no self-conditioning.
        """
        literal = self.noise_objective == "eps_mse"
        return {
            "embedding_dim": self.embedding_dim or (width if literal else usual_embedding_dim(vocab_size)),
            "normalize_embeddings": not literal,
            "objective": self.noise_objective,
            "noise_schedule": self.noise_schedule,
            "self_conditioning": 0.0 if literal else self.self_conditioning,
            "stagger": self.stagger,
        }


def usual_embedding_dim(vocab_size: int) -> int:
    """Few dimensions, so that noise hides tokens for most of the time, and more for more tokens."""
    for dim, most in ((16, 2_000), (32, 10_000), (64, 30_000)):
        if vocab_size <= most:
            return dim
    return 128
