"""Does the schedule change what is written, with few steps and with many?

    python experiments/compare_schedules.py

A schedule says how many tokens each step reveals. `exponential` reveals most of them at once at the beginning, where
nothing is known of the text yet; `cosine` and `maskgit` begin with a few. Tokens of one step do not see one another.
The order is random here, so that nothing but the schedule decides how much a step takes on. Prints a table and a
sentence, writes `results/compare_schedules.json` and the picture beside it; see `comparison` for what is measured.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_mlm import story_language

sys.path.insert(0, str(Path(__file__).parent))
from comparison import Comparison, Setting, Written, listed, percent, run  # a neighbour, not a package

COMPARED = ("linear", "cosine", "exponential", "maskgit")
STEPS = (16, 32, 48, story_language.BLOCK_LENGTH - 1)  # at the last each token has a step of its own


def conclude(written: Sequence[Written]) -> str:
    """At which numbers of steps schedules differ, by how much, and at which they write the same."""
    differ, alike, same = [], [], []
    for steps in STEPS:
        at_these = [one for one in written if one.setting.place == steps]
        worst, best = (choose(at_these, key=lambda one: one.figures.valid_share) for choose in (min, max))
        if all(one.texts == at_these[0].texts for one in at_these):
            same.append(steps)
        elif best.differs_from(worst):
            differ.append(
                f"{steps} steps ({percent(worst.figures.valid_share)} of the stories are accepted with "
                f"{worst.setting.series}, {percent(best.figures.valid_share)} with {best.setting.series})"
            )
        else:
            alike.append(f"{steps} steps")
    parts = []
    if differ:
        parts.append(f"the schedule changes what is written in {listed(differ)}")
    if alike:
        parts.append(f"in {listed(alike)} the shares of accepted stories do not differ beyond chance")
    if same:
        parts.append(
            f"in {listed([str(steps) for steps in same])} steps, one for each token, all schedules write the same "
            f"{written[0].figures.num_stories} stories, letter for letter"
        )
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


COMPARISON = Comparison(
    name="compare_schedules",
    question="Does the schedule change what is written?",
    note="Random order, nucleus sampling at 0.9.",
    series="schedule",
    axis="steps",
    settings=[
        Setting(schedule, steps, {"schedule": schedule, "steps": steps, "order": "random"})
        for steps in STEPS
        for schedule in COMPARED
    ],
    conclude=conclude,
)

if __name__ == "__main__":
    sys.exit(run(COMPARISON))
