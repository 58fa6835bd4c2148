"""The comparison of a diffusion model with its autoregressive peer, from text to table, at toy size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_mlm import story_language
from diffusion_mlm.callbacks import LogLineCallback
from experiments.compare_autoregressive import CompareArguments, main, read_texts
from experiments.peer_measures import prefixes_of

TINY = {"steps": 4, "batch_size": 4, "max_length": 32, "draws": 2, "num_samples": 2, "prefix_tokens": 5, "orders": 1}
RECIPES = sorted((Path(__file__).parents[1] / "experiments/recipes").glob("compare_*.yaml"))


def options(**named: Any) -> list[str]:
    return [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(story_language.sample(12, seed=3)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def first_run(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("compared")
    asked = options(train_file=text_file, output_dir=directory, output=directory / "found.json", **TINY)
    assert main([*asked, *options(chain="true", few_characters=60, denoising_steps=3)]) == 0
    return directory, json.loads((directory / "found.json").read_text())


def test_both_models_are_equal_in_size_and_have_seen_as_many_tokens(first_run: Any) -> None:
    _, found = first_run
    assert found["parameters"]["diffusion"] == found["parameters"]["autoregressive"]
    for name in ("diffusion", "autoregressive"):
        assert (found["training"][name]["steps"], found["training"][name]["tokens"]) == (4, 4 * 4 * 32)


def test_both_are_measured_on_the_same_bytes_and_tokens(first_run: Any, text_file: Path) -> None:
    _, found = first_run
    whole = found["likelihood"]["held_out_text"]
    length = len(text_file.read_bytes())
    assert whole["num_bytes"] == length - round(0.9 * length)
    assert whole["diffusion"]["num_tokens"] == whole["autoregressive"]["num_tokens"]
    bits = {name: whole[name]["bits_per_byte"] for name in ("diffusion", "autoregressive")}
    assert whole["ratio"]["value"] == pytest.approx(bits["diffusion"] / bits["autoregressive"])
    assert whole["ratio"]["interval"][0] < whole["ratio"]["value"] < whole["ratio"]["interval"][1]
    few = found["likelihood"]["few_characters"]
    assert few["num_bytes"] == 60 and {"chain", "importance"} < set(few)


def test_texts_stand_side_by_side_with_their_forwards_and_time(first_run: Any) -> None:
    directory, found = first_run
    samples = found["samples"]
    assert samples["new_tokens"] == 32 - 2 - 5
    methods = {"autoregressive": 25, "diffusion, 25 steps": 25, "diffusion, 3 steps": 3}
    assert list(samples["methods"]) == ["held-out text", *methods]
    for name, forwards in methods.items():
        method = samples["methods"][name]
        assert method["forwards_per_text"] == forwards and method["seconds_per_text"] > 0
        assert [len(text) for text in method["texts"]] == [25, 25]  # characters are the tokens
    table = (directory / "found.md").read_text()
    assert "bits per byte, held out" in table and f"{found['parameters']['diffusion']:,}" in table


def test_what_is_there_is_taken_and_nothing_measured_twice(first_run: Any, text_file: Path) -> None:
    directory, found = first_run
    paths = [directory / name / "model.safetensors" for name in ("mlm", "diffusion", "autoregressive")]
    paths.append(directory / "likelihood.json")
    before = [path.stat().st_mtime_ns for path in paths]
    asked = options(train_file=text_file, output_dir=directory, output=directory / "again.json", **TINY)
    assert main([*asked, *options(chain="true", few_characters=60, denoising_steps=3)]) == 0
    assert [path.stat().st_mtime_ns for path in paths] == before
    again = json.loads((directory / "again.json").read_text())
    assert again["likelihood"] == found["likelihood"]
    for name, method in again["samples"]["methods"].items():
        assert method["texts"] == found["samples"]["methods"][name]["texts"]


def test_given_models_need_no_training_text(first_run: Any, text_file: Path, tmp_path: Path) -> None:
    directory, _ = first_run
    given = {name: directory / name for name in ("diffusion", "autoregressive")}
    asked = options(eval_file=text_file, output_dir=tmp_path, output=tmp_path / "found.json", **given, **TINY)
    assert main([*asked, *options(orders=0, denoising_steps=3)]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["training"] == {"diffusion": None, "autoregressive": None}
    assert found["likelihood"]["held_out_text"]["num_bytes"] == len(text_file.read_bytes())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_part_alone_trains_one_model(text_file: Path, tmp_path: Path) -> None:
    asked = options(train_file=text_file, output_dir=tmp_path, **TINY)
    assert main([*asked, "--parts", "autoregressive", "--optim", "adamw_torch_fused"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["autoregressive"]


@pytest.mark.parametrize(("part", "killed_at"), [("autoregressive", 3), ("diffusion", 5)])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    part: str, killed_at: int, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        *options(train_file=text_file, **{**TINY, "steps": 6, "batch_size": 2, "mlm_share": 0.5}),
        "--parts",
        part,
    ]
    assert main([*asked, "--output-dir", str(tmp_path / "whole")]) == 0
    done = 0

    def count(*_args: Any, **_kwargs: Any) -> None:
        nonlocal done
        done += 1
        if done > killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LogLineCallback, "on_step_begin", count)
        with pytest.raises(KeyboardInterrupt):
            main([*asked, "--output-dir", str(tmp_path / "killed")])
    assert not (tmp_path / "killed" / part).exists() and (tmp_path / "killed" / f"{part}-checkpoints").is_dir()
    assert main([*asked, "--output-dir", str(tmp_path / "killed")]) == 0
    whole, resumed = (load_file(tmp_path / name / part / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert json.loads((tmp_path / "killed" / part / "training.json").read_text())["resumed"]


def test_the_held_out_text_is_the_last_tenth_of_the_characters(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("é\r\n3456789\n".encode()[:-1])
    train, held_out = read_texts(CompareArguments(train_file=[str(tmp_path / "text")]))
    assert (train, held_out) == ("é\r\n345678", "9")


def test_prefixes_begin_with_a_word_and_go_on_as_the_text_does(story_tokenizer: Any) -> None:
    text = " ".join(story_language.sample(5, seed=1))
    for prefix, after in prefixes_of(text, story_tokenizer, 3, 4, 6):
        assert f" {prefix}{after}" in text and not prefix[0].isspace()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--train-file` is missing"):
        main(["--config", str(recipe)])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 0}, "`--steps` must be at least 1"),
        ({"mlm_share": 1.5}, r"`--mlm-share` must lie in \(0, 1\)"),
        ({"eval_file": "nowhere.txt"}, "The file 'nowhere.txt'"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(asked: Any, message: str, text_file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main(options(train_file=text_file, **asked))
