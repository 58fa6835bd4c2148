"""`python -m diffusion_mlm.story_language --num 3 --seed 0` prints stories with their log-probability."""

import argparse
import textwrap

from .language import AUTOMATON, entropy_per_token, log_prob, number_of_stories, sample


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m diffusion_mlm.story_language", description=__doc__)
    parser.add_argument("--num", type=int, default=3, help="How many stories to print (default: 3).")
    parser.add_argument(
        "--seed", type=int, default=0, help="Which stories: a seed names an endless list (default: 0)."
    )
    args = parser.parse_args()
    if args.num < 0:
        parser.error(f"`--num` must be 0 or more, got {args.num}; ask for a number of stories.")
    stories = sample(args.num, args.seed)
    for story, nats in zip(stories, log_prob(stories).tolist(), strict=True):
        print(textwrap.fill(story, 100))
        print(f"    log-probability {nats:.2f} nats\n")
    print(
        f"One of {number_of_stories():.2e} stories; {AUTOMATON.entropy():.2f} nats each, {entropy_per_token():.3f} "
        f"per token; {len(AUTOMATON.vocabulary)} tokens in the vocabulary."
    )


if __name__ == "__main__":
    main()
