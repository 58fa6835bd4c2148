"""`diffusion-mlm lm-eval`, as far as it goes without lm-evaluation-harness; with it, see `test_lm_eval_model`."""

import sys

import pytest

from diffusion_mlm.cli import main
from diffusion_mlm.cli.harness import harness_arguments


def test_without_the_harness_one_sentence_names_the_extra(monkeypatch, capsys):
    for name in {"lm_eval", *(name for name in sys.modules if name.startswith("lm_eval"))}:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main(["lm-eval", "--tasks", "hellaswag"]) == 2
    out, err = capsys.readouterr()
    assert not out and "pip install 'diffusion-mlm[lm-eval]'" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--tasks", "a"], ["run", "--model", "diffusion_mlm", "--batch_size", "auto", "--tasks", "a"]),
        (["run", "--tasks", "a"], ["run", "--model", "diffusion_mlm", "--batch_size", "auto", "--tasks", "a"]),
        (["-M", "hf", "-b", "4"], ["run", "-M", "hf", "-b", "4"]),
        (["--model=hf", "--batch_size=4"], ["run", "--model=hf", "--batch_size=4"]),
        (["--config", "a.yaml"], ["run", "--model", "diffusion_mlm", "--config", "a.yaml"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "a"], ["validate", "--tasks", "a"]),
    ],
)
def test_the_harness_gets_its_own_options_and_our_model(given, expected):
    assert harness_arguments(given) == expected
