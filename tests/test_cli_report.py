"""`diffusion-mlm evaluate --report`: two masked models and a causal one, from the command line to the files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import RobertaForMaskedLM

from diffusion_mlm import DiffusionGenerationConfig, story_language
from diffusion_mlm.causal_peer import build_causal_peer
from diffusion_mlm.cli import main
from diffusion_mlm.cli.evaluate_report import short_names

Command = Callable[..., tuple[int, str, str]]
TOKENIZER = story_language.tokenizer()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], checkpoint: str) -> Command:
    def run(*argv: object) -> tuple[int, str, str]:
        status = main(["evaluate", *map(str, argv), "--checkpoint", checkpoint])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, shared_roberta: RobertaForMaskedLM) -> dict[str, Path]:
    """A masked model that is greedy by default, and a causal one."""
    folder = tmp_path_factory.mktemp("others")
    shared_roberta.save_pretrained(folder / "greedy")
    build_causal_peer(shared_roberta.config).save_pretrained(folder / "causal")
    DiffusionGenerationConfig(preset="greedy", max_new_tokens=8).save_pretrained(folder / "greedy")
    for path in folder.iterdir():
        TOKENIZER.save_pretrained(path)
    return {path.name: path for path in folder.iterdir()}


def test_a_report_of_two_masked_models_and_a_causal_one(run: Command, others: dict[str, Path], tmp_path: Path) -> None:
    training = tmp_path / "training.txt"
    training.write_text("Once upon a time", encoding="utf-8")
    options = ["--num-stories", 3, "--draws", 2, "--steps", 2, "--max-length", 16, "--num-samples", 3]
    options += ["--compare", others["greedy"], others["causal"], "--report", tmp_path / "deep" / "out"]
    options += ["--prefix", "Once upon", "--training-file", training, "--estimators", "chain"]
    status, out, err = run(*options, "--output-format", "json")
    assert status == 0 and out.count("\n") == 1, err
    found = json.loads(out)
    assert json.loads((tmp_path / "deep" / "out" / "report.json").read_text(encoding="utf-8")) == found
    assert [of["kind"] for of in found["checkpoints"]] == ["masked", "masked", "causal"]
    assert [of["name"] for of in found["checkpoints"]][1:] == ["greedy", "causal"]
    assert [of["difference"] is None for of in found["checkpoints"]] == [True, False, False]
    assert found["checkpoints"][1]["difference"]["nats_per_token"] == 0  # the same weights
    assert found["exact"]["num_tokens"] > 0
    for of in found["checkpoints"]:
        assert all(text.startswith("Once upon") for text in of["samples"]["texts"])
        assert of["samples"]["generated"]["longest_copy_characters"] >= len("Once upon")
        assert ("chain" in of["likelihood"]["others"]) == (of["kind"] == "masked")
    markdown = (tmp_path / "deep" / "out" / "report.md").read_text(encoding="utf-8")
    same = "greedy: 2 of 3 samples are the same as an earlier one"
    assert f"note: {same}" in err and f"* {same}" in markdown
    for plot in ("loss_by_mask_rate", "calibration", "quality_by_forwards"):
        assert (tmp_path / "deep" / "out" / f"{plot}.png").stat().st_size > 1000


def test_a_comparison_without_a_directory_is_printed(run: Command, others: dict[str, Path]) -> None:
    status, out, err = run("--num-stories", 2, "--draws", 1, "--steps", 2, "--compare", others["causal"])
    assert status == 0, err
    header = next(line for line in out.splitlines() if line.startswith("|"))
    assert header.endswith("| `causal` |") and "nats per token above" in out
    assert "## Samples" not in out and "![" not in out and "Wrote" not in err


def test_names_are_the_shortest_that_tell_checkpoints_apart() -> None:
    assert short_names(["gpt2"]) == ["gpt2"]
    assert short_names(["a/x/m/", "./b/x/m", "x/m"]) == ["a/x/m", "b/x/m", "x/m"]
    assert short_names(["/", "."]) == ["/", "."]
    with pytest.raises(ValueError, match="'./a/b' twice"):
        short_names(["a/b", "./a/b"])


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--compare", "./nowhere"], 2, ("`--compare`", "./nowhere")),
        (["--compare", "{empty}"], 2, ("`--compare`", "holds no model")),
        (["--report", "{full}"], 73, ("`--report`", "thesis.tex")),
        (["--report", "{full}/thesis.tex"], 73, ("`--report`", "no report can be written")),
        (["--report", "{empty}", "--judge", "./nowhere", "--num-samples", "1"], 2, ("`--judge`", "./nowhere")),
        (["--report", "{empty}", "--judge", "x"], 2, ("`--judge`", "--num-samples")),
        (["--report", "{empty}", "--prefix", "x"], 2, ("`--prefix`", "--num-samples")),
        (["--report", "{empty}", "--judge-end-token", "x"], 2, ("`--judge-end-token`", "`--judge`")),
        (["--report", "{empty}", "--num-samples", "-1"], 2, ("`--num-samples`", "-1")),
        (
            ["--report", "{empty}", "--num-samples", "1", "--training-file", "no.txt"],
            2,
            ("`--training-file`", "no.txt"),
        ),
        (["--num-samples", "2"], 2, ("`--num-samples`", "--report")),
        (["--report", "{empty}", "--num-sample", "2"], 2, ("--num-sample is no option", "--num-samples")),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    run: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    status: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr("diffusion_mlm.cli.evaluate_report.load_checkpoint", lambda *_: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    argv = [word.format(empty=tmp_path / "empty", full=tmp_path / "full") for word in argv]
    found, out, err = run("--num-stories", 2, *argv)
    assert found == status and not out and "Traceback" not in err, err
    for word in words:
        assert word in err, err
    assert not list((tmp_path / "empty").iterdir())
