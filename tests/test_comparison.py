"""The comparisons of the guide: their conclusions follow from the figures, and a small one really runs."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import compare_sampling
import compare_schedules
import compare_temperatures
from comparison import Comparison, Setting, Written, listed, run

from diffusion_mlm import story_language
from diffusion_mlm.evaluation.interval import share_interval
from diffusion_mlm.evaluation.story_quality import StoryFigures, story_figures

STORIES = story_language.sample(40, seed=5)
ALL = (compare_schedules, compare_sampling, compare_temperatures)


def written(setting: Setting, accepted: int, stories: list[str] = STORIES, spoil: str = " Ende") -> Written:
    """Stories of which so many are accepted."""
    texts = [*stories[:accepted], *(story + spoil for story in stories[accepted:])]
    return Written(setting, story_figures(texts, 0.99), texts, forwards=8.0)


def test_shares_differ_beyond_chance_as_the_interval_of_their_difference_says():
    """Its lower end in Newcombe's paper: 0.0524 for 56 of 70 and 48 of 80, 0.1705 for 9 of 10 and 3 of 10."""
    for (more, of_more), (less, of_less), lower in (((56, 70), (48, 80), 0.0524), ((9, 10), (3, 10), 0.1705)):
        low, high = share_interval(more, of_more)[0], share_interval(less, of_less)[1]
        difference = more / of_more - less / of_less
        assert difference - math.hypot(more / of_more - low, high - less / of_less) == pytest.approx(lower, abs=6e-5)
    setting = Setting("", 1, {})
    one, other = written(setting, 20), written(setting, 21)
    assert not one.differs_from(other) and not other.differs_from(one)
    one, other = written(setting, 0), written(setting, 40)
    assert one.differs_from(other) and other.differs_from(one)


def test_schedules_that_write_the_same_are_told_from_those_that_differ():
    rows = []
    for setting in compare_schedules.COMPARISON.settings:
        bad = setting.series == "exponential" and setting.place in (16, 32)
        same = setting.place == compare_schedules.STEPS[-1]
        accepted = 2 if bad else 40 if same else 39
        rows.append(written(setting, accepted, spoil=f" {setting.series}"))
    sentence = compare_schedules.conclude(rows)
    assert sentence.startswith(
        "The schedule changes what is written in 16 steps (5 % of the stories are accepted with"
    )
    assert "32 steps (5 % of the stories are accepted with exponential, 98 % with linear); in 48 steps" in sentence
    assert sentence.endswith(
        "; in 79 steps, one for each token, all schedules write the same 40 stories, letter for letter."
    )


def test_a_sampling_that_repeats_itself_has_collapsed_and_the_best_is_named():
    rows = []
    for setting in compare_sampling.COMPARISON.settings:
        if setting.place == "greedy":
            rows.append(written(setting, 40, STORIES[:1] * 40))
        else:
            rows.append(written(setting, 4 if "nothing" in str(setting.place) else 38))
    sentence = compare_sampling.conclude(rows)
    assert sentence.startswith("Surest first, greedy (1 different of 40) collapses and more stories are accepted with")
    assert "typical 0.9 (95 %) than with nothing cut off (10 %); in random order, greedy" in sentence
    alike = [written(setting, 38) for setting in compare_sampling.COMPARISON.settings]
    assert "collapses" not in compare_sampling.conclude(alike)
    assert "the others do not differ beyond chance (95 % to 95 % accepted)" in compare_sampling.conclude(alike)


def test_temperatures_are_compared_at_their_ends():
    ranked = [STORIES[place] for place in story_language.log_prob(STORIES).argsort(descending=True)]
    rows = [
        written(setting, 40, ranked[:20] * 2)
        if setting.place == 0.3 and setting.series == "nucleus 0.9"
        else written(setting, 6 if setting.place == 1.5 and setting.series == "nothing cut off" else 40)
        for setting in compare_temperatures.COMPARISON.settings
    ]
    sentence = compare_temperatures.conclude(rows)
    assert "go from 100 % to 15 % with nothing cut off and from 100 % to 100 % with nucleus 0.9 (no diff" in sentence
    assert sentence.endswith("; beyond chance, the stories of 0.3 with nucleus 0.9 are too probable.")
    rows = [written(setting, 40) for setting in compare_temperatures.COMPARISON.settings]
    assert "at no temperature" in compare_temperatures.conclude(rows)


@pytest.mark.parametrize("module", ALL, ids=lambda module: module.__name__)
def test_committed_figures_are_of_these_settings_and_lead_to_the_committed_conclusion(module):
    comparison = module.COMPARISON
    path = Path(__file__).parents[1] / "results" / f"{comparison.name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["series"], row["place"], row["settings"]) for row in result["rows"]] == [
        (setting.series, setting.place, setting.settings) for setting in comparison.settings
    ]
    names = {field.name for field in dataclasses.fields(StoryFigures)}
    rows = [
        Written(
            setting,
            StoryFigures(**{name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names}),
            row["samples"],
            row["forwards_per_story"],
        )
        for setting, row in zip(comparison.settings, result["rows"], strict=True)
    ]
    assert (result["question"], result["conclusion"]) == (comparison.question, comparison.conclude(rows))
    assert result["cpu_seconds"] < 180
    assert path.with_suffix(".png").stat().st_size < 200_000


def test_a_small_comparison_writes_table_figures_and_picture(tmp_path, capsys):
    settings = [Setting(name, "two steps", {"steps": 2, "schedule": name}) for name in ("linear", "cosine")]
    comparison = Comparison("small", "What?", "Note.", "schedule", "steps", settings, lambda found: str(len(found)))
    assert run(comparison, ["--num-samples", "3", "--output-dir", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "linear               two steps  2.0       0 %" in printed and "the language itself" in printed
    result = json.loads((tmp_path / "new" / "small.json").read_text())
    assert result["conclusion"] == "2" and len(result["rows"]) == 2
    assert result["rows"][0]["valid_share"] == 0 and len(result["rows"][0]["samples"]) == 2
    assert (tmp_path / "new" / "small.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", ALL, ids=lambda module: module.__name__)
def test_wrong_use_is_told_in_a_sentence(module, tmp_path, monkeypatch, capsys):
    assert run(module.COMPARISON, ["--num-samples", "1"]) == 2
    assert "`--num-samples` must be a whole number of at least 2, not 1." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(module.COMPARISON, ["--output-dir", str(tmp_path)]) == 2
    assert "pip install 'diffusion-mlm[viz]'" in capsys.readouterr().err


def test_a_model_of_other_text_is_refused(checkpoint, story_tokenizer, tmp_path, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["dragonfly"])
    tokenizer.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((Path(checkpoint) / name).read_bytes())
    assert run(compare_schedules.COMPARISON, ["--checkpoint", str(tmp_path), "--picture", "false"]) == 2
    assert "tokenizer is not that of the built-in stories" in capsys.readouterr().err


def test_lists_are_read_aloud():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
