"""Samples of a model of real text beside real text: an outside model's bits per character, and how varied they are.

    python experiments/text_quality.py --checkpoint DIR --judge DIR --eval-file held_out.txt

Low bits alone mean nothing: text that repeats itself is easy to predict. So the entropy of the words and the share of
different 3-grams stand beside, and the same three figures for held-out real text of the same length.
"""

import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from diffusion_mlm import generate, load_generator
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.data import load_texts


@dataclass
class TextQualityArguments:
    """What to measure."""

    checkpoint: str = field(metadata={"help": "The generator: a directory or a Hub id."})
    judge: str = field(metadata={"help": "A causal language model: a directory or a Hub id."})
    eval_file: str = field(metadata={"help": "Held-out text, one text a line or JSON lines."})
    prefix: str = field(default="", metadata={"help": "What every sample begins with."})
    max_new_tokens: int = field(default=64, metadata={"help": "Length of a sample."})
    num_samples: int = field(default=64, metadata={"help": "Samples."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})


COLUMNS = ("judge_bits_per_character", "word_entropy_bits", "distinct_3", "forwards_per_sample")


class TextQuality:
    """Judges sets of texts by a causal model."""

    def __init__(self, judge: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(judge).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(judge)

    @torch.no_grad()
    def nats(self, text: str) -> float:
        """-log probability of a text after the judge's start token."""
        ids = torch.tensor([[self.tokenizer.bos_token_id, *self.tokenizer(text, add_special_tokens=False).input_ids]])
        log_probs = self.model(ids).logits[0, :-1].log_softmax(-1)
        return float(-log_probs.gather(-1, ids[0, 1:, None]).sum())

    def figures(self, texts: list[str]) -> dict[str, Any]:
        texts = [text.strip() for text in texts if text.strip()]
        words = Counter(word for text in texts for word in text.lower().split())
        total = sum(words.values())
        return {
            "judge_bits_per_character": sum(map(self.nats, texts)) / math.log(2) / sum(map(len, texts)),
            "word_entropy_bits": -sum(n / total * math.log2(n / total) for n in words.values()),
            "distinct_3": distinct_ngrams(texts, 3),
        }

    def samples(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prefix: str, num_samples: int, **settings: Any
    ) -> dict[str, Any]:
        """Figures of texts that a generator writes after `prefix`."""
        output = generate(model, tokenizer, prefix, num_return_sequences=num_samples, **settings)
        forwards = sum(sample.num_forwards for sample in output.samples) / num_samples
        return {**self.figures(output.texts), "forwards_per_sample": forwards, "samples": output.texts[:2]}

    def held_out(
        self, path: str, tokenizer: PreTrainedTokenizerBase, num_texts: int, num_tokens: int
    ) -> dict[str, Any]:
        """Figures of the beginnings of held-out texts, as long as the samples, and of the same words shuffled."""
        rows = load_texts(None, files=[path]).select(range(num_texts))
        texts = [
            tokenizer.decode(tokenizer(row["text"], add_special_tokens=False).input_ids[:num_tokens]) for row in rows
        ]
        order = torch.Generator().manual_seed(0)
        shuffled = [
            " ".join(words[place] for place in torch.randperm(len(words), generator=order).tolist())
            for words in map(str.split, texts)
        ]
        return {"held-out text": self.figures(texts), "its words shuffled": self.figures(shuffled)}


def distinct_ngrams(texts: list[str], n: int) -> float:
    """Different n-grams of words among all n-grams of all texts."""
    words = [text.split() for text in texts]
    ngrams = [tuple(of_text[i : i + n]) for of_text in words for i in range(len(of_text) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def main(argv: list[str]) -> int:
    (args,) = parse([TextQualityArguments], argv, "text_quality")
    model, tokenizer = load_generator(args.checkpoint)
    quality = TextQuality(args.judge)
    settings = {"max_new_tokens": args.max_new_tokens, "seed": args.seed}
    figures = quality.samples(model, tokenizer, args.prefix, args.num_samples, **settings)
    others = quality.held_out(args.eval_file, tokenizer, args.num_samples, args.max_new_tokens)
    print(json.dumps({"generated": figures, **others}, indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
