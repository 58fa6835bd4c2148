"""How good written texts are by an outside judge, a causal language model, next to how varied they are."""

import math
from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from ..tokenization import decode_text, encode_text
from .diversity import distinct_ngrams, word_entropy
from .interval import RatioEstimate, ratio_estimate
from .judge import Judge
from .sweep import Measured
from .words import split_words

_BITS, _ENTROPY, _DISTINCT = "judge_bits_per_character", "word_entropy_nats", "distinct_3"


class JudgedQuality:
    """The quality of sets of texts, for `sweep`: a product of three factors in [0, 1].

    Each is a figure of the texts by that of real texts, or the other way round for bits, and at most 1: bits per
    character of the judge, entropy of the words of a text (0 of a blank one), distinct 3-grams. Low bits alone mean
    nothing, since text that repeats itself is easy to predict. A set has collapsed if bits *and* entropy are below
    those of the real texts, the bits beyond chance (an interval of 95 %): of two sets of real texts one often has both
    a little lower.

    Args:
        judge (`Judge`): scores the texts.
        real_texts (sequence of `str`): as many as in a set, and as long; see `held_out_texts`.

    Raises:
        ValueError: the real texts are blank.
    """

    columns: tuple[str, ...] = (_BITS, _ENTROPY, _DISTINCT)
    description = "Quality: bits of the judge x word entropy x distinct 3-grams, each against held-out text."

    def __init__(self, judge: Judge, real_texts: Sequence[str]) -> None:
        self._judge = judge
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
        blank = sum(not text.strip() for text in texts)
        texts = [text.strip() for text in texts if text.strip()]
        if not texts:
            return None
        judged = self._judge.score(texts)
        bits = ratio_estimate(judged.nats / math.log(2), judged.num_characters)
        words = [split_words(text) for text in texts]
        entropy = fmean([word_entropy(of_text) or 0.0 for of_text in words] + [0.0] * blank)
        return {_BITS: bits.value, _ENTROPY: entropy, _DISTINCT: distinct_ngrams(words, 3) or 0.0}, bits


def _is_below(bits: RatioEstimate, real: RatioEstimate) -> bool:
    """Whether a figure is lower beyond chance: the interval of the difference, of both reaches, leaves out 0."""
    if bits.interval is None or real.interval is None:
        return bits.value < real.value
    return real.value - bits.value > math.hypot(real.value - real.interval[0], bits.interval[1] - bits.value)


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
