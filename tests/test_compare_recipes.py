"""The comparison of training settings at toy size: what is run, what is not run twice, and the table."""

import json

import pytest

from diffusion_mlm import DiffusionTrainingArguments
from experiments import compare_recipes
from experiments.compare_recipes import ARMS, BASE, as_table, main, start_model

TINY = "--steps 2 --batch-size 4 --save-steps 1 --num-stories 2 --draws 1 --num-samples 2"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipes")
    where = ["--work-dir", str(directory / "work"), "--output", str(directory / "found.json")]
    assert main([*TINY.split(), *where, "--arms", "base"]) == 0
    return directory, where


def test_every_arm_is_a_setting_that_training_takes(tmp_path):
    for changed in ARMS.values():
        settings = {name: value for name, value in {**BASE, **changed}.items() if name != "dropout"}
        DiffusionTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    assert ARMS["base"] == {} and all(changed for arm, changed in ARMS.items() if arm != "base")


def test_a_run_tells_its_tokens_bound_and_stories(first_run):
    directory, _ = first_run
    (run,) = json.loads((directory / "found.json").read_text())["runs"]
    assert (run["arm"], run["seed"], run["train_tokens"], run["num_samples"]) == ("base", 0, 2 * 4 * 80, 2)
    assert 0 < run["nelbo_nats_per_token"] < 20
    assert len(run["samples"]) == 2


def test_a_run_that_was_measured_is_not_repeated_and_other_settings_are_refused(first_run, monkeypatch, capsys):
    directory, where = first_run
    before = (directory / "found.json").read_text()
    monkeypatch.setattr(compare_recipes, "run_arm", None)  # it would fail
    assert main([*TINY.split(), *where, "--arms", "base"]) == 0
    captured = capsys.readouterr()
    assert "base, seed 0: measured before" in captured.err and "| base | 0 |" in captured.out
    assert (directory / "found.json").read_text() == before
    with pytest.raises(ValueError, match="holds runs with steps 2, which cannot be compared with 3"):
        main([*TINY.replace("--steps 2", "--steps 3").split(), *where])


def test_a_run_that_was_interrupted_goes_on_to_the_same_figures(first_run, capsys):
    directory, where = first_run
    path = directory / "found.json"
    result = json.loads(path.read_text())
    base = result["runs"].pop(0)
    path.write_text(json.dumps(result))
    (directory / "work" / "base-0" / "checkpoint-2").rename(directory / "gone")
    assert main([*TINY.split(), *where, "--arms", "base"]) == 0
    again = json.loads(path.read_text())["runs"][-1]
    assert (again["arm"], again["resumed"], base["resumed"]) == ("base", True, False)
    for name in ("nelbo_nats_per_token", "valid_share", "samples"):
        assert again[name] == base[name]


def test_the_table_has_the_best_bound_first_and_differences_from_base(first_run):
    directory, _ = first_run
    result = json.loads((directory / "found.json").read_text())
    bounds = {"base": 0.61, "ema": 0.585}
    result["runs"].append({**result["runs"][0], "arm": "ema"})
    for run in result["runs"]:
        run.update(nelbo_nats_per_token=bounds[run["arm"]], valid_share=0.5, mean_exact_logprob_per_token=-0.5)
    lines = [line for line in as_table(result).splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[:3] for line in lines] == [["| ema", "0", "0.5850"], ["| base", "0", "0.6100"]]
    assert " -0.0250 | 50.0% | 9% to 91% | -0.500 |" in lines[0] and " +0.0000 |" in lines[1]


def test_dropout_of_an_arm_reaches_the_model():
    model = start_model("roberta-tiny", 0.2)
    assert model.roberta.embeddings.dropout.p == model.config.hidden_dropout_prob == 0.2


@pytest.mark.parametrize(
    "argv, says", [(["--arms", "bass"], "`--arms` has 'bass', but the arms are base"), (["--steps", "0"], "`--steps`")]
)
def test_wrong_use_is_told(argv, says):
    with pytest.raises(ValueError, match=says):
        main(argv)
