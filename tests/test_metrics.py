"""The metrics as users of the evaluate library use them: loaded by path, combined, fed in batches."""

import sys
from pathlib import Path

import datasets
import evaluate
import pytest

from diffusion_mlm import Judge, sample_quality
from diffusion_mlm.evaluation import metrics
from diffusion_mlm.evaluation.diversity import diversity_figures
from diffusion_mlm.evaluation.metrics.copied_text import CopiedText
from diffusion_mlm.evaluation.metrics.judge_perplexity import JudgePerplexity
from diffusion_mlm.evaluation.metrics.sample_quality import SampleQuality
from diffusion_mlm.evaluation.metrics.text_diversity import TextDiversity

KINDS = {
    "text_diversity": TextDiversity,
    "judge_perplexity": JudgePerplexity,
    "copied_text": CopiedText,
    "sample_quality": SampleQuality,
}
PREDICTIONS = ["Once upon a time, Mia lived", "One day", "", "One day"]
REFERENCES = ["Once upon a time, a fox and a pony lived", "He was sad.", "The end.", "So be it."]
TRAINING = ["Once upon a time, a bear"]


@pytest.fixture(scope="module")
def judge(shared_llama, story_tokenizer):
    return Judge(shared_llama, story_tokenizer)


@pytest.fixture(scope="module")
def settings(judge):
    return {
        "text_diversity": {},
        "judge_perplexity": {"judge": judge},
        "copied_text": {"training_texts": TRAINING},
        "sample_quality": {"judge": judge, "training_texts": TRAINING},
    }


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """`evaluate.load` copies modules into a cache, from which Python then imports them: into one of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path_factory.mktemp("metrics")))
        patch.setattr(sys, "path", list(sys.path))
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


def test_each_file_holds_one_metric():
    files = Path(metrics.__file__).parent.glob("*.py")
    assert {path.stem for path in files} - {"__init__"} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_each_file_loads_by_its_path_and_gives_what_the_class_gives(name, settings):
    loaded = evaluate.load(str(Path(metrics.__file__).parent / f"{name}.py"), **settings[name])
    assert loaded.name == name
    assert type(loaded).__name__ == KINDS[name].__name__ and type(loaded) is not KINDS[name]
    given = {"predictions": PREDICTIONS, "references": REFERENCES}
    assert loaded.compute(**given) == KINDS[name](**settings[name]).compute(**given)


def test_metrics_give_what_the_functions_give(settings, judge):
    given = {"predictions": PREDICTIONS, "references": REFERENCES}
    assert TextDiversity().compute(**given) == diversity_figures([text.split() for text in PREDICTIONS])
    finished = [True, False, True, False]
    assert (
        JudgePerplexity(judge=judge).compute(predictions=PREDICTIONS, finished=finished)
        == judge.score(PREDICTIONS, finished).figures()
    )
    found = CopiedText(training_texts=TRAINING).compute(predictions=["Once upon a day", "x", "upon"])
    assert found == {"longest_copy_characters": 12, "copy_share": 0.0, "copied_characters": [12, 0, 4]}
    report = sample_quality(
        PREDICTIONS, reference_texts=REFERENCES, judge=judge, training_texts=TRAINING, finished=finished
    )
    found = SampleQuality(**settings["sample_quality"]).compute(finished=finished, **given)
    assert found["warnings"] == list(report.warnings)
    assert {name: found[name] for name in report.generated.to_dict()} == report.generated.to_dict()
    assert {name: found[f"real_{name}"] for name in report.real.to_dict()} == report.real.to_dict()


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_and_single_texts_add_up(settings, keep_in_memory):
    metric = SampleQuality(keep_in_memory=keep_in_memory, **settings["sample_quality"])
    metric.add_batch(predictions=PREDICTIONS[:3], references=REFERENCES[:3])
    metric.add(prediction=PREDICTIONS[3], reference=REFERENCES[3])
    in_batches = metric.compute()
    assert in_batches == metric.compute(predictions=PREDICTIONS, references=REFERENCES)


def test_metrics_combine(settings):
    combined = evaluate.combine(
        [TextDiversity(), JudgePerplexity(**settings["judge_perplexity"]), CopiedText(**settings["copied_text"])]
    )
    combined.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    found = combined.compute()
    assert found["num_duplicates"] == 1
    assert found["copied_characters"] == [len("Once upon a time, "), 2, 0, 2]
    assert found["judge_perplexity"] > 1


@pytest.mark.parametrize("name", KINDS)
def test_a_metric_says_what_it_takes_and_gives(name, settings):
    metric = KINDS[name](**settings[name])
    assert set(metric.features) == {"predictions", *(["references"] if name == "sample_quality" else [])}
    assert all(feature == datasets.Value("string") for feature in metric.features.values())
    for text in (metric.inputs_description, KINDS[name].__doc__, metric.compute.__doc__):
        assert "predictions (`list[str]`)" in text and "Returns:" in text
    if name != "sample_quality":  # whose figures are described in `TextFigures`
        for figure in metric.compute(predictions=["a b", "c"]):
            assert figure in metric.inputs_description or figure.endswith("standard_error")


@pytest.mark.parametrize("name", KINDS)
def test_unknown_settings_are_refused(name, settings):
    with pytest.raises(ValueError, match=f"`word_patern` is no option of {KINDS[name].__name__}"):
        KINDS[name](word_patern="x", **settings[name])


def test_words_may_be_characters():
    found = TextDiversity(word_pattern=r"\S").compute(predictions=["太晚 太"])
    assert (found["words_per_text"], found["distinct_1"]) == (3, 2 / 3)


def test_a_missing_text_is_refused():
    with pytest.raises(ValueError, match="`predictions` must hold strings; number 1 .* is None"):
        TextDiversity().compute(predictions=["a", None])
