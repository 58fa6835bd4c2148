"""The arithmetic of `docs/scaling.md`."""

from pathlib import Path

import pytest

from experiments import scaling_arithmetic
from experiments.scaling_arithmetic import SIZES, measured


def test_the_page_shows_what_the_script_prints():
    page = (Path(__file__).parents[1] / "docs/scaling.md").read_text(encoding="utf-8")
    for table in (scaling_arithmetic.check_line(), scaling_arithmetic.memory_table(), scaling_arithmetic.time_table()):
        assert table in page, "Put the output of experiments/scaling_arithmetic.py into docs/scaling.md."


def test_the_arithmetic_is_near_the_peak_that_was_measured():
    assert SIZES[0].peak_bytes(again=False) == pytest.approx(measured()["peak"], rel=0.1)


def test_the_time_of_roberta_base_is_the_one_that_was_measured():
    base = SIZES[0]
    assert measured()["flops"] / base.flops_per_token() == pytest.approx(measured()["tokens"], rel=1e-6)
    assert base.parameters() == 124_697_433  # as published: 12 layers of 768 and a tied head
