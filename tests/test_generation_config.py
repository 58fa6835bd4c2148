"""`DiffusionGenerationConfig`: strict at construction, and an ordinary `generation_config.json` of transformers."""

import copy
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, RobertaForMaskedLM

from diffusion_mlm.generation import saved_generation_config
from diffusion_mlm.generation_config import DEFAULTS, PRESETS, DiffusionGenerationConfig
from diffusion_mlm.remasking import REMASKS
from diffusion_mlm.schedules import SCHEDULES
from diffusion_mlm.unmasking import ORDERS

OTHER_THAN_DEFAULT = {
    "schedule": "cosine",
    "sampling": "topk",
    "steps": 7,
    "order": "margin",
    "order_noise": 0.5,
    "min_gap": 2,
    "defer_end": False,
    "steps_per_token": 1.5,
    "block_length": 16,
    "temperature_end": 0.2,
    "typical_p": 0.3,
    "min_p": 0.2,
    "remask": "remdm_cap",
    "remask_eta": 0.3,
    "temperature": 0.7,
    "top_k": 12,
    "top_p": 0.5,
    "guidance_scale": 1.5,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "max_new_tokens": 33,
    "num_return_sequences": 3,
    "batch_size": 2,
}


def values_of(config: GenerationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in DEFAULTS}


valid_settings = st.fixed_dictionaries(
    {},
    optional={
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "sampling": st.sampled_from(["greedy", "topk", "nucleus", "min_p", "typical"]),
        "steps_per_token": st.floats(0.01, 100),
        "block_length": st.none() | st.integers(0, 100),
        "defer_end": st.booleans(),
        "temperature_end": st.none() | st.floats(0, 10),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "remask_eta": st.none() | st.floats(0, 0.1),
        "steps": st.none() | st.integers(1, 10**6),
        "order": st.sampled_from(ORDERS),
        "order_noise": st.floats(0, 1e6),
        "remask": st.sampled_from([rule for rule in REMASKS if rule != "low_confidence"]),
        "temperature": st.floats(0, 1e6),
        "top_k": st.integers(0, 10**6),
        "top_p": st.floats(0, 1, exclude_min=True),
        "guidance_scale": st.floats(0, 100),
        "repetition_penalty": st.floats(0.1, 10),
        "no_repeat_ngram_size": st.integers(0, 9),
        "max_new_tokens": st.none() | st.integers(1, 10**6),
        "num_return_sequences": st.integers(1, 1000),
        "batch_size": st.integers(1, 1000),
    },
)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(valid_settings)
def test_saved_settings_come_back(tmp_path_factory: pytest.TempPathFactory, given_settings: dict[str, Any]) -> None:
    directory = tmp_path_factory.mktemp("config")
    config = DiffusionGenerationConfig(**given_settings)
    assert values_of(config) == {**DEFAULTS, **given_settings}
    config.save_pretrained(directory)
    assert values_of(DiffusionGenerationConfig.from_pretrained(directory)) == values_of(config)


@pytest.mark.parametrize("given_settings", [{"reveal": "ancestral", "order": "random"}, {"final_pass": True}])
def test_how_ends_and_steps_are_reached_comes_back_too(given_settings: dict[str, Any], tmp_path: Path) -> None:
    config = DiffusionGenerationConfig(**given_settings)
    config.save_pretrained(tmp_path)
    assert values_of(DiffusionGenerationConfig.from_pretrained(tmp_path)) == {**DEFAULTS, **given_settings}
    assert config.to_block_length() == (None if "reveal" in given_settings else 16)


@pytest.mark.parametrize("other", [{"remask": "renoise"}, {"adaptive": "factor"}, {"block_length": 4}])
def test_chance_and_a_plan_do_not_both_decide_what_a_step_reveals(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`reveal='ancestral'`.*`{next(iter(other))}`"):
        DiffusionGenerationConfig(reveal="ancestral", **other)


def test_plain_generation_config_reads_the_file(tmp_path: Path) -> None:
    DiffusionGenerationConfig(**OTHER_THAN_DEFAULT).save_pretrained(tmp_path)
    plain = GenerationConfig.from_pretrained(tmp_path)
    assert type(plain) is GenerationConfig
    assert {name: getattr(plain, name) for name in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    assert plain.do_sample is True


def test_a_file_saved_twice_is_the_same_and_saves_again_after_loading(tmp_path: Path) -> None:
    DiffusionGenerationConfig(**OTHER_THAN_DEFAULT).save_pretrained(tmp_path / "first")
    DiffusionGenerationConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "generation_config.json").read_text() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    "unknown, near", [("schedul", "schedule"), ("temprature", "temperature"), ("max_tokens", "max_new_tokens")]
)
def test_unknown_name_is_refused_with_a_near_one(unknown: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"`{unknown}`.*`{near}`"):
        DiffusionGenerationConfig(**{unknown: 1})


@pytest.mark.parametrize("name", ["xyzzy", "_xyzzy", "num_beams", "length_penalty"])
def test_name_without_meaning_here_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        DiffusionGenerationConfig(**{name: 2})


def test_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    DiffusionGenerationConfig().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stepps": 3}))
    with pytest.raises(ValueError, match="`stepps`.*`steps`"):
        DiffusionGenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, value",
    [
        ("schedule", "cosin"),
        ("schedule", None),
        ("schedule", ["cosine"]),
        ("sampling", "beam"),
        ("sampling", None),
        ("order", "backwards"),
        ("remask", "all"),
        ("order_from", "prefix"),
        ("remask_eta", 2.0),
        ("remask_t_on", 0.01),
        ("adaptive", "sometimes"),
        ("adaptive_bound", 0.5),
        ("max_reveal", 4),
        ("defer_end", "no"),
        ("reveal", "some"),
        ("final_pass", 1),
        ("preset", "best"),
        ("min_p", 1.5),
        ("typical_p", 0.0),
        ("temperature_end", -1.0),
        *[("steps_per_token", value) for value in (0, -1.0, math.inf, "2", None)],
        *[("block_length", value) for value in (-1, 2.5, "all", True, False)],
        *[("min_gap", value) for value in (-1, 1.5, None)],
        *[("steps", value) for value in (0, -1, 2.0, "3", True, math.nan)],
        *[("max_new_tokens", value) for value in (0, -5, 1.5, "8")],
        *[("num_return_sequences", value) for value in (0, None, 1.0)],
        *[("batch_size", value) for value in (0, None, "all")],
        *[("stride", value) for value in (0, 1.5, "half")],
        *[("temperature", value) for value in (-0.1, math.nan, math.inf, "hot", None)],
        *[("top_p", value) for value in (0, 0.0, -0.5, 1.5, math.nan, None)],
        *[("top_k", value) for value in (-1, 2.5, None, True)],
        *[("order_noise", value) for value in (-1, math.nan, math.inf, "much", None)],
    ],
)
def test_impossible_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name) as raised:
        DiffusionGenerationConfig(**{name: value})
    assert "\n" not in str(raised.value)


def test_ranking_by_the_drawn_token_needs_the_order_confidence() -> None:
    with pytest.raises(ValueError, match="order_from.*confidence"):
        DiffusionGenerationConfig(order_from="sample", order="entropy")
    assert DiffusionGenerationConfig(order_from="sample", order="confidence").order_from == "sample"


@pytest.mark.parametrize("sampling, expected", [("greedy", False), ("topk", True), ("nucleus", True)])
def test_do_sample_follows_sampling(sampling: str, expected: bool) -> None:
    assert DiffusionGenerationConfig(sampling=sampling).do_sample is expected
    assert DiffusionGenerationConfig(sampling=sampling, do_sample=expected).do_sample is expected
    with pytest.raises(ValueError, match="do_sample.*sampling"):
        DiffusionGenerationConfig(sampling=sampling, do_sample=not expected)


def test_do_sample_follows_sampling_that_is_set_later(tmp_path: Path) -> None:
    config = DiffusionGenerationConfig()
    config.sampling = "greedy"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()).get("do_sample") is not True
    assert DiffusionGenerationConfig.from_pretrained(tmp_path).sampling == "greedy"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_and_pickles_are_equal_and_independent(clone: Any) -> None:
    config = DiffusionGenerationConfig(**OTHER_THAN_DEFAULT)
    twin = clone(config)
    assert type(twin) is DiffusionGenerationConfig
    assert twin == config
    twin.steps = 99
    assert twin != config
    assert config.steps == OTHER_THAN_DEFAULT["steps"]


def test_text_forms_show_our_settings() -> None:
    config = DiffusionGenerationConfig(schedule="exponential", steps=5)
    assert '"schedule": "exponential"' in repr(config)
    assert json.loads(config.to_json_string())["steps"] == 5
    assert config.to_dict()["remask"] == "none"


def test_updated_copies_and_checks() -> None:
    config = DiffusionGenerationConfig(steps=5, schedule="cosine")
    changed = config.updated(steps=9, sampling="greedy")
    assert (changed.steps, changed.schedule, changed.sampling) == (9, "cosine", "greedy")
    assert (config.steps, config.sampling) == (5, "nucleus")
    with pytest.raises(ValueError, match="`steps`"):
        config.updated(steps=0)
    with pytest.raises(ValueError, match="`stps`.*`steps`"):
        config.updated(stps=3)


def test_a_value_spoilt_after_construction_is_not_saved(tmp_path: Path) -> None:
    config = DiffusionGenerationConfig()
    config.top_p = 0.0
    with pytest.raises(ValueError, match="top_p"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()


def test_a_roberta_that_carries_the_config_still_saves_and_loads(
    tiny_roberta: RobertaForMaskedLM, tmp_path: Path
) -> None:
    tiny_roberta.generation_config = DiffusionGenerationConfig(sampling="greedy", steps=4)
    tiny_roberta.save_pretrained(tmp_path)
    again = RobertaForMaskedLM.from_pretrained(tmp_path)
    assert again.num_parameters() == tiny_roberta.num_parameters()
    assert copy.deepcopy(tiny_roberta).generation_config == tiny_roberta.generation_config


# Presets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_settings_and_others_go_over_it(preset: str) -> None:
    config = DiffusionGenerationConfig(preset=preset, top_k=7, batch_size=3)
    assert values_of(config) == {**DEFAULTS, **PRESETS[preset], "top_k": 7, "batch_size": 3}


def test_updating_by_a_preset_keeps_length_number_and_batch_size_only() -> None:
    config = DiffusionGenerationConfig(order="random", max_new_tokens=9, num_return_sequences=2, batch_size=5)
    greedy = config.updated(preset="greedy", steps=4)
    assert values_of(greedy) == {
        **DEFAULTS, **PRESETS["greedy"], "steps": 4, "max_new_tokens": 9, "num_return_sequences": 2, "batch_size": 5
    }  # fmt: skip


def test_a_file_holds_what_a_preset_stands_for(tmp_path: Path) -> None:
    DiffusionGenerationConfig(preset="fast").save_pretrained(tmp_path)
    assert "preset" not in json.loads((tmp_path / "generation_config.json").read_text())
    assert DiffusionGenerationConfig.from_pretrained(tmp_path).adaptive == "independent"


@pytest.mark.parametrize(
    "others", [{"remask": "renoise"}, {"steps": 9, "block_length": 4}, {"remask": "remdm_cap", "remask_eta": 0.1}]
)
def test_adaptive_counts_go_with_nothing_else_that_decides_counts(others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`adaptive` decides"):
        DiffusionGenerationConfig(adaptive="threshold", **others)


def test_independent_positions_have_a_distance_of_their_own() -> None:
    with pytest.raises(ValueError, match="`adaptive='independent'` has a distance of its own: leave out `min_gap`"):
        DiffusionGenerationConfig(preset="fast", min_gap=2)


def test_the_bound_of_an_adaptive_rule_has_a_default_of_its_own() -> None:
    bounds = {rule: DiffusionGenerationConfig(adaptive=rule).to_adaptive().bound for rule in ("threshold", "factor")}  # type: ignore[union-attr]
    assert bounds == {"threshold": 0.9, "factor": 1.0}
    assert DiffusionGenerationConfig(preset="fast", adaptive="threshold").to_adaptive().bound == 0.9  # type: ignore[union-attr]
    assert DiffusionGenerationConfig(preset="fast", adaptive=None).to_adaptive() is None
    assert DiffusionGenerationConfig(adaptive="threshold", adaptive_bound=0.5, max_reveal=3).to_adaptive().most == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 16),
        ({"order": "confidence", "sampling": "greedy"}, 16),
        ({"preset": "quality"}, 16),
        ({"block_length": 0}, None),
        ({"block_length": 5, "order": "random"}, 5),
        *[({name: value}, None) for name, value in {"order": "random", "steps": 20, "adaptive": "threshold"}.items()],
        *[({"preset": preset}, None) for preset in ("faithful", "guide")],
        ({"preset": "fast"}, 32),
        ({"preset": "fast", "steps": 20}, None),
        ({"preset": "fast", "order": "random"}, None),
        ({"preset": "fast", "block_length": 0}, None),
    ],
)
def test_tokens_come_in_blocks_by_default_only_where_few_come_at_once(settings, expected):
    assert DiffusionGenerationConfig(**settings).to_block_length() == expected


def test_a_saved_greedy_config_is_read_without_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    logger = logging.getLogger("transformers.generation.configuration_utils")
    monkeypatch.setattr(logger, "warning_once", lambda message, *_: warned.append(message), raising=False)
    DiffusionGenerationConfig("greedy").save_pretrained(tmp_path)
    GenerationConfig.from_pretrained(tmp_path)
    assert warned, "transformers does not warn any more: the remedy may go."
    warned.clear()
    assert saved_generation_config(str(tmp_path)).sampling == "greedy" and not warned


@pytest.mark.parametrize("cause, warns", [(EntryNotFoundError("none"), 0), (LocalEntryNotFoundError("offline"), 1)])
def test_settings_that_cannot_be_read_are_not_the_defaults_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cause: Exception, warns: int
) -> None:
    def no_file(*args: Any, **kwargs: Any) -> None:
        raise OSError("cannot be loaded") from cause

    monkeypatch.setattr(GenerationConfig, "from_pretrained", no_file)
    with caplog.at_level(logging.WARNING, "diffusion_mlm"):
        assert values_of(saved_generation_config("me/writer")) == DEFAULTS
    assert sum("cannot be read: the default settings hold" in text for text in caplog.messages) == warns
