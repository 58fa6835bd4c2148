"""The benchmark of generation: it compares what is equal, refuses what is not, and counts what it says."""

import json
import sys

import pytest
import torch

from benchmarks import generation as benchmark
from benchmarks.generation import OURS, PLAIN, Bench, Row, measure, needed_flops, table_of

SIDES = sys.modules[Bench.__module__]  # where both sides are
SHAPES = {"tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 200}}


@pytest.fixture(scope="module")
def bench():
    return Bench("cpu", shapes=SHAPES)


def row_of(rule, ours="float32", plain="float32", batch_size=3):
    return Row("tiny", batch_size, prompt=4, new=8, steps=4, rule=rule, ours=ours, plain=plain)


def test_greedy_texts_are_those_of_the_plain_loop_token_for_token(bench):
    facts = bench.compare(row_of("greedy"))
    assert facts["equal_tokens"] == 1
    assert facts["work"][PLAIN] == {"forwards": 12, "encoder_positions": 144, "head_rows": 144}
    assert facts["work"][OURS] == {"forwards": 12, "encoder_positions": 144, "head_rows": 3 * (8 + 6 + 4 + 2)}


def test_random_places_need_only_the_logits_of_the_tokens_drawn(bench):
    facts = bench.compare(row_of("random"))
    assert facts["equal_tokens"] is None
    assert facts["work"][OURS]["head_rows"] == 3 * 8


@pytest.mark.parametrize("rule", ["confidence", "random"])
def test_sampled_texts_of_both_sides_have_one_distribution(bench, rule):
    """The token that stands first, over 400 texts of one prompt: chi-square of two samples."""
    row = row_of(rule, batch_size=400)
    row = Row(**{**vars(row), "new": 1, "steps": 1})
    canvas = bench.canvas(row)[:1].expand(400, -1)
    model, tokenizer = bench.model("tiny", "float32", ours=True), bench.tokenizer(row)
    forbidden = tokenizer.all_special_ids
    counts = []
    for filled in (
        SIDES.plain_loop(model, canvas, row, tokenizer.mask_token_id, forbidden),
        SIDES.our_engine(model, tokenizer, canvas, row),
    ):
        tokens = filled[:, row.prompt]
        assert not set(tokens.tolist()) & set(forbidden)
        counts.append(torch.bincount(tokens, minlength=200).double())
    first, second = counts
    likely = first + second >= 10
    first, second = (torch.cat([count[likely], count[~likely].sum()[None]]) for count in (first, second))
    both = (first + second).clamp(min=1)
    statistic = float(((first - second) ** 2 / both).sum())
    degrees = len(both) - 1
    assert degrees >= 3
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("damage", ["other tokens", "prompt unread"])
def test_nothing_is_timed_if_the_texts_are_not_as_they_must_be(bench, monkeypatch, damage):
    ours, plain = SIDES.our_engine, SIDES.plain_loop
    blank = bench.canvas(row_of("greedy"))

    def wrong(model, tokenizer, canvas, row, seed=0):
        filled = ours(model, tokenizer, canvas if damage == "other tokens" else blank, row, seed)
        if damage == "other tokens":
            filled[0, -1] = filled[0, -1] % 100 + 5
        return filled

    monkeypatch.setattr(SIDES, "our_engine", wrong)
    monkeypatch.setattr(SIDES, "plain_loop", plain)
    with pytest.raises(RuntimeError, match="of the tokens are those of the plain loop"):
        bench.compare(row_of("greedy"))


def test_every_row_has_a_name_of_its_own_and_steps_that_divide_its_tokens():
    rows = benchmark.rows_of_table()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.new % row.steps == 0 for row in rows)


def test_the_work_of_all_rows_of_the_head_is_that_of_the_whole_model(bench):
    row = row_of("greedy")
    size, positions = SHAPES["tiny"], 4 * 3 * 12
    width, layers, vocab = size["hidden_size"], size["num_hidden_layers"], size["vocab_size"]
    whole = positions * (layers * (24 * width**2 + 4 * 12 * width) + 2 * (width**2 + width * vocab))
    assert needed_flops(size, row, head_rows=positions) == whole
    assert needed_flops(size, row, head_rows=60) < whole


def test_figures_of_a_run_become_a_table(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "gemm_rate", lambda dtype, device: 1e9)
    reports = []
    result = measure(bench, row_of("greedy"), rounds=2, seconds=60, report=reports.append)
    assert len(reports) == 3  # after each round, and at the end
    assert set(result["seconds"]) == {PLAIN, OURS, "ours again"}
    file = tmp_path / "run.json"
    figures = {"machine": {"device": "a CPU", "threads": 1, "torch": "2"}, "rows": [result, None]}
    file.write_text(json.dumps(figures, allow_nan=False))
    head, _, line = table_of([str(file)]).splitlines()
    assert head.count("|") == line.count("|")
    assert "| tiny | 3 | 4 + 8 | greedy | 12 | float32 / float32 |" in line
