"""Samples of a model of real text beside real text: how likely an outside model finds them, and how varied they are.

    python experiments/text_quality.py --checkpoint DIR --judge DIR --eval-file held_out.txt

Prints the report of `diffusion_mlm.sample_quality` as JSON: figures of the samples, the same figures of held-out text
cut to the same lengths, and what they should not be taken for; then those of held-out text and of its words shuffled.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from diffusion_mlm import Judge, generate, load_generator, sample_quality
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.data import load_texts
from diffusion_mlm.evaluation.sample_quality import text_figures


@dataclass
class TextQualityArguments:
    """What to measure."""

    checkpoint: str = field(metadata={"help": "The generator: a directory or a Hub id."})
    judge: str = field(metadata={"help": "A causal language model: a directory or a Hub id."})
    eval_file: str = field(metadata={"help": "Held-out text, one text a line or JSON lines."})
    train_file: str | None = field(default=None, metadata={"help": "What the generator was trained on, for copies."})
    judge_end_token: str | None = field(
        default=None, metadata={"help": "What ended texts in the training of the judge. (default: its eos_token)"}
    )
    prefix: str = field(default="", metadata={"help": "What every sample begins with."})
    max_new_tokens: int = field(default=64, metadata={"help": "Length of a sample."})
    num_samples: int = field(default=64, metadata={"help": "Samples."})
    mauve: bool = field(default=False, metadata={"help": "MAUVE too; needs the extra `mauve`."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})


COLUMNS = (
    "judge_bits_per_character",
    "word_entropy_nats",
    "distinct_3",
    "rep_4",
    "self_bleu_4",
    "forwards_per_sample",
)


class TextQuality:
    """Judges texts that generators write, beside held-out ones."""

    def __init__(
        self,
        judge: str,
        eval_file: str,
        train_file: str | None = None,
        judge_end_token: str | None = None,
        mauve: bool = False,
    ) -> None:
        self.judge = Judge.from_pretrained(judge, end_token=judge_end_token, argument="--judge")
        self.real = load_texts(None, files=[eval_file])["text"][:]
        training_texts = load_texts(None, files=[train_file])["text"][:] if train_file else None
        self.asked: dict[str, Any] = {"judge": self.judge, "training_texts": training_texts, "mauve": mauve}

    def samples(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prefix: str, num_samples: int, **settings: Any
    ) -> dict[str, Any]:
        """Figures of texts that a generator writes after `prefix`, of real ones, and warnings."""
        output = generate(model, tokenizer, prefix, num_return_sequences=num_samples, **settings)
        finished = [sample.finished for sample in output.samples]
        report = sample_quality(output.texts, reference_texts=self.real, finished=finished, **self.asked).to_dict()
        forwards = sum(sample.num_forwards for sample in output.samples) / num_samples
        return {**report.pop("generated"), "forwards_per_sample": forwards, "samples": output.texts[:2], **report}

    def references(self, tokenizer: PreTrainedTokenizerBase, num_texts: int, num_tokens: int) -> dict[str, Any]:
        """Figures of the first held-out texts, cut to so many tokens of the generator, and of their words shuffled."""
        encoded = tokenizer(self.real[:num_texts], add_special_tokens=False).input_ids
        texts = [tokenizer.decode(ids[:num_tokens]).strip() for ids in encoded]
        order = torch.Generator().manual_seed(0)
        shuffled = [
            " ".join(words[place] for place in torch.randperm(len(words), generator=order).tolist())
            for words in map(str.split, texts)
        ]
        sets = {"held-out text": texts, "its words shuffled": shuffled}
        return {name: text_figures(of_set, judge=self.judge).to_dict() for name, of_set in sets.items()}


def main(argv: list[str]) -> int:
    (args,) = parse([TextQualityArguments], argv, "text_quality")
    model, tokenizer = load_generator(args.checkpoint)
    quality = TextQuality(args.judge, args.eval_file, args.train_file, args.judge_end_token, args.mauve)
    settings = {"max_new_tokens": args.max_new_tokens, "seed": args.seed}
    figures = quality.samples(model, tokenizer, args.prefix, args.num_samples, **settings)
    others = quality.references(tokenizer, args.num_samples, args.max_new_tokens)
    print(json.dumps({"generated": figures, **others}, indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(report_error(error))
