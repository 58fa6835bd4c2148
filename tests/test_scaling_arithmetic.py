"""The arithmetic of `docs/scaling.md`."""

from pathlib import Path

import pytest
from transformers import RobertaConfig, RobertaForMaskedLM, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM

from experiments import scaling_arithmetic
from experiments.scaling_arithmetic import SIZES, Size, measured


def test_the_page_shows_what_the_script_prints():
    page = (Path(__file__).parents[1] / "docs/scaling.md").read_text(encoding="utf-8")
    for table in (scaling_arithmetic.check_line(), scaling_arithmetic.memory_table(), scaling_arithmetic.time_table()):
        assert table in page, "Put the output of experiments/scaling_arithmetic.py into docs/scaling.md."


def test_the_arithmetic_is_near_the_peak_that_was_measured():
    assert SIZES[0].peak_bytes(again=False) == pytest.approx(measured()["peak"], rel=0.1)


def test_the_time_of_roberta_base_is_the_one_that_was_measured():
    base = SIZES[0]
    assert base.parameters() == 124_697_433  # 12 layers of 768 and a head that shares the embeddings
    assert measured()["flops"] / base.flops_per_token() == pytest.approx(measured()["tokens"], rel=1e-6)


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(RobertaConfig, RobertaForMaskedLM), (XLMRobertaXLConfig, XLMRobertaXLForMaskedLM)],
)
def test_parameters_are_those_of_the_real_model(config_class, model_class):
    config = config_class(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    assert Size("tiny", 3, 16, 31).parameters() == model_class(config).num_parameters()
