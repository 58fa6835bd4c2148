"""Where a story model falls short of the exact denoiser: cross-entropy by kind of word, at three mask rates.

    python experiments/story_gap.py --checkpoint results/final-model

A kind is one of the story's latent choices (hero, friend, object, ...) or `free` for words drawn anew each time. A
model that has not learned to carry a choice through the story stands at the logarithm of the number of its values.
"""

import sys
from dataclasses import dataclass, field

import torch

from diffusion_mlm import load_generator, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.modeling import forbidden_token_ids, logits_at
from diffusion_mlm.objectives import token_negative_log_likelihood


@dataclass
class StoryGapArguments:
    """What to compare."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    num_stories: int = field(default=128, metadata={"help": "Stories that are masked, one mask each."})


@torch.no_grad()
def main(argv: list[str]) -> int:
    (args,) = parse([StoryGapArguments], argv, "story_gap")
    model, tokenizer = load_generator(args.checkpoint)
    exact = story_language.ExactDenoiser()
    automaton = story_language.AUTOMATON
    kind_of = {automaton.id_of[token]: variable for token, (variable, _) in automaton.values_of.items()}
    clean = story_language.sample_ids(args.num_stories, seed=77)
    maskable, keys = clean.ne(tokenizer.bos_token_id), torch.arange(args.num_stories)
    forbidden = torch.tensor(forbidden_token_ids(tokenizer, True, model.config.vocab_size))
    for rate in (0.15, 0.5, 0.9):
        process = ForwardProcess(int(tokenizer.mask_token_id), masking="levels", levels=(rate,), prefix_length=0)
        batch = process(clean, maskable, keys, torch.ones(args.num_stories, dtype=torch.float64))
        targets = batch.targets[batch.is_masked]
        ours, best = (
            token_negative_log_likelihood(logits, targets, forbidden)
            for logits in (
                logits_at(model, batch.is_masked, input_ids=batch.input_ids),
                exact(batch.input_ids).logits[batch.is_masked],
            )
        )
        kinds = [kind_of.get(token, "free") for token in targets.tolist()]
        print(f"mask rate {rate:.2f}: {ours.mean():.3f} nats per masked token, exact {best.mean():.3f}")
        for kind in sorted(set(kinds)):
            chosen = torch.tensor([other == kind for other in kinds])
            share = (ours - best)[chosen].sum() / len(kinds)
            print(
                f"  {kind:<8} {ours[chosen].mean():.3f}  exact {best[chosen].mean():.3f}  share of the gap {share:.4f}"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
