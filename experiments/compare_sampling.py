"""What do greedy, top-k, nucleus, min-p and typical sampling write, all else equal?

    python experiments/compare_sampling.py

All of them cut off a tail of unlikely tokens before one is drawn: a model that has not learned everything then writes
more that is right, and less that is rare. `greedy` cuts off all but the best. How much there is to cut off depends on
where the model writes first, so each is tried in two orders. Prints a table and a sentence for each order, writes
`results/compare_sampling.json` and the picture beside it; see `comparison` for what is measured.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from comparison import Comparison, Setting, Written, listed, percent, run  # a neighbour, not a package

ORDERS = {"surest first": "entropy", "in random order": "random"}
SAMPLINGS = {
    "nothing cut off": {"sampling": "nucleus", "top_p": 1.0},
    "top-k 5": {"sampling": "topk", "top_k": 5},
    "nucleus 0.9": {"sampling": "nucleus", "top_p": 0.9},
    "min-p 0.05": {"sampling": "min_p", "min_p": 0.05},
    "typical 0.9": {"sampling": "typical", "typical_p": 0.9},
    "greedy": {"sampling": "greedy"},
}


def conclude(written: Sequence[Written]) -> str:
    """Which samplings have collapsed; and which of the others have fewer accepted stories beyond chance."""
    parts = []
    for series in ORDERS:
        of_series = [one for one in written if one.setting.series == series]
        collapsed = [f"{one.setting.place} ({collapse_of(one)})" for one in of_series if one.has_collapsed]
        others = [one for one in of_series if not one.has_collapsed]
        clauses = [f"{listed(collapsed)} collapses"] if collapsed else []
        if others:
            best = max(others, key=lambda one: one.figures.valid_share)
            fewer = [one for one in others if best.differs_from(one)]
            as_good = [one for one in others if not best.differs_from(one)]
            if fewer:
                clauses.append(f"more stories are accepted with {named(as_good)} than with {named(fewer)}")
            else:
                shares = sorted(one.figures.valid_share for one in others)
                clauses.append(
                    f"the others do not differ beyond chance ({percent(shares[0])} to {percent(shares[-1])} accepted)"
                )
        parts.append(f"{series}, {' and '.join(clauses)}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def collapse_of(one: Written) -> str:
    repeats = one.figures.num_distinct < one.figures.num_stories
    return f"{one.figures.num_distinct} different of {one.figures.num_stories}" if repeats else "too probable"


def named(some: Sequence[Written]) -> str:
    return listed([f"{one.setting.place} ({percent(one.figures.valid_share)})" for one in some])


COMPARISON = Comparison(
    name="compare_sampling",
    question="What do greedy, top-k, nucleus, min-p and typical sampling write?",
    note="Temperature 1, a forward for each token.",
    series="order",
    axis="sampling",
    settings=[
        Setting(series, name, {"order": order, **settings})
        for series, order in ORDERS.items()
        for name, settings in SAMPLINGS.items()
    ],
    conclude=conclude,
)

if __name__ == "__main__":
    sys.exit(run(COMPARISON))
