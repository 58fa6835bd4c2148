"""What does the temperature change, from 0.3 to 1.5, with and without a tail cut off?

    python experiments/compare_temperatures.py

Below 1 likely tokens are written more often than the model believes them to occur, above 1 less often. Nucleus
sampling cuts off the tail that a high temperature makes heavier. Prints a table and a sentence, writes
`results/compare_temperatures.json` and the picture beside it; see `comparison` for what is measured.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from comparison import Comparison, Setting, Written, listed, percent, run  # a neighbour, not a package

TEMPERATURES = (0.3, 0.5, 0.7, 1.0, 1.2, 1.5)
TAILS = {"nothing cut off": 1.0, "nucleus 0.9": 0.9}


def conclude(written: Sequence[Written]) -> str:
    """What happens between the lowest temperature and the highest, and where the stories are too probable."""
    accepted, distinct = [], []
    for series in TAILS:
        of_series = [one for one in written if one.setting.series == series]
        low, high = of_series[0], of_series[-1]
        accepted.append(
            f"from {percent(low.figures.valid_share)} to {percent(high.figures.valid_share)} with {series}"
            + ("" if low.differs_from(high) else " (no difference beyond chance)")
        )
        distinct.append(f"from {percent(low.figures.distinct_3)} to {percent(high.figures.distinct_3)}")
    collapsed = [f"{one.setting.place:g} with {one.setting.series}" for one in written if one.has_collapsed]
    verdict = (
        f"beyond chance, the stories of {listed(collapsed)} are too probable"
        if collapsed
        else "at no temperature are the accepted stories too probable beyond chance"
    )
    return (
        f"Between temperature {min(TEMPERATURES):g} and {max(TEMPERATURES):g} the accepted stories go "
        f"{listed(accepted)}, the distinct 3-grams {listed(distinct)}; {verdict}."
    )


COMPARISON = Comparison(
    name="compare_temperatures",
    question="What does the temperature change?",
    note="A forward for each token, the surest first.",
    series="tail",
    axis="temperature",
    settings=[
        Setting(series, temperature, {"temperature": temperature, "top_p": top_p})
        for series, top_p in TAILS.items()
        for temperature in TEMPERATURES
    ],
    conclude=conclude,
)

if __name__ == "__main__":
    sys.exit(run(COMPARISON))
