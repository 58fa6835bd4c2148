"""The check of constraints: its own view of them refuses what breaks them, and it counts what it sees."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.constraint_check import CASES, main, mixed_settings

BREAKS = {
    "regex": [" lived near the lake.", " lived near the lake with her fox, Rusty", ""],
    "banned words": [" was near the lake.", " theGive", "(I)"],
    "allowed words": ["the wolf", "thefox", "they saw"],
    "banned strings in any case": ["A rabbit.", "HER", "Ra"],
    "regex and banned words": [" lived near the lake with his fox.", " lived near the mill."],
    "banned words and a regex in text longer than the context": [' "', " his fox"],
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_text_that_breaks_a_constraint_is_seen_without_automata(case):
    assert not any(case.holds(text) for text in BREAKS[case.name])


def test_all_orders_and_samplings_and_few_and_many_steps_are_mixed():
    settings = mixed_settings()
    assert len({(setting["order"], setting["sampling"]) for setting in settings}) == len(settings) == 25
    assert {1, 16} <= {setting["steps"] for setting in settings}
    assert {"remask", "block_length", "adaptive"} <= {name for setting in settings for name in setting}


def test_every_sample_is_counted_and_holds(tmp_path: Path) -> None:
    output = tmp_path / "constraints.json"
    assert main(["--num-samples", "2", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["held"] == result["total"] == 2 * len(CASES)
    assert [row["total"] for row in result["constraints"]] == [2] * len(CASES)


def test_a_sample_that_does_not_hold_is_counted_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = dataclasses.replace(CASES[0], holds=lambda new: False)
    monkeypatch.setattr("experiments.constraint_check.CASES", (never,))
    output = tmp_path / "constraints.json"
    assert main(["--num-samples", "2", "--output", str(output)]) == 1
    (row,) = json.loads(output.read_text())["constraints"]
    assert (row["held"], row["total"], len(row["broken"])) == (0, 2, 2)
