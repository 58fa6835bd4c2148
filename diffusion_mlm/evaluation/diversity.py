"""How varied texts are: the figures that a collapsed generator cannot have."""

import math
from collections import Counter
from collections.abc import Sequence


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words among all n-grams of all texts, in [0, 1]; 0 if there is none.

    It falls with the number of texts: compare sets of the same size. Source: Li et al. 2016, arXiv:1510.03055.

    >>> distinct_ngrams(["a b a b", "a b"], n=2)
    0.5
    """
    words = [text.split() for text in texts]
    ngrams = [tuple(of_text[i : i + n]) for of_text in words for i in range(len(of_text) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def word_entropy(texts: Sequence[str]) -> float:
    """Entropy in bits of the words of all texts, as they occur, in lower case; 0 if there is none.

    It rises with the number of words: compare sets of the same size.

    >>> word_entropy(["The cat", "the dog"])
    1.5
    """
    counts = Counter(word for text in texts for word in text.lower().split())
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) + 0.0
