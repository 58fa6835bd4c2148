"""Recipes of small published systems: their formulas, the parser of `train.py`, and whole runs at toy size."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_mlm import story_language
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.cli.train_arguments import DataArguments, ModelArguments, TrainCommandArguments
from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.objectives import objective_sum, objective_units
from diffusion_mlm.randomness import uniform
from experiments import from_scratch, from_scratch_study
from experiments.scratch_measures import known_words, rises, vocabulary
from experiments.scratch_training import Text, Windows

Recipe = from_scratch.Recipe
RECIPES = sys.modules[Recipe.__module__]  # a neighbour of the script, not a part of a package
NAMES = ("bpe_rope", "char_mercury", "minimal_mdm", "roberta_guide")
GROUPS = [ModelArguments, DataArguments, TrainCommandArguments]


def parsed(name: str, size: str, setting: str, *conditions: str) -> tuple[Any, ...]:
    """What the real parser of `train.py` makes of an arm."""
    return parse(GROUPS, Recipe.read(name).arm(size, setting, conditions).arguments(), "train")


def process_of(name: str) -> ForwardProcess:
    """The forward process of a system's own settings."""
    *_, args = parsed(name, "reduced", "theirs", "file")
    return ForwardProcess(9, **args.masking_settings())


# --- what a recipe says is what the system does ----------------------------------------------------------------------


def test_the_recipes_are_the_four_systems() -> None:
    assert {path.stem for path in RECIPES.RECIPES.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_size_and_setting_is_taken_by_the_parser_of_train(name: str) -> None:
    recipe = Recipe.read(name)
    assert {"reduced", "full"} <= set(recipe.sizes) and {"theirs", "ours"} <= set(recipe.settings)
    for size in recipe.sizes:
        for setting in recipe.settings:
            model_args, *_ = parsed(name, size, setting, "file", "characters")
            assert model_args.tokenizer == "char" and model_args.preset is not None


@pytest.mark.parametrize("name", NAMES)
def test_both_settings_train_the_same_encoder_on_as_many_tokens(name: str) -> None:
    """They differ in how it is trained, and in what is small: a table of times, norms of queries and keys."""
    for size in Recipe.read(name).sizes:
        arms = [parsed(name, size, setting, "file", "characters") for setting in ("theirs", "ours")]
        names = ("preset", "num_hidden_layers", "num_attention_heads", "hidden_size", "tokenizer")
        assert len({tuple(getattr(model, of) for of in names) for model, _, _ in arms}) == 1
        assert len({data.max_length for _, data, _ in arms}) == 1
        batches = {(args.per_device_train_batch_size, args.max_steps, args.num_train_epochs) for *_, args in arms}
        assert len(batches) == 1


def test_the_loss_of_minimal_mdm_is_cross_entropy_over_p_mask() -> None:
    """mean over rows and positions of CE / p_mask, with p_mask(t) = (1 - eps) t + eps (LLaDA, SMDM)."""
    process, rows, length, eps = process_of("minimal_mdm"), 64, 40, 1e-3
    t = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(min=0.1)
    ids = torch.full((rows, length), 5)
    batch = process(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(rows), t)
    p_mask = (1 - eps) * t + eps
    torch.testing.assert_close(batch.mask_rate, p_mask)
    nll = uniform(torch.tensor(3), int(batch.is_masked.sum())).float()
    theirs = (nll / p_mask[batch.is_masked.nonzero()[:, 0]]).sum() / (rows * length)
    ours = objective_sum("elbo", nll, batch) / objective_units("elbo", batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_mask_rates_of_bpe_rope_are_the_clipped_cosine() -> None:
    s, t = 0.008, torch.arange(1, 301, dtype=torch.float64) / 300
    published = 1 - torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
    rate, _ = process_of("bpe_rope").mask_rate_and_weight(t)
    torch.testing.assert_close(rate, published.clamp(0, 0.999))


def test_characters_of_char_mercury_survive_with_the_quarter_cosine() -> None:
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    rate, _ = process_of("char_mercury").mask_rate_and_weight(t)
    torch.testing.assert_close(1 - rate, torch.cos(math.pi / 2 * t))
    model_args, _, second_run = parsed("char_mercury", "full", "theirs", "file")
    *_, first_run = parsed("char_mercury", "full", "first_run", "file")
    assert (model_args.time_conditioning, model_args.time_steps) == ("learned", 101)
    assert (first_run.objective, second_run.objective) == ("full", "simple")


def test_the_guide_masks_ten_levels_a_batch_at_a_time_behind_five_tokens_for_three_epochs() -> None:
    model_args, _, args = parsed("roberta_guide", "full", "theirs", "model")
    assert model_args.preset is None and model_args.tokenizer is None
    assert args.mask_levels == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert (args.masking, args.levels_per, args.prefix, args.num_train_epochs) == ("levels", "batch", 5, 3)


def test_unknown_names_are_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ValueError, match="bpe_rope, char_mercury, minimal_mdm, roberta_guide"):
        Recipe.read("nano")
    with pytest.raises(ValueError, match="`--size`.*reduced, small, full, not 'huge'"):
        Recipe.read("minimal_mdm").arm("huge", "ours", ("file",))
    with pytest.raises(ValueError, match="`--settings`.*theirs, first_run, ours"):
        Recipe.read("char_mercury").arm("full", "mine", ("file",))


# --- text, rows and words --------------------------------------------------------------------------------------------


def test_the_end_of_a_file_is_held_out_and_every_place_of_the_rest_begins_a_row(
    story_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "play.txt"
    path.write_text("ROMEO:\nO\n" * 100, encoding="utf-8")
    text = Text.of_file(str(path))
    assert (text.name, "".join(text.train + text.held_out)) == ("play.txt", path.read_text())
    assert len(text.held_out[0]) == 90
    rows = Windows(range(10, 30), story_tokenizer, 8)
    start, end = story_tokenizer.bos_token_id, story_tokenizer.eos_token_id
    assert len(rows) == 15
    assert rows[14]["input_ids"].tolist() == [start, 24, 25, 26, 27, 28, 29, end]


def test_a_loss_rises_if_no_tenth_is_lower_than_the_one_before_but_for_noise() -> None:
    assert rises([0.5, 1.0, 0.995, 2.0])
    assert not rises([0.5, 1.0, 0.98, 2.0]) and not rises([1.0, 1.0])


def test_words_cut_at_the_ends_of_a_text_do_not_count() -> None:
    known = vocabulary(["To be, or not to be: that's it."])
    assert known == {"to", "be", "or", "not", "that's", "it"}
    assert known_words(["ot to BE that's thot. no"], known) == (3, 4)
    assert known_words(["be"], known) == (0, 0)
    assert known_words(["ot to BE that's thot. no"], known, least=4) == (1, 2)


# --- whole runs ------------------------------------------------------------------------------------------------------


RECIPE = """
system: a toy
source: here
reported: nothing
differs: nothing
options: {preset: modern-tiny, tokenizer: char, num_hidden_layers: 1, num_attention_heads: 2, hidden_size: 16,
  max_length: 34, prefix_length: 0, per_device_train_batch_size: 4, max_steps: 8, learning_rate: 1e-3}
sizes: {reduced: {}, full: {}}
settings:
  theirs: {time_conditioning: learned, schedule: survival, stratified_times: false, objective: full,
    generation: {plain: {steps: 3, remask: low_confidence, order: confidence, final_pass: true}}}
  ours: {optim: muon, ema_decay: 0.5, low_rates: {share: 0.25, levels: [0.15]},
    generation: {default: {steps: 2}, ancestral: {steps: 3, reveal: ancestral, order: random}}}
trace: html
"""


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(story_language.sample(12, seed=3)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    directory = tmp_path_factory.mktemp("scratch")
    (directory / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    output = directory / "found.json"
    common = ["--output", str(output), "--train-file", str(text_file), "--draws", "2", "--num-samples", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RECIPES, "RECIPES", directory)
        assert from_scratch.main(["toy", *common]) == 0
    return output, json.loads(output.read_text())["rows"], output.with_suffix(".md").read_text()


def test_both_settings_see_as_many_tokens_and_are_measured_on_the_same_rows(runs: Any) -> None:
    output, rows, _ = runs
    ours, theirs = rows
    assert [row["setting"] for row in rows] == ["ours", "theirs"]
    assert ours["training"]["tokens"] == theirs["training"]["tokens"] == 8 * 4 * 32
    assert ours["bound"]["num_tokens"] == theirs["bound"]["num_tokens"] == ours["text"]["held_out"]
    assert ours["bound"]["bits_per_byte"] == pytest.approx(ours["bound"]["nats_per_token"] / math.log(2))
    whole = json.loads((output.with_suffix("") / "toy-reduced-ours-0.json").read_text())
    assert sum(whole["rows"]["nats"]) / sum(whole["rows"]["tokens"]) == pytest.approx(
        ours["bound"]["nats_per_token"], abs=1e-3
    )


def test_a_row_holds_what_is_asked_of_every_run(runs: Any) -> None:
    output, rows, table = runs
    for row in rows:
        first = row["first_loss"]
        assert first["within_2_percent"] and first["log_vocabulary"] == pytest.approx(math.log(row["vocabulary"] - 5))
        assert row["loss_rises_with_mask_rate"] in (True, False) and len(row["loss_by_mask_rate"]) > 5
        assert all(of["num_words"] > 0 and len(of["texts"][0]) == 32 for of in row["samples"].values())
        assert (output.with_suffix("") / row["trace"]).is_file()
    assert "toy" in table and "2 of 2 runs from scratch" in table


def test_rows_whose_runs_are_on_another_machine_stay_in_the_table(runs: Any, tmp_path: Path) -> None:
    output, rows, table = runs
    (tmp_path / "found.json").write_text(output.read_text())
    assert from_scratch.main(["--table", "--output", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows
    assert (tmp_path / "found.md").read_text() == table


def test_the_saved_model_writes_as_the_recipe_says(runs: Any) -> None:
    from diffusion_mlm import load_generator

    output, _, _ = runs
    model, _ = load_generator(str(output.with_suffix("") / "toy-reduced-theirs-0" / "final-model"))
    assert model.generation_config.final_pass is True and model.generation_config.remask == "low_confidence"
    assert model.config.diffusion["schedule"] == "survival"


def test_a_budget_of_seconds_gives_all_settings_the_same_steps(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE.replace("max_steps: 8", "max_steps: 100000"), encoding="utf-8")
    common = ["--output", str(tmp_path / "a.json"), "--train-file", str(text_file), "--draws", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RECIPES, "RECIPES", tmp_path)
        assert from_scratch.main(["toy", *common, "--num-samples", "1", "--max-seconds", "1"]) == 0
    trainings = [row["training"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]]
    assert len({training["steps_planned"] for training in trainings}) == 1
    assert 2 <= trainings[0]["steps_planned"] < 100000 == trainings[0]["steps_asked"]


def test_the_guide_runs_offline_on_the_packaged_model(tmp_path: Path) -> None:
    asked = ["--size", "quick_test", "--settings", "theirs", "--max-steps", "2", "--draws", "1", "--num-samples", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[from_scratch.Text.__module__], "_HELD_OUT_STORIES", 8)
        assert from_scratch.main(["roberta_guide", *asked, "--output", str(tmp_path / "a.json")]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["text"]["name"] == "stories" and row["options"].get("preset") is None
    assert row["bound"]["num_tokens"] > 0 and row["samples"]["guide"]["known_words"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a recipe"),
        (["minimal_mdm", "--size", "huge"], "`--size`"),
        (["minimal_mdm", "--max-seconds", "0"], "`--max-seconds`"),
        (["minimal_mdm", "--model-name", "FacebookAI/roberta-base"], "`--model-name`"),
        (["minimal_mdm", "--output", "rows.txt"], "`--output`"),
    ],
)
def test_impossible_requests_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_scratch.main(words)


# --- the study -------------------------------------------------------------------------------------------------------


def run_study(*words: str, **patched: Any) -> None:
    small = {**from_scratch_study.BASE, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BASE": small, "WRITING_STEPS": (2, 4), **patched}.items():
            patch.setattr(from_scratch_study, name, value)
        assert from_scratch_study.main(list(words)) == 0


def test_the_study_compares_arms_on_equal_tokens_and_draws_them(text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "study.json"
    common = ["--output", str(output), "--train-file", str(text_file), "--draws", "2", "--num-samples", "1"]
    common += ["--tokens", "600", "--batch-size", "4", "--max-length", "34"]
    run_study("--arms", "bpe_512", *common, draw=lambda runs, target: None)  # others add to what is there
    run_study("--arms", "base", *common)
    runs = json.loads(output.read_text())["runs"]
    assert [run["arm"] for run in runs] == ["base", "bpe_512"]
    assert all(abs(run["training"]["tokens"] - 600) <= 4 * 32 for run in runs)
    base = runs[0]
    assert {(one["settings"]["steps"], one["settings"]["remask"]) for one in base["writing"]} == {
        (steps, remask) for steps in (2, 4) for remask in from_scratch_study.REMASKING
    }
    assert [one["steps"] for one in base["bound_of_steps"]] == [2, 4]
    bounds = [one["nats_per_token"] for one in base["bound_of_steps"]]
    assert bounds[0] == pytest.approx(base["bound"]["nats_per_token"], rel=0.2), "a toy knows little at any step"
    for name in ("bounds", "mask_rates", "writing"):
        assert (tmp_path / f"study_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "| bpe_512 | 1 |" in output.with_suffix(".md").read_text()
