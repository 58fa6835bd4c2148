"""`diffusion-mlm evaluate` and `diffusion-mlm score`: figures as JSON or a table, one sentence for every mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import evaluate_texts, score, story_language
from diffusion_mlm.cli import evaluate as evaluate_command
from diffusion_mlm.cli import main
from diffusion_mlm.cli import score as score_command
from diffusion_mlm.evaluation.text_likelihood import ESTIMATORS
from diffusion_mlm.evaluation.text_nats import SCORES
from diffusion_mlm.evaluation.trajectory import FIXED_ORDERS
from diffusion_mlm.file_format import TEXT_UNITS
from diffusion_mlm.packing import PACKINGS
from diffusion_mlm.schedules import SCHEDULES

Command = Callable[..., tuple[int, str, str]]
STORIES = story_language.sample(3, seed=8)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], checkpoint: str) -> Command:
    def run(verb: str, *argv: object) -> tuple[int, str, str]:
        status = main([verb, *map(str, argv), "--checkpoint", checkpoint])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "held out.txt"
    path.write_text("\n\n".join(STORIES) + "\n", encoding="utf-8")
    return path


def test_the_choices_of_the_command_line_are_those_of_the_library() -> None:
    assert evaluate_command.ESTIMATORS == ESTIMATORS
    assert evaluate_command.PACKINGS == PACKINGS
    assert evaluate_command.TEXT_UNITS == TEXT_UNITS
    assert list(SCHEDULES) == list(evaluate_command.SCHEDULES)
    assert evaluate_command.FIXED_ORDERS == FIXED_ORDERS
    assert score_command.SCORES == SCORES


@pytest.mark.parametrize("verb", ["evaluate", "score"])
def test_help_does_not_wait_for_torch(verb: str) -> None:
    code = f"import sys; from diffusion_mlm.cli import main; main(['{verb}', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_evaluate_prints_one_object_with_what_the_library_reports(
    run: Command, text_file: Path, shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = ["--draws", 2, "--packing", "one_per_row", "--max-length", 16, "--seed", 4, "--batch-size", 3]
    status, out, err = run("evaluate", "--eval-file", text_file, *options, "--output-format", "json")
    assert status == 0 and out.count("\n") == 1, err
    found = json.loads(out)
    report = evaluate_texts(
        shared_roberta, story_tokenizer, STORIES, draws=2, packing="one_per_row", max_length=16, seed=4
    )
    assert found["nelbo_nats_per_token"] == pytest.approx(report.bound.nats_per_token, rel=1e-5)
    assert found["perplexity"] == pytest.approx(report.bound.perplexity, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(report.bound.bits_per_byte, rel=1e-5)
    assert found["confidence_interval"] == pytest.approx(list(report.bound.confidence_interval or ()), rel=1e-5)
    assert (found["num_texts"], found["num_tokens"], found["draws"]) == (3, report.num_tokens, 2)
    assert found["num_bytes"] == sum(len(story) for story in STORIES)
    assert all(len(point) == 2 for point in found["loss_by_mask_rate"])
    assert found["left_out"] == {
        "unknown_tokens": 0,
        "unknown_bytes": 0,
        "separators": 0,
        "texts_without_tokens": 0,
        "blank": 2,
        "null": 0,
        "texts_not_taken": 0,
    }
    assert found["device"] == str(shared_roberta.device) or found["device"].startswith("cuda")


def test_evaluate_reads_files_whole_or_by_paragraph_and_takes_the_first_texts(run: Command, text_file: Path) -> None:
    for unit, texts, size in (("file", 1, len("\n\n".join(STORIES)) + 1), ("paragraph", 3, sum(map(len, STORIES)))):
        options = ["--text-unit", unit, "--draws", 1, "--output-format", "json"]
        found = json.loads(run("evaluate", "--eval-file", text_file, *options)[1])
        assert (found["num_texts"], found["packing"]) == (texts, "packed")
        assert found["num_bytes"] == size - found["left_out"]["unknown_bytes"]
    found = json.loads(run("evaluate", "--eval-file", text_file, "--num-texts", 2, "--output-format", "json")[1])
    assert found["num_texts"] == 2 and found["left_out"]["texts_not_taken"] == 1


def test_evaluate_adds_the_estimators_that_are_asked_for(run: Command, text_file: Path) -> None:
    options = ["--num-texts", 1, "--draws", 4, "--max-length", 12, "--orders", 2, "--steps", 2, 3]
    asked = ["evaluate", "--eval-file", text_file, *options, "--estimators", *ESTIMATORS]
    found = json.loads(run(*asked, "--output-format", "json")[1])
    assert [of["steps"] for of in found["steps"]] == [2, 3]
    assert found["chain"]["order"] == "left_to_right" and found["importance"]["orders"] == 2
    assert found["importance"]["nats_per_token"] <= found["importance"]["nats_per_token_of_one_order"]
    assert len(found["curve"]["loss_by_mask_rate"]) == 19
    status, out, _ = run(*asked)
    assert status == 0
    for words in (
        "likelihood bound",
        "in 2 steps",
        "in 3 steps",
        "fixed order",
        "importance bound",
        "integrated curve",
    ):
        assert words in out


def test_evaluate_shows_stories_beside_their_exact_likelihood_and_says_what_is_left_out(
    run: Command, text_file: Path
) -> None:
    status, out, _ = run("evaluate", "--num-stories", 2, "--draws", 1)
    assert status == 0 and "likelihood bound" in out and "bits per byte" in out
    text_file.write_text("One day\n\nOne xylophone day\n", encoding="utf-8")
    lines = run("evaluate", "--eval-file", text_file, "--draws", 1)[1].splitlines()
    notes = [line.removeprefix("note").strip() for line in lines if line.startswith("note")]
    assert "blank texts, left out: 1" in notes
    assert "</s> between texts, given and not scored: 1" in notes
    assert "unknown tokens, given and not scored (10 bytes): 1" in notes


def test_the_exact_likelihood_of_stories_is_that_of_their_language(capsys: pytest.CaptureFixture[str]) -> None:
    from diffusion_mlm.checkpoints import STORIES_GENERATOR

    asked = ["evaluate", "--checkpoint", STORIES_GENERATOR, "--num-stories", "2", "--draws", "2"]
    assert main([*asked, "--output-format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    texts = story_language.sample(2, seed=2)
    exact = -float(story_language.log_prob(texts).sum()) / found["num_tokens"]
    assert found["exact_nats_per_token"] == pytest.approx(exact)
    assert found["scores_end"] and found["packing"] == "one_per_row" and found["max_length"] == 80


def test_score_prints_a_line_for_each_text_in_order(
    run: Command, shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["One day", "Once upon a time"]
    status, out, _ = run("score", *texts, "--draws", 8, "--output-format", "json")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    expected = score(shared_roberta, story_tokenizer, texts, draws=8)
    assert [line["text"] for line in lines] == texts
    assert [line["nats"] for line in lines] == pytest.approx([text.nats for text in expected], rel=1e-5)


def test_score_shows_the_likeliest_first_and_by_how_much(run: Command) -> None:
    texts = [" upon a time", " upon", " day, Mia lived"]
    status, out, _ = run("score", *texts, "--estimator", "chain", "--prefix", "Once")
    assert status == 0
    header, *lines = out.splitlines()
    assert header.split()[0] == "nats" and len(lines) == 3
    nats = [float(line.split()[0]) for line in lines]
    assert nats == sorted(nats)
    assert f"{nats[1] - nats[0]:.1f}"[:-1] in lines[1]
    assert json.loads(run("score", "One", "--beginning", "--output-format", "json")[1])["scores_end"] is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evaluate"], ("`--eval-file` is missing", "--num-stories")),
        (["evaluate", "--eval-file", "nowhere.txt"], ("`--eval-file`", "'nowhere.txt'")),
        (["evaluate", "--eval-file", "x", "--num-stories", "2"], ("`--eval-file` and `--num-stories` exclude",)),
        (["evaluate", "--num-stories", "0"], ("`--num-stories`", "0")),
        (["evaluate", "--num-stories", "2", "--draws", "0"], ("`--draws`", "0")),
        (["evaluate", "--num-stories", "2", "--steps", "8", "-1"], ("`--steps`", "-1")),
        (["evaluate", "--num-stories", "2", "--max-length", "2"], ("`--max-length`", "2")),
        (["evaluate", "--num-stories", "2", "--max-length", "99"], ("max_length", "99", "32")),
        (["evaluate", "--num-stories", "2", "--estimators", "elbo"], ("elbo", "chain")),
        (["evaluate", "--num-stories", "2", "--draw", "3"], ("--draw", "--draws")),
        (["score"], ("`--texts` is missing", "score")),
        (["score", "One day", "--draws", "1"], ("`--draws`", "2", "1")),
        (["score", "One day", "--estimator", "elbo"], ("elbo", "chain")),
        (["score", "xyzzy"], ("'xyzzy'", "no token")),
    ],
)
def test_mistakes_are_wrong_use_and_one_sentence(run: Command, argv: list[str], words: tuple[str, ...]) -> None:
    status, out, err = run(*argv)
    assert status == 2 and not out and "Traceback" not in err, err
    (message,) = [line for line in err.splitlines() if line.startswith("diffusion-mlm: ")]
    for word in words:
        assert word in message, message
