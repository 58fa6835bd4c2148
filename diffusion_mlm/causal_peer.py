"""A causal language model of the size of a masked one, to compare the two; and any other one, from a directory.

The peer of a RoBERTa is the same RoBERTa as a decoder: the same tokenizer, layers, head and number of parameters, the
same first weights, but each place sees only what stands before it. So attention mask and loss are all that differs. A
GPT-2 or Llama of that size would differ in norms, positions and activations too, and a ratio of their likelihoods
would mix all of it.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .hub_access import require_repository
from .initialization import start_at_neighbors, start_by_copying, start_undecided
from .modeling import end_token_id, forbidden_token_ids


def build_causal_peer(config: Any, seed: int = 0, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """The causal peer of `build_model(config, seed)`: fresh float32 weights, built on the CPU.

    All of them are those of the masked model, but for the heads of the first layer: those of the masked model start
    one place to the left, one to the right, two to the left, ...; those of a decoder, which has no right, one, two,
    three, ... to the left.

    Args:
        config (`RobertaConfig`): of the masked model; it is not changed.
        seed (`int`): of the weights.

    Raises:
        ValueError: this is no RoBERTa, whose class can be a decoder.
    """
    if config.model_type != "roberta":
        raise ValueError(
            f"`config` is that of a {config.model_type!r}, whose causal peer is unknown here. Train one by hand, or "
            f"take a RoBERTa."
        )
    config = copy.deepcopy(config)
    config.is_decoder, config.architectures = True, None
    config.diffusion = None  # how its masked model was trained is no fact about this one
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
        start_by_copying(model)
        start_at_neighbors(model)
        start_undecided(model)
    return model


def is_causal(config: Any) -> bool:
    """Whether a configuration is that of a causal language model; if not, of a masked one or of no language model.

    `architectures` decides; where it says nothing, `is_decoder`, and then the classes that there are for this kind of
    model, a masked one before a causal one.
    """
    names = getattr(config, "architectures", None) or []
    if any("MaskedLM" in name for name in names):
        return False
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) or getattr(config, "is_decoder", False):
        return True
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def is_causal_checkpoint(name_or_path: str, *, trust_remote_code: bool = False, argument: str = "--compare") -> bool:
    """`is_causal` of a directory or a Hub id; no weights are read.

    Raises:
        ValueError: there is no configuration.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    require_repository(name_or_path, "model", argument)
    try:
        return is_causal(AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
        raise ValueError(f"`{argument}` is {name_or_path!r}, which holds no model: {reason}.") from error


@torch.no_grad()
def continue_causally(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Tensor, num_new: int, *, may_end: bool, seed: int, **how: Any
) -> Tensor:
    """What a causal model writes behind rows of ids: never a special token, the end token only if it may end.

    Args:
        ids (`torch.Tensor` of shape `(B, P)`): without padding.
        num_new (`int`): so many tokens, or fewer if it may end.
        how: further arguments of transformers' `generate`, such as the sampling.

    Returns:
        `torch.Tensor` of shape `(B, N)`, N <= `num_new`: the new ids, padded behind an end.
    """
    end_id = end_token_id(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written: Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new,
            min_new_tokens=None if may_end else num_new,
            eos_token_id=end_id if may_end else None,
            suppress_tokens=forbidden_token_ids(tokenizer, may_end, model.config.vocab_size),
            pad_token_id=end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **how,
        )
    return written[:, ids.shape[1] :]


def load_causal_model(
    name_or_path: str, *, argument: str = "--autoregressive", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any causal language model in float32 and its tokenizer, from safetensors in a directory or on the Hub.

    Raises:
        ValueError: there is none.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    require_repository(name_or_path, "model", argument)
    try:
        how: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32, use_safetensors=True, **how)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **how)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
        raise ValueError(f"`{argument}` is {name_or_path!r}, which is no causal language model: {reason}.") from error
    return model.eval(), tokenizer
