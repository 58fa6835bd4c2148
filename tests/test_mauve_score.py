"""MAUVE, which needs its own package: that it is asked for by name, and what it gives where it is installed."""

import sys

import pytest
import torch

from diffusion_mlm import Judge, sample_quality, story_language
from diffusion_mlm.evaluation.mauve_score import mauve_score


def test_without_its_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)  # what Python does where there is none
    with pytest.raises(ImportError, match=r"pip install 'diffusion-mlm\[mauve\]'"):
        mauve_score(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ImportError, match=r"diffusion-mlm\[mauve\]"):  # before the judge is asked anything
        sample_quality(["a"], reference_texts=["b"], judge="/nowhere", mauve=True)


def test_features_of_one_distribution_are_near_and_of_another_far():
    pytest.importorskip("mauve")
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 200, 4, generator=draw)
    near, far = mauve_score(first, second), mauve_score(first + 9, second)
    assert near > 0.8 > 0.05 > far > 0
    assert mauve_score(first, second) == near
    assert mauve_score(first, first) == pytest.approx(1)


def test_one_text_has_no_distribution():
    pytest.importorskip("mauve")
    with pytest.raises(ValueError, match="at least two texts on either side, not 1 and 4"):
        mauve_score(torch.zeros(1, 2), torch.zeros(4, 2))


def test_real_text_has_a_figure_of_its_own_where_there_are_twice_as_many(shared_llama, story_tokenizer):
    pytest.importorskip("mauve")
    real, samples = story_language.sample(80, seed=0), ["Once upon a time, Mia lived near the lake."] * 40
    asked = {"judge": Judge(shared_llama, story_tokenizer), "mauve": True}
    report = sample_quality(samples, reference_texts=real, **asked)
    assert report.generated.mauve < 0.2 < 0.7 < report.real.mauve
    assert any("MAUVE of 40 texts says little" in warning for warning in report.warnings)
    fewer = sample_quality(samples, reference_texts=real[:79], **asked)
    assert fewer.generated.mauve == report.generated.mauve and fewer.real.mauve is None
