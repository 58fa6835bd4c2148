"""The comparison of training settings at toy size: what is run, what is not run twice, and the table."""

import json

import pytest

from diffusion_mlm import DiffusionTrainingArguments
from diffusion_mlm.checkpoints import STORIES_MLM
from experiments import compare_recipes
from experiments.compare_recipes import ARMS, BASE, CompareRecipesArguments, as_table, main, start_model

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
    assert "base, seed 0: measured before" in captured.err and "| base | 1 |" in captured.out
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
    assert [line.split(" | ")[:3] for line in lines] == [["| ema", "1", "0.5850"], ["| base", "1", "0.6100"]]
    assert " -0.0250 | 50.0% (9% to 91%) | -0.500 |" in lines[0] and " +0.0000 |" in lines[1]


def test_seeds_are_averaged_and_compared_in_pairs():
    runs = {0: {"nelbo_nats_per_token": 0.5}, 1: {"nelbo_nats_per_token": 0.7}, 2: {"nelbo_nats_per_token": 9.0}}
    base = {0: {"nelbo_nats_per_token": 0.6}, 1: {"nelbo_nats_per_token": 0.6}}
    assert compare_recipes.against_base(runs, base) == "+0.0000 (-0.1000 to +0.1000)"


def test_runs_that_went_side_by_side_are_joined(first_run, tmp_path, capsys):
    directory, _ = first_run
    result = json.loads((directory / "found.json").read_text())
    part = {**result, "runs": [{**result["runs"][0], "seed": 7}]}
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, content in zip(paths, (result, part), strict=True):
        path.write_text(json.dumps(content))
    where = ["--output", str(tmp_path / "all.json"), "--join", *map(str, paths)]
    assert main([*TINY.split(), *where]) == 0
    assert "| base | 2 |" in capsys.readouterr().out
    assert [run["seed"] for run in json.loads((tmp_path / "all.json").read_text())["runs"]] == [0, 7]
    with pytest.raises(ValueError, match="has steps 2, not 3: give its settings too"):
        main([*TINY.replace("--steps 2", "--steps 3").split(), "--output", str(tmp_path / "b.json"), *where[2:]])


def test_arms_run_on_text_files_from_a_named_model(tmp_path, capsys):
    for name in ("train.txt", "held_out.txt"):
        (tmp_path / name).write_text("The fox found the boat. " * 200)
    text = ["--train-file", str(tmp_path / "train.txt"), "--eval-file", str(tmp_path / "held_out.txt")]
    where = ["--work-dir", str(tmp_path / "work"), "--output", str(tmp_path / "found.json")]
    argv = [*TINY.split(), *text, *where, "--max-length", "16", "--model-name", str(STORIES_MLM), "--arms", "base"]
    assert main(argv) == 0
    result = json.loads((tmp_path / "found.json").read_text())
    assert result["text_files"] == ["train.txt", "held_out.txt"]
    assert 0 < result["runs"][0]["nelbo_nats_per_token"] < 40 and "valid_share" not in result["runs"][0]
    assert "# Training settings on train.txt, held_out.txt" in capsys.readouterr().out


def test_dropout_of_an_arm_reaches_the_model():
    model = start_model(CompareRecipesArguments(preset="roberta-tiny"), 0.2)
    assert model.roberta.embeddings.dropout.p == model.config.hidden_dropout_prob == 0.2


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--arms", "bass"], "`--arms` has 'bass', but the arms are base"),
        (["--steps", "0"], "`--steps`"),
        (["--train-file", "a.txt"], "`--train-file`, `--eval-file` and `--model-name` go together"),
        (["--preset", "roberta-tiny", "--model-name", "x"], "exclude one another"),
    ],
)
def test_wrong_use_is_told(argv, says):
    with pytest.raises(ValueError, match=says):
        main(argv)
