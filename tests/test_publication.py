"""What of a directory goes to the Hub, and what never does."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from diffusion_mlm import DiffusionGenerationConfig
from diffusion_mlm.publication import is_published, model_files, require_nothing_private, training_state_files
from diffusion_mlm.remote_code import CODE_FILE, CUSTOM_PIPELINES, remote_source


@pytest.fixture
def directory(checkpoint, tmp_path):
    """A checkpoint among things that are nobody's business."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(f"{checkpoint}/{name}", tmp_path / name)
    facts = {"name_or_path": str(tmp_path), "mask_token": "<mask>", "is_local": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    for name in ("training_args.bin", "optimizer.pt", ".env", ".tmpXYZ", "model.safetensors.tmp", "pytorch_model.bin"):
        (tmp_path / name).write_text("secret")
    (tmp_path / "checkpoint-1").mkdir()
    return tmp_path


def test_a_publication_is_the_model_its_settings_and_its_code(directory):
    files = model_files(directory)
    own = {"config.json", "generation_config.json", "model.safetensors", CODE_FILE}
    assert files.keys() == {*own, "tokenizer.json", "tokenizer_config.json"}
    assert json.loads(files["tokenizer_config.json"]) == {"mask_token": "<mask>"}
    assert json.loads(files["config.json"])["custom_pipelines"] == CUSTOM_PIPELINES
    assert files[CODE_FILE].decode() == remote_source()
    settings = json.loads(files["generation_config.json"])
    assert DiffusionGenerationConfig(**settings).to_dict() == DiffusionGenerationConfig().to_dict()


def test_a_directory_without_weights_or_tokenizer_is_refused(directory):
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        model_files(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        model_files(directory)
    (directory / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}'
    )
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        model_files(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no config.json"):
        model_files(directory)


def test_the_state_of_training_goes_without_arguments_and_paths(directory):
    (directory / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": f"{directory}/checkpoint-1", "global_step": 3})
    )
    files = training_state_files(directory, "last-checkpoint")
    names = {name.removeprefix("last-checkpoint/") for name in files}
    assert {"optimizer.pt", "trainer_state.json", "model.safetensors"} <= names
    assert not names & {"training_args.bin", ".env", ".tmpXYZ", "pytorch_model.bin"}
    state = json.loads(files["last-checkpoint/trainer_state.json"])
    assert state == {"best_model_checkpoint": "checkpoint-1", "global_step": 3}


@pytest.mark.parametrize(
    "name, content, is_private",
    [
        ("config.json", b"/home/somebody", True),
        ("config.json", b"/home/somebody/model", True),
        ("config.json", b"/home/somebodyelse", False),
        ("tokenizer.json", b"/home/somebody", False),
        ("tokenizer.json", b"hf_" + b"a" * 34, True),
        ("README.md", b"x hf_" + b"A" * 34 + b"\n", True),
        ("README.md", b"hf_hub_download", False),
    ],
)
def test_tokens_and_paths_are_found(name, content, is_private):
    if is_private:
        with pytest.raises(ValueError, match=name):
            require_nothing_private({name: content}, "/home/somebody")
    else:
        require_nothing_private({name: content}, "/home/somebody")


def test_the_header_of_weights_is_searched(tmp_path, tiny_roberta):
    path = tmp_path / "model.safetensors"
    save_file({"x": tiny_roberta.lm_head.bias.data}, path, metadata={"made_in": "/home/somebody"})
    with pytest.raises(ValueError, match="model.safetensors holds"):
        require_nothing_private({"model.safetensors": path}, "/home/somebody")


@pytest.mark.parametrize(
    "name", ["model.safetensors.tmp", "sub/model.safetensors", ".gitattributes", "training_args.bin"]
)
def test_what_is_not_ours_is_never_taken_away(name):
    assert not is_published(name)
