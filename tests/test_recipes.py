"""The files under `experiments/`: recipes pass the real parser, launch files that of accelerate."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.cli.train_arguments import DataArguments, ModelArguments, TrainCommandArguments
from diffusion_mlm.hub_access import looks_like_path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [path for path in sorted(EXPERIMENTS.glob("recipes/*.yaml")) if not path.stem.startswith("compare_")]


def arguments_of(recipe, directory, monkeypatch):
    """The three groups of arguments, read where the models that the recipe starts from would be."""
    model = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("model_name", "")
    monkeypatch.chdir(directory)
    if model and (looks_like_path(model) or model.count("/") > 1):
        Path(model).mkdir(parents=True)
    return parse([ModelArguments, DataArguments, TrainCommandArguments], ["--config", str(recipe)], "train")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_as_it_is_written(recipe, tmp_path, monkeypatch):
    groups = arguments_of(recipe, tmp_path, monkeypatch)
    for name, written in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        (group,) = [group for group in groups if hasattr(group, name)]
        value = getattr(group, name)
        if isinstance(written, dict):
            assert {key: str(value[key]).lower() for key in written} == {k: str(v).lower() for k, v in written.items()}
        else:
            assert value == (type(value)(written) if isinstance(value, float | str) else written), name


def test_one_gpu_and_eight_train_in_the_same_global_batches(tmp_path, monkeypatch):
    one, eight = (EXPERIMENTS / f"recipes/roberta_wikitext{name}.yaml" for name in ("", "_8gpus"))
    *_, one = arguments_of(one, tmp_path, monkeypatch)
    *_, eight = arguments_of(eight, tmp_path, monkeypatch)
    rows = [args.per_device_train_batch_size * args.gradient_accumulation_steps for args in (one, eight)]
    assert rows[0] == 8 * rows[1]
    shared = ("learning_rate", "num_train_epochs", "warmup_steps", "schedule", "objective", "seed", "no_prefix_share")
    assert all(getattr(one, name) == getattr(eight, name) for name in shared)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("launch/*.yaml")), ids=lambda path: path.stem)
def test_a_launch_file_is_one_of_accelerate(path):
    config = load_config_from_file(str(path))  # refuses unknown names
    assert config.num_processes == {"ddp_8gpus": 8, "ddp_8nodes": 64, "fsdp2_8gpus": 8}[path.stem]
    if path.stem.startswith("fsdp2"):
        assert config.fsdp_config["fsdp_version"] == 2
