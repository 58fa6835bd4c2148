"""`diffusion-mlm infill` and `diffusion-mlm edit`: texts in, texts out, and one sentence for every mistake."""

import json
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import edit, infill
from diffusion_mlm.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], checkpoint: str) -> Command:
    def run(verb: str, *argv: object) -> tuple[int, str, str]:
        status = main([verb, *map(str, argv), "--checkpoint", checkpoint])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_infill_prints_what_infill_returns(
    run: Command, shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    status, out, _ = run("infill", "One <mask> day", "The <mask:2>.", "--seed", 3)
    expected = infill(shared_roberta, story_tokenizer, ["One <mask> day", "The <mask:2>."], seed=3)
    assert status == 0 and out == f"{expected[0].text}\n\n{expected[1].text}\n"
    assert run("infill", "--text", "One <mask> day", "The <mask:2>.", "--seed", 3)[1] == out
    assert run("infill", "--seed", 3, "One <mask> day", "The <mask:2>.")[1] == out


def test_edit_prints_what_edit_returns(
    run: Command, shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    status, out, _ = run("edit", "--text", "One day in May", "--strength", 0.5, "--protect", "May", "--seed", 3)
    (expected,) = edit(shared_roberta, story_tokenizer, "One day in May", strength=0.5, protect=["May"], seed=3)
    assert status == 0 and out == f"{expected.text}\n" and "May" in out


def test_json_replays_with_its_seed(run: Command) -> None:
    asked = ["infill", "One <mask:1-3> day", "--draws", 2, "--output-format", "json"]
    status, out, err = run(*asked, "--num-samples", 2)
    samples = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(samples) == 2 and f"seed {samples[0]['seed']}" in err
    assert list(samples[0]) == [
        "template", "text", "fills", "lengths", "seed", "num_forwards", "nelbo_nats_per_token"
    ]  # fmt: skip
    assert json.loads(run(*asked, "--seed", samples[1]["seed"])[1]) == samples[1]
    edited = json.loads(run("edit", "One day", "--seed", 1, "--output-format", "json")[1])
    assert list(edited) == ["original", "text", "num_masked", "seed", "num_forwards"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["infill"], ("`--text` is missing", "infill")),
        (["edit"], ("`--text` is missing", "edit")),
        (["infill", "no blank"], ("'no blank'", "<mask>")),
        (["infill", "<mask:40>"], ("41 tokens", "reads")),
        (["infill", "<mask>", "--draws", "0"], ("`--draws`", "0")),
        (["infill", "<mask>", "--steps", "0"], ("steps", "0")),
        (["infill", "<mask>", "--strength", "1"], ("--strength",)),
        (["edit", "One day", "--strength", "0"], ("`--strength`", "0")),
        (["edit", "One day", "--protect", "dragon"], ("`protect`", "dragon")),
        (["edit", "One day", "--max-new-tokens", "3"], ("--max-new-tokens",)),
    ],
)
def test_mistakes_are_wrong_use_and_one_sentence(run: Command, argv: list[str], words: tuple[str, ...]) -> None:
    status, out, err = run(*argv)
    assert status == 2 and not out and "Traceback" not in err
    (message,) = [line for line in err.splitlines() if line.startswith("diffusion-mlm: ")]
    for word in words:
        assert word in message, message
