"""The model of embedding diffusion: noisy embeddings go in, a distribution over tokens at every place comes out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .. import presets as presets  # makes its architectures known to transformers
from ..denoising_step import DenoisingStep
from ..evaluation.likelihood import RowBounds
from .noise import (
    NOISE_SCHEDULES,
    NoiseSchedule,
    add_noise,
    alpha_sigma,
    cosine_knots,
    make_knots,
    noise_log_likelihood,
    per_place,
)

OBJECTIVES = ("cross_entropy", "eps_mse")
MODEL_TYPE = "embedding_diffusion"

_SMOOTHING = 0.1  # of token counts: a token that the training text lacks is unlikely, not impossible


class EmbeddingDiffusionConfig(PreTrainedConfig):
    """What an `EmbeddingDiffusionModel` is made of.

    Args:
        encoder (`dict`): the configuration of a masked language model of transformers, as its `to_dict` gives it.
        vocab_size (`int`): tokens.
        embedding_dim (`int`): dimensions d of the embeddings that get noise. Few: at 768 noise hides a token over 13 %
            of the time only, at 16 over most of it.
        normalize_embeddings (`bool`): whether embeddings have the norm sqrt(d), so that training can neither shrink
            nor merge them.
        embedding_std (`float`): of the embeddings at the start, where it is their scale: they are not normalised.
        objective (`str`): `cross_entropy` on the prediction of the token, or `eps_mse`, the squared error of a
            predicted noise.
        noise_schedule (`str`, *optional*): `informative`, made for the vocabulary at hand, which is what the noise of
            a place tells by itself; `warped`, which follows what the model learns; `cosine` or `sqrt`. Default:
            informative; without stagger warped; of eps_mse cosine.
        self_conditioning (`float`, *optional*): share of the training rows that see a first prediction of their own;
            above 0, sampling feeds each prediction to the next step where all places go at once (Analog Bits,
            arXiv:2208.04202, section 3.2). Default: 0.5; with stagger, and of eps_mse, 0.
        mask_token_id (`int`, *optional*): the word that is read where a noisy embedding says nothing; without one it
            is the mean of all words.
        adds_unigram (`bool`): whether the unigram law is added to the logits. That of a masked language model that was
            trained before is in them already.
        stagger (`float`, *optional*): how far the times at which noise leaves the places of a text are apart, see
            `noise.staggered_times`; 0: it leaves all at once. Default: 20; of eps_mse 0.
        initializer_range (`float`, *optional*): of the first weights; that of the encoder by default.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    model_type = MODEL_TYPE

    encoder: dict | None = None
    vocab_size: int = 0
    embedding_dim: int = 16
    normalize_embeddings: bool = True
    embedding_std: float = 1.0
    objective: str = "cross_entropy"
    noise_schedule: str | None = None
    self_conditioning: float | None = None
    stagger: float | None = None
    mask_token_id: int | None = None
    adds_unigram: bool = True
    initializer_range: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Where it came from is nobody's business, and what it was trained for no longer true.
        left_out = ("_name_or_path", "diffusion")
        self.encoder = {name: value for name, value in (self.encoder or {}).items() if name not in left_out}
        if self.initializer_range is None:
            self.initializer_range = self.encoder.get("initializer_range", 0.02)
        if self.encoder:
            self.vocab_size = self.vocab_size or self.encoder["vocab_size"]
            kwargs = {
                name: self.encoder.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            } | kwargs
        predicts_noise = self.objective == "eps_mse"
        if self.stagger is None:
            self.stagger = 0.0 if predicts_noise else 20.0
        if self.self_conditioning is None:
            self.self_conditioning = 0.0 if predicts_noise or self.stagger else 0.5
        if self.noise_schedule is None:
            self.noise_schedule = "cosine" if predicts_noise else "informative" if self.stagger else "warped"
        for name, choices in (("objective", OBJECTIVES), ("noise_schedule", NOISE_SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.embedding_dim < 1:
            raise ValueError(f"`embedding_dim` must be at least 1, not {self.embedding_dim!r}.")
        if not self.stagger >= 0:
            raise ValueError(f"`stagger` must be at least 0, not {self.stagger!r}.")
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"`self_conditioning` must lie in [0, 1], not {self.self_conditioning!r}.")
        if predicts_noise and self.self_conditioning:
            raise ValueError(
                f"`self_conditioning` is {self.self_conditioning:g}, but objective eps_mse predicts no tokens that "
                f"could be fed back: set it to 0."
            )
        if predicts_noise and self.noise_schedule == "warped":
            raise ValueError(
                "`noise_schedule` is 'warped', which follows the cross-entropy, but eps_mse trains none: set "
                "it to cosine, sqrt or informative."
            )
        super().__post_init__(**kwargs)

    @property
    def draws_tokens(self) -> bool:
        """Whether generation draws tokens, not just means: places clear one by one, and tokens are predicted."""
        return bool(self.stagger) and self.objective == "cross_entropy"

    @property
    def max_position_embeddings(self) -> int | None:
        """That of the encoder: how long a row may be, see `modeling.context_length`."""
        return (self.encoder or {}).get("max_position_embeddings")


@dataclass
class EmbeddingDiffusionOutput(ModelOutput):
    """What the model says.

    Attributes:
        logits (`torch.Tensor` of shape `(B, L, V)`): of the token at each place.
        embedding (`torch.Tensor` of shape `(B, L, d)`, *optional*): the predicted clean embedding, where it is not the
            mean under the logits (objective eps_mse).
        eps (`torch.Tensor` of shape `(B, L, d)`, *optional*): the predicted noise, where that is what is predicted.
    """

    logits: Tensor
    embedding: Tensor | None = None
    eps: Tensor | None = None


class EmbeddingDiffusionModel(PreTrainedModel):
    """Reads a row of noisy embeddings, some of them given clean, and predicts every token.

    With objective cross_entropy the logits are three terms of Bayes' rule: the log-likelihood of the noisy embedding
    under each token, which is exact (`noise.noise_log_likelihood`); the unigram law; and what a masked language model
    adds. With nothing added that is the best decoder without context, so that all there is to learn is context.
    That model reads at each place its own word embeddings averaged under the first two terms, and as far as those
    leave the token open its mask token (a given token is just its word embedding); the noisy embedding, the log-SNR,
    and a flag at what is given. Where noise hides some tokens, and not the others, it so reads what it would read of
    masked text: one that was trained before (`embedding_diffusion_from`) starts out with what it knows.

    With objective eps_mse the encoder reads the noisy embedding and the log-SNR alone and predicts the noise.

    Any masked language model of transformers that takes `inputs_embeds` serves.
    """

    config_class = EmbeddingDiffusionConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    float32_only = True  # of weights in generation: noise is computed from them
    _supports_sdpa = True
    _supports_flash_attn = True

    config: EmbeddingDiffusionConfig
    log_unigram: Tensor
    noise_knots: Tensor

    def __init__(self, config: EmbeddingDiffusionConfig) -> None:
        super().__init__(config)
        encoder_config = AutoConfig.for_model(**config.encoder)  # type: ignore[arg-type]  # a dictionary from `__init__` on
        whole = _masked_language_model(encoder_config, config._attn_implementation)
        predicts_tokens = config.objective == "cross_entropy"
        self.denoiser = whole if predicts_tokens else whole.base_model
        width = self.words.embedding_dim  # of what the encoder reads, which is not always as wide as its layers
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.read_noisy = nn.Linear(config.embedding_dim, width)
        self.read_level = nn.Sequential(nn.Linear(2 * _NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        if predicts_tokens:
            self.given = nn.Embedding(1, width)
            self.read_previous = nn.Linear(width, width, bias=False) if config.self_conditioning else None
        else:
            self.words.requires_grad_(False)  # they are not read
            self.head = nn.Linear(encoder_config.hidden_size, config.embedding_dim)
        self.register_buffer("log_unigram", torch.full((config.vocab_size,), -math.log(max(config.vocab_size, 1))))
        self.register_buffer("noise_knots", cosine_knots().float())
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The encoder inside, without its head."""
        return self.denoiser.base_model

    @property
    def words(self) -> nn.Embedding:
        """The encoder's own embeddings of the tokens, as wide as its layers; noise is not added to them."""
        return self.denoiser.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module | None:
        return self.denoiser.get_output_embeddings() if self.config.objective == "cross_entropy" else None

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the model is trained with."""
        return NoiseSchedule(self.noise_knots)

    @property
    def knows_unigram(self) -> bool:
        """Whether `take_unigram` was called: what the model says depends on it ever after."""
        return bool(self.log_unigram.min() < self.log_unigram.max())

    def clean_embeddings(self) -> Tensor:
        """The embeddings that get noise, `(V, d)`; normalised ones have the norm sqrt(d)."""
        table = self.embeddings.weight.float()
        if not self.config.normalize_embeddings:
            return table
        return math.sqrt(self.config.embedding_dim) * nn.functional.normalize(table, dim=-1)

    @torch.no_grad()
    def take_unigram(self, counts: Tensor) -> None:
        """Takes over how often each token occurs in the training text, and the noise schedule that follows from it.

        Args:
            counts (`torch.Tensor` of shape `(V,)`): zeros for tokens that are always given.
        """
        smoothed = counts.double() + _SMOOTHING
        self.log_unigram.copy_((smoothed / smoothed.sum()).log())
        table = self.clean_embeddings()
        self.noise_knots.copy_(make_knots(str(self.config.noise_schedule), self.log_unigram.to(table.device), table))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_noised: Tensor | None = None,
        log_snr: Tensor | None = None,
        noise: Tensor | None = None,
        self_condition: Tensor | None = None,
        **kwargs: Any,
    ) -> EmbeddingDiffusionOutput:
        """Adds noise to clean rows and predicts what was there.

        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`): clean tokens.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*).
            is_noised (`torch.BoolTensor` of shape `(B, L)`): the others are given.
            log_snr (`torch.Tensor` of shape `(B,)` or `(B, L)`): the noise level of each row, or place.
            noise (`torch.Tensor` of shape `(B, L, d)`): standard normal.
            self_condition (`torch.BoolTensor` of shape `(B,)`, *optional*): rows that see a first prediction.

        Raises:
            ValueError: a noise level is missing: without one there is nothing to predict.
        """
        if is_noised is None or log_snr is None or noise is None:
            raise ValueError(
                "`log_snr`, `noise` or `is_noised` is missing: a model of embedding diffusion reads noisy embeddings "
                "and has no logits for masked text. Its likelihood bound, `generate` and `infill` do without."
            )
        z = add_noise(self.clean_embeddings()[input_ids], noise, log_snr)
        previous = None
        if self_condition is not None and self.config.self_conditioning and bool(self_condition.any()):
            rows = self_condition.nonzero()[:, 0]
            mask = attention_mask[rows] if attention_mask is not None else None
            with torch.no_grad():
                first = self.predict(z[rows], log_snr[rows], input_ids[rows], is_noised[rows], mask).logits
                means = self._mean_words(first)
            previous = torch.zeros(*input_ids.shape, means.shape[-1], dtype=means.dtype, device=means.device)
            previous[rows] = means
        return self._predict(z, log_snr, input_ids, is_noised, attention_mask, previous)

    def predict(
        self,
        z: Tensor,
        log_snr: Tensor,
        input_ids: Tensor,
        is_noised: Tensor,
        attention_mask: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> EmbeddingDiffusionOutput:
        """What the clean tokens are, from noisy embeddings.

        Args:
            z (`torch.Tensor` of shape `(B, L, d)`), log_snr (`torch.Tensor` of shape `(B,)` or `(B, L)`): noisy
                embeddings and their level.
            input_ids (`torch.Tensor` of shape `(B, L)`): tokens, read only where `is_noised` is False.
            is_noised (`torch.BoolTensor` of shape `(B, L)`), attention_mask (`torch.Tensor`, *optional*).
            previous (`torch.Tensor` of shape `(B, L, V)`, *optional*): logits of the step before.
        """
        means = None if previous is None or not self.config.self_conditioning else self._mean_words(previous)
        return self._predict(z, log_snr, input_ids, is_noised, attention_mask, means)

    def fill(self, *args: Any, **kwargs: Any) -> Iterator[DenoisingStep]:
        """The steps that fill canvases, see `generation.fill_by_denoising`; `filling.fill_canvases` asks for them."""
        from .generation import fill_by_denoising

        return fill_by_denoising(self, *args, **kwargs)

    def bound_of_rows(self, *args: Any, **kwargs: Any) -> RowBounds:
        """The likelihood bound of rows, see `likelihood.gaussian_bound_of_rows`."""
        from .likelihood import gaussian_bound_of_rows

        return gaussian_bound_of_rows(self, *args, **kwargs)

    def _mean_words(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float(), -1).to(self.words.weight.dtype) @ self.words.weight

    def _predict(
        self,
        z: Tensor,
        log_snr: Tensor,
        input_ids: Tensor,
        is_noised: Tensor,
        attention_mask: Tensor | None,
        previous: Tensor | None,
    ) -> EmbeddingDiffusionOutput:
        table = self.clean_embeddings()
        z = torch.where(is_noised[..., None], z, table[input_ids])
        level = self.read_level(_waves(per_place(log_snr)).to(z.dtype))  # (B, 1 or L, H)
        if self.config.objective == "eps_mse":
            hidden = self.denoiser(inputs_embeds=self.read_noisy(z) + level, attention_mask=attention_mask)
            eps = self.head(hidden.last_hidden_state).float()
            alpha, sigma = map(per_place, alpha_sigma(log_snr))
            embedding = (z - sigma * eps) / alpha
            # Tokens are read from the prediction as if it had been observed with the noise of this level.
            logits = self.log_unigram + (alpha / sigma) ** 2 * (embedding @ table.T - table.square().sum(-1) / 2)
            return EmbeddingDiffusionOutput(logits, embedding, eps)
        # 1. What each place says by itself.
        likelihood = noise_log_likelihood(z, log_snr, table)  # (B, L, V)
        alone = likelihood + self.log_unigram
        # 2. The model reads that, as a mean of words, and the clean words that are given.
        read = torch.where(is_noised[..., None], self._read_alone(alone), self.words(input_ids))
        read = read + self.read_noisy(z) + level + self.given.weight * (~is_noised)[..., None]
        if self.read_previous is not None:
            read = read + self.read_previous(torch.zeros_like(read) if previous is None else previous.to(read.dtype))
        # 3. What the context adds.
        context = self.denoiser(inputs_embeds=read, attention_mask=attention_mask).logits.float()
        return EmbeddingDiffusionOutput(context + (alone if self.config.adds_unigram else likelihood))

    def _read_alone(self, logits: Tensor) -> Tensor:
        """The mean of the words, and the mask token as far as nothing is known: `(B, L, V)` to `(B, L, H)`."""
        log_p = torch.log_softmax(logits.float(), -1)
        p, words = log_p.exp(), self.words.weight
        mean = p.to(words.dtype) @ words
        if self.config.mask_token_id is None:
            return mean
        entropy = -(p * log_p.clamp(min=_LEAST_LOG)).sum(-1)  # 0 times -inf is 0 here
        open_share = (entropy / -(self.log_unigram.exp() * self.log_unigram).sum()).clamp(0, 1).to(mean.dtype)
        return torch.lerp(mean, words[self.config.mask_token_id].to(mean.dtype), open_share[..., None])


def _masked_language_model(config: PreTrainedConfig, attention: str | None) -> PreTrainedModel:
    try:
        return AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    except ValueError:  # this architecture has no other than its own
        return AutoModelForMaskedLM.from_config(config, attn_implementation="eager")


_NUM_FREQUENCIES = 16
_LEAST_LOG = -100.0


def _waves(log_snr: Tensor) -> Tensor:
    """Sines and cosines of the log-SNR with periods from 1 to 64, `(..., 1)` to `(..., 32)`, float32."""
    periods = torch.logspace(0, 6, _NUM_FREQUENCIES, base=2.0, dtype=torch.float64, device=log_snr.device)
    angles = log_snr.double() * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], -1).float()


AutoConfig.register(MODEL_TYPE, EmbeddingDiffusionConfig)
AutoModel.register(EmbeddingDiffusionConfig, EmbeddingDiffusionModel)
AutoModelForMaskedLM.register(EmbeddingDiffusionConfig, EmbeddingDiffusionModel)
