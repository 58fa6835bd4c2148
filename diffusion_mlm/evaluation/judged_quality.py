"""How good written texts are by an outside judge, a causal language model, next to how varied they are."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..tokenization import decode_text, encode_text
from .diversity import distinct_ngrams, word_entropy
from .interval import RatioEstimate, ratio_estimate
from .sweep import Measured

_BITS, _ENTROPY, _DISTINCT = "judge_bits_per_character", "word_entropy_bits", "distinct_3"


class JudgedQuality:
    """The quality of sets of texts, for `sweep`: a product of three factors in [0, 1].

    Each is a figure of the texts by that of real texts, or the other way round for bits, and at most 1: bits per
    character of the judge, entropy of the words, distinct 3-grams. Low bits alone mean nothing, since text that
    repeats itself is easy to predict. A set has collapsed if bits *and* entropy are below those of the real texts, the
    bits beyond chance (an interval of 95 %): of two sets of real texts one often has both a little lower.

    Args:
        judge (`torch.nn.Module`): a causal language model, in evaluation mode.
        tokenizer: of the judge.
        real_texts (sequence of `str`): as many as in a set, and as long; see `held_out_texts`.

    Raises:
        ValueError: the judge has no token to begin with, or the real texts are blank.
    """

    columns: tuple[str, ...] = (_BITS, _ENTROPY, _DISTINCT)
    description = "Quality: bits of the judge x word entropy x distinct 3-grams, each against held-out text."

    def __init__(self, judge: nn.Module, tokenizer: PreTrainedTokenizerBase, real_texts: Sequence[str]) -> None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ValueError(
                "`--judge` has neither a start token nor an end token to put before a text: take another."
            )
        self._judge, self._tokenizer, self._start = judge, tokenizer, int(start)
        config = getattr(judge, "config", None)
        self._context = int(getattr(config, "max_position_embeddings", None) or 1024)
        found = self._figures(real_texts)
        if found is None:
            raise ValueError("`--eval-file` holds no text that the judge could judge.")
        self.reference, self._real_bits = found

    def measure(self, texts: Sequence[str]) -> Measured:
        found, real = self._figures(texts), self.reference
        if found is None:
            return Measured(0.0, True, dict.fromkeys(self.columns))
        figures, bits = found
        likely = min(real[_BITS] / max(figures[_BITS], 1e-9), 1.0)
        varied = [min(figures[name] / max(real[name], 1e-9), 1.0) for name in (_ENTROPY, _DISTINCT)]
        collapsed = _is_below(bits, self._real_bits) and figures[_ENTROPY] < real[_ENTROPY]
        return Measured(likely * math.prod(varied), collapsed, dict(figures))

    def _figures(self, texts: Sequence[str]) -> tuple[dict[str, float], RatioEstimate] | None:
        texts = [text.strip() for text in texts if text.strip()]
        if not texts:
            return None
        nats = torch.tensor([self.nats(text) for text in texts], dtype=torch.float64)
        bits = ratio_estimate(nats / math.log(2), torch.tensor([len(text) for text in texts]))
        return {_BITS: bits.value, _ENTROPY: word_entropy(texts), _DISTINCT: distinct_ngrams(texts, 3)}, bits

    @torch.no_grad()
    def nats(self, text: str) -> float:
        """-log probability of a text by the judge; what is beyond its context begins anew."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        total, room = 0.0, self._context - 1
        device = next(self._judge.parameters()).device
        for first in range(0, len(ids), room):
            row = torch.tensor([[self._start, *ids[first : first + room]]], device=device)
            log_probs = self._judge(input_ids=row).logits[0, :-1].float().log_softmax(-1)
            total -= float(log_probs.gather(-1, row[0, 1:, None]).double().sum())
        return total


def _is_below(bits: RatioEstimate, real: RatioEstimate) -> bool:
    """Whether a figure is lower beyond chance: the interval of the difference, of both reaches, leaves out 0."""
    if bits.interval is None or real.interval is None:
        return bits.value < real.value
    return real.value - bits.value > math.hypot(real.value - real.interval[0], bits.interval[1] - bits.value)


def load_judge(name_or_path: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from safetensors and without any code of the repository.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        judge: Any = AutoModelForCausalLM.from_pretrained(name_or_path, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare `Exception`
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
        raise ValueError(
            f"`--judge` is {name_or_path!r}, from which no causal language model can be loaded: {reason}."
        ) from error
    return judge.eval(), tokenizer


def held_out_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, num_texts: int, num_tokens: int
) -> list[str]:
    """The beginnings of real texts, as many as a set has and as long, in tokens of the generator.

    Texts that are long enough come first.

    Raises:
        ValueError: there are too few texts. Variety depends on how much text there is, so that no comparison would be
            fair.
    """
    if len(texts) < num_texts:
        raise ValueError(
            f"`--eval-file` holds {len(texts)} texts, and {num_texts} are needed, as many as are written for each "
            f"setting: name more text, take shorter pieces with `--text-unit`, or lower `--num-samples`."
        )
    long_enough, shorter = [], []
    for text in texts:
        ids = encode_text(tokenizer, text)
        if len(ids) >= num_tokens:
            long_enough.append(decode_text(tokenizer, ids[:num_tokens]))
            if len(long_enough) == num_texts:
                break
        else:
            shorter.append(text)
    return [*long_enough, *shorter][:num_texts]
