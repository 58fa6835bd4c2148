"""`doctor`: each fault is named with its remedy, and a sound model passes."""

import json
from collections import namedtuple

import pytest
import torch
from transformers import RobertaConfig

from diffusion_mlm import story_language
from diffusion_mlm.cli import main
from diffusion_mlm.doctor import ModelExamination, examine_machine, examine_texts
from diffusion_mlm.modeling import build_model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def failures(findings):
    return {finding.check: finding.says for finding in findings if finding.status == "fail"}


def test_a_sound_generator_passes(checkpoint):
    examination = ModelExamination(checkpoint)
    found = {finding.check: finding for finding in examination.findings()}
    assert not failures(found.values())
    checks = {"tokenizer", "weights", "special tokens", "vocabulary", "length", "tied weights", "dtype", "attention"}
    assert checks | {"masked rows only", "generation"} == found.keys()
    assert found["length"].says.startswith("rows of up to 32 tokens") and "id 4" in found["tokenizer"].says
    assert found["generation"].status == "note" and "train" in found["generation"].remedy
    assert examination.model is not None and examination.tokenizer is not None


def test_a_directory_that_is_not_there_is_all_that_is_said():
    assert failures(ModelExamination("./missing").findings()) == {
        "repository": "`--checkpoint` is './missing', and there is no such directory."
    }


@pytest.mark.parametrize(
    "changes, check, says",
    [
        ({"vocab_size": 40}, "vocabulary", "the tokenizer has 364 tokens, the model knows 40"),
        ({"pad_token_id": 3}, "special tokens", "padding is id 1 in the tokenizer, but the model counts positions"),
    ],
)
def test_a_model_that_does_not_fit_its_tokenizer_is_found(
    tmp_path, shared_roberta, story_tokenizer, changes, check, says
):
    config = RobertaConfig(**{**shared_roberta.config.to_dict(), **changes})
    build_model(config).save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    found = failures(ModelExamination(str(tmp_path)).findings())
    assert says in found[check] and found.keys() == {check}


def test_damaged_weights_and_settings_are_found(tmp_path, tiny_roberta, story_tokenizer):
    tiny_roberta.save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"schedule": "linear", "steps": 0}')
    assert "`steps` must be" in failures(ModelExamination(str(tmp_path)).findings())["generation"]
    with torch.no_grad():
        tiny_roberta.lm_head.bias[0] = float("nan")
    tiny_roberta.save_pretrained(tmp_path)
    assert "not finite" in failures(ModelExamination(str(tmp_path)).findings())["weights"]


def test_texts_are_measured_against_the_rows_of_the_model(tmp_path, story_tokenizer):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(story_language.sample(3, seed=0)) + "\nwords unheard of hereabouts\n")
    found = {finding.check: finding for finding in examine_texts(story_tokenizer, 32, files=[str(text)])}
    assert found["data"].says.startswith("4 texts") and "2 blank" in found["data"].says
    assert "75% do not fit" in found["text lengths"].says and found["text lengths"].status == "note"
    assert found["unknown tokens"].status == "note"


@pytest.mark.parametrize("content, says", [("", "0 usable"), ("\xff", "UTF-8")])
def test_texts_that_cannot_be_read_are_found(tmp_path, content, says):
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode("latin-1"))
    assert says in failures(examine_texts(files=[str(path)]))["data"]


def test_a_disk_that_is_too_small_and_a_version_that_is_too_old_are_found(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("diffusion_mlm.doctor.shutil.disk_usage", lambda place: usage(0, 0, 10**9))
    monkeypatch.setattr("diffusion_mlm.doctor.metadata.requires", lambda name: ["torch>=99", "nothing-of-the-kind"])
    found = failures(examine_machine("no/such/place", parameters=125_000_000))
    assert "0.9 GiB free, and 3 checkpoints take 4.6 GiB" in found["disk"]
    assert "not >=99" in found["versions"] and "nothing-of-the-kind is missing" in found["versions"]


def test_the_command_prints_findings_and_fails_where_something_would(checkpoint, tmp_path, capsys):
    assert main(["doctor", "--checkpoint", checkpoint, "--output-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "ok    vocabulary         364 tokens" in shown and "switched off by HF_HUB_OFFLINE" in shown
    assert main(["doctor", "--model-name", "./missing", "--output-format", "json"]) == 1
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [finding["check"] for finding in findings if finding["status"] == "fail"] == ["repository"]
    assert main(["doctor", "--model-name", "a", "--checkpoint", "b"]) == 2
