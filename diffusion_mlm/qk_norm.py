"""EuroBERT with normalised queries and keys: transformers has it without, and with them Qwen3, which is causal.

Both parts are those of transformers; nothing is computed here. Each head's queries and keys are brought to a root mean
square of 1, times a learned weight, before positions turn them, so that attention scores stay bounded however large
the weights grow (Henry et al. 2020, arXiv:2010.04245; as in Qwen3).
"""

from typing import ClassVar

from transformers import AutoConfig, AutoModelForMaskedLM, EuroBertConfig, EuroBertForMaskedLM, EuroBertModel
from transformers.models.eurobert.modeling_eurobert import EuroBertDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention


class QkNormConfig(EuroBertConfig):
    """`EuroBertConfig`, of another class."""

    model_type = "eurobert-qk-norm"


class QkNormModel(EuroBertModel):
    """`EuroBertModel` with `Qwen3Attention` that sees both sides."""

    config: QkNormConfig
    _can_record_outputs: ClassVar[dict] = {
        "hidden_states": EuroBertDecoderLayer,
        "attentions": Qwen3Attention,
    }

    def __init__(self, config: QkNormConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = Qwen3Attention(config, index)
            layer.self_attn.is_causal = False
        self.post_init()


class QkNormForMaskedLM(EuroBertForMaskedLM):
    """`EuroBertForMaskedLM` around `QkNormModel`."""

    config: QkNormConfig

    def __init__(self, config: QkNormConfig) -> None:
        super().__init__(config)
        self.model = QkNormModel(config)
        self.post_init()


AutoConfig.register(QkNormConfig.model_type, QkNormConfig, exist_ok=True)
AutoModelForMaskedLM.register(QkNormConfig, QkNormForMaskedLM, exist_ok=True)
