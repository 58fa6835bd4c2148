"""An encoder that is told the diffusion time: any masked language model, wrapped so that the share of masks moves it.

What the masked tokens are, given the visible ones, does not depend on the time (Ou et al. 2024, arXiv:2406.03736,
theorem 1; RADD), so a model without it loses nothing in principle; most published systems have it all the same.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from .qk_norm import QkNormConfig as QkNormConfig  # may be the encoder inside: transformers must know it

TIME_CONDITIONINGS = ("none", "sinusoidal", "learned", "adaln")
_NUM_FEATURES = 128


class TimeConditionedConfig(PreTrainedConfig):
    """The configuration of `TimeConditionedMaskedLM`.

    Args:
        encoder (`PreTrainedConfig`): of the model inside.
        time_conditioning (`str`): `sinusoidal` adds a linear map of sinusoids of the time to each token embedding;
            `learned` adds a row of a table; `adaln` multiplies and shifts what each norm of the encoder puts out by
            linear maps of the sinusoids, as adaptive layer norm does (Peebles and Xie 2022, arXiv:2212.09748).
        time_steps (`int`): the time 1 is step `time_steps` of the sinusoids (Vaswani et al. 2017, section 3.5, with
            the step as position, brought to length 1); the table has a row for each of so many times, evenly spread
            from 0 to 1.
        mask_token_id (`int`): of the mask token, which is counted.

    Raises:
        ValueError: the kind is unknown, or there are fewer than 2 steps.
    """

    model_type = "time-conditioned-masked-lm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="roberta")
    }

    encoder: PreTrainedConfig | dict | None = None
    time_conditioning: str = "sinusoidal"
    time_steps: int = 128
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kinds = TIME_CONDITIONINGS[1:]
        if self.time_conditioning not in kinds:
            raise ValueError(f"`time_conditioning` must be one of {', '.join(kinds)}, not {self.time_conditioning!r}.")
        if self.time_steps < 2:
            raise ValueError(f"`time_steps` must be at least 2, not {self.time_steps!r}.")
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        return self.encoder

    # What is asked of the configuration of any masked language model.

    @property
    def vocab_size(self) -> int:
        return int(self.get_text_config().vocab_size)

    @property
    def hidden_size(self) -> int:
        return int(self.get_text_config().hidden_size)

    @property
    def max_position_embeddings(self) -> int:
        return int(self.get_text_config().max_position_embeddings)

    @property
    def pad_token_id(self) -> int:
        return int(self.get_text_config().pad_token_id)


def mask_share(input_ids: Tensor, attention_mask: Tensor | None, mask_id: int) -> Tensor:
    """The share of the attended tokens of each row that are masks, float32 of shape `(B,)`.

    Args:
        input_ids (`torch.Tensor` of shape `(B, L)`), attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*).
    """
    is_mask = input_ids.eq(mask_id)
    if attention_mask is None:
        return is_mask.float().mean(-1)
    attended = attention_mask.bool()
    return (is_mask & attended).sum(-1) / attended.sum(-1).clamp(min=1)


class TimeConditionedMaskedLM(PreTrainedModel):
    """A masked language model that is also told the time, and begins by predicting what the model inside predicts.

    The time of a row is the share of its attended tokens that are masks: near 1 when all is masked, falling as text is
    generated, the same in training, generation and evaluation. It is counted from the ids, so that whoever knows
    nothing of time (the sampler, the estimators, `pipeline("fill-mask")`) calls this model like any other. Masks that
    are drawn independently have a share that scatters around the rate; `DiffusionTrainer` then gives the expected one
    as `timesteps`, which is what `takes_timesteps` tells it.
    """

    config: TimeConditionedConfig
    takes_timesteps = True
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: TimeConditionedConfig) -> None:
        if config.mask_token_id is None:
            raise ValueError("`mask_token_id` of the configuration must be that of the tokenizer, not None.")
        super().__init__(config)
        self.model = AutoModelForMaskedLM.from_config(config.encoder)
        self.time: nn.Module
        self._mask_id = config.mask_token_id
        self._condition: Tensor | None = None
        tokens: Any = self.model.get_input_embeddings()
        if config.time_conditioning == "adaln":
            norms = _norms(self.base_model, config.hidden_size)
            modulations = [nn.Linear(_NUM_FEATURES, 2 * config.hidden_size) for _ in norms]
            self.time = nn.ModuleList(modulations)
            for norm, modulation in zip(norms, modulations, strict=True):
                norm.register_forward_hook(partial(self._modulate, modulation))
        elif config.time_conditioning == "learned":
            self.time = nn.Embedding(config.time_steps, tokens.embedding_dim)
            tokens.register_forward_hook(self._add_time)
        else:
            self.time = nn.Linear(_NUM_FEATURES, tokens.embedding_dim)
            tokens.register_forward_hook(self._add_time)
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The encoder inside, without its head."""
        return self.model.base_model

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.model.set_output_embeddings(new_embeddings)

    def _init_weights(self, module: nn.Module) -> None:  # of `time` alone: the model inside has its own
        for parameter in module.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        timesteps: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the model inside returns, given the time.

        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`), attention_mask (`torch.Tensor` of shape `(B, L)`).
            timesteps (`torch.Tensor` of shape `(B,)`, *optional*): the time in [0, 1], 0 clean: the share of the
                attended tokens that is expected to be masked. Counted by default.
            **kwargs: of the model inside, such as `labels`.

        Raises:
            ValueError: `timesteps` are of another shape, or (looked at on CPU only) not in [0, 1].
        """
        if timesteps is None:
            timesteps = mask_share(input_ids, attention_mask, self._mask_id)
        elif timesteps.shape != input_ids.shape[:1]:
            expected = tuple(input_ids.shape[:1])
            raise ValueError(f"`timesteps` must be of shape {expected}, one a row, not {tuple(timesteps.shape)}.")
        elif timesteps.device.type == "cpu" and not ((timesteps >= 0) & (timesteps <= 1)).all():
            raise ValueError(
                f"`timesteps` must lie in [0, 1], not {timesteps.tolist()}: divide by the number of steps."
            )
        self._condition = self._of_time(timesteps)
        try:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        finally:
            if not self.training:  # gradient checkpointing runs the layers again in the backward pass
                self._condition = None

    def _of_time(self, t: Tensor) -> Tensor:
        """What the learned maps are given: sinusoids `(B, F)`, or rows of the table `(B,)`."""
        if self.config.time_conditioning == "learned":
            return (t * (self.config.time_steps - 1)).round().long()
        frequency = 10_000 ** -(torch.arange(_NUM_FEATURES // 2, device=t.device) / (_NUM_FEATURES // 2))
        angle = self.config.time_steps * t.float()[:, None] * frequency
        # Maps of longer vectors outgrow the embeddings of tokens within some steps of training.
        return torch.cat([angle.sin(), angle.cos()], dim=-1) / (_NUM_FEATURES // 2) ** 0.5

    def _add_time(self, _tokens: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        if self._condition is None:  # somebody else looks words up
            return embedded
        return embedded + self.time(self._condition)[:, None].to(embedded.dtype)

    def _modulate(self, modulation: nn.Module, _norm: nn.Module, _args: Any, normed: Tensor) -> Tensor:
        if self._condition is None:
            return normed
        scale, shift = modulation(self._condition)[:, None].to(normed.dtype).chunk(2, dim=-1)
        return normed * (1 + scale) + shift


def _norms(encoder: nn.Module, width: int) -> list[nn.Module]:
    """The norms of hidden states, in the order in which the encoder holds them; not those of queries and keys."""
    return [
        module
        for name, module in encoder.named_modules()
        if "Norm" in type(module).__name__
        and isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.shape == (width,)
        and not name.endswith(("q_norm", "k_norm"))
    ]


AutoConfig.register(TimeConditionedConfig.model_type, TimeConditionedConfig, exist_ok=True)
AutoModelForMaskedLM.register(TimeConditionedConfig, TimeConditionedMaskedLM, exist_ok=True)
