"""The report of several checkpoints: figures that do not depend on one another, samples beside real text, JSON."""

import copy
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig

from diffusion_mlm import DiffusionGenerationConfig, Judge, ReportOptions, evaluation_report, story_language
from diffusion_mlm.causal_peer import build_causal_peer, is_causal
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.errors import OutputDirectoryError
from diffusion_mlm.evaluation.causal_likelihood import evaluate_causal_texts
from diffusion_mlm.evaluation.report import EvaluationReport
from diffusion_mlm.evaluation.report_directory import ReportDirectory
from diffusion_mlm.evaluation.report_likelihood import paired_difference
from diffusion_mlm.evaluation.report_markdown import report_markdown
from diffusion_mlm.evaluation.report_samples import evenly_cut, grammar_figures, shuffle_words
from diffusion_mlm.evaluation.text_likelihood import evaluate_texts
from diffusion_mlm.evaluation.written_texts import write_causally
from diffusion_mlm.generation import load_generator
from diffusion_mlm.modeling import build_model
from diffusion_mlm.tokenization import train_characters

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(4, seed=2)
OPTIONS = ReportOptions(draws=4, steps=[2, 5], max_length=16, num_samples=3, seed=1)
SHARED = Path(__file__).parents[2] / "shared"
REAL, JUDGE = SHARED / "data" / "tinystories" / "tiny_stories.txt", SHARED / "models" / "stories260k"


@pytest.fixture(scope="module")
def models(shared_roberta):
    """Two masked models and a causal one that read 32 story tokens, with random weights."""
    other, causal = build_model(shared_roberta.config, seed=7).eval(), build_causal_peer(shared_roberta.config).eval()
    for masked in (shared_roberta, other):
        masked.generation_config = DiffusionGenerationConfig(max_new_tokens=8, batch_size=2)
    return {"one": (shared_roberta, TOKENIZER), "other": (other, TOKENIZER), "causal": (causal, TOKENIZER)}


@pytest.fixture(scope="module")
def report(models):
    return evaluation_report(models, STORIES, OPTIONS)


@pytest.fixture
def causal_report(report):
    """The same of the causal model alone, which has one plot."""
    return replace(report, checkpoints=report.checkpoints[2:])


def without_times(figures):
    """The figures of a checkpoint but those that depend on the clock or on which checkpoint is the first."""
    found = asdict(figures)
    del found["seconds"], found["difference"]
    for place in [found["samples"], *found["samples"]["by_steps"]]:
        del place["seconds_per_text"]
    return found


def test_the_order_of_checkpoints_changes_no_figure(models, report):
    turned = evaluation_report(dict(reversed(models.items())), STORIES, OPTIONS)
    for one, other in zip(report.checkpoints, reversed(turned.checkpoints), strict=True):
        assert without_times(one) == without_times(other)
    assert report.checkpoints[2].difference["nats_per_token"] == -turned.checkpoints[2].difference["nats_per_token"]


def test_the_figures_are_those_of_the_functions_that_measure(models, report):
    common = {"packing": "packed", "max_length": 16}
    bound = evaluate_texts(*models["one"], STORIES, draws=4, steps=[2, 5], estimators=["steps"], seed=1, **common)
    exact = evaluate_causal_texts(*models["causal"], STORIES, **common)
    one, _, causal = report.checkpoints
    assert (one.kind, causal.kind) == ("masked", "causal")
    assert one.likelihood["nats_per_token"] == bound.bound.nats_per_token and not one.likelihood["is_exact"]
    assert one.likelihood["bits_per_byte"] == bound.bound.bits_per_byte
    low, high = one.likelihood["bits_per_byte_interval"]
    assert (low + high) / 2 == pytest.approx(one.likelihood["bits_per_byte"])
    assert one.loss_by_mask_rate == [list(point) for point in bound.loss_by_mask_rate]
    assert causal.likelihood["nats_per_token"] == exact.bound.nats_per_token and causal.likelihood["is_exact"]
    assert [point["steps"] for point in one.by_forwards] == [2, 5, None]
    assert one.by_forwards[0]["nats_per_token"] == bound.others["steps"][0].nats_per_token
    assert one.by_forwards[-1]["nats_per_token"] == bound.bound.nats_per_token
    assert causal.loss_by_mask_rate == causal.calibration == []
    (point,) = causal.by_forwards  # a forward for each token
    assert point["forwards"] == exact.num_tokens / len(exact.rows.rows)


def test_as_many_steps_as_a_row_has_tokens_are_the_bound_itself(models):
    options = ReportOptions(draws=1, steps=[12, 40], max_length=16)
    (found,) = evaluation_report({"one": models["one"]}, STORIES[:1], options).checkpoints
    assert [point["steps"] for point in found.by_forwards] == [12, None]


def test_a_difference_is_in_pairs_where_rows_or_texts_are_the_same(models):
    one, other = (evaluate_texts(*models[name], STORIES, draws=2, max_length=16) for name in ("one", "other"))
    found = paired_difference(one, other, STORIES)
    low, high = found["nats_per_token_interval"]
    middle = other.bound.nats_per_token - one.bound.nats_per_token
    assert found["nats_per_token"] == pytest.approx(middle) and (low + high) / 2 == pytest.approx(middle)
    assert sum(found["bits_per_byte_interval"]) / 2 == pytest.approx(found["bits_per_byte"])
    same = paired_difference(one, one, STORIES)
    assert same["nats_per_token_interval"] == same["bits_per_byte_interval"] == [0, 0]


def test_models_with_other_tokens_are_compared_by_bytes_over_whole_texts():
    characters = train_characters(STORIES, model_max_length=400)
    sizes = {"n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 400}
    words, letters = (
        GPT2LMHeadModel(GPT2Config(vocab_size=len(of), **sizes)).eval() for of in (TOKENIZER, characters)
    )
    for packing in ("one_per_row", "packed"):
        one = evaluate_causal_texts(words, TOKENIZER, STORIES, packing=packing, max_length=80)
        other = evaluate_causal_texts(letters, characters, STORIES, packing=packing, max_length=400)
        found = paired_difference(one, other, STORIES)
        assert found["nats_per_token"] is None
        assert found["bits_per_byte"] == pytest.approx(other.bound.bits_per_byte - one.bound.bits_per_byte)
        if packing == "packed":
            assert found["bits_per_byte_interval"] is None
        else:
            low, high = found["bits_per_byte_interval"]
            assert (low + high) / 2 == pytest.approx(found["bits_per_byte"]) and high > low


def test_json_gives_the_same_report_back(report):
    again = EvaluationReport.from_json(report.to_json())
    assert again == report and report_markdown(again) == report_markdown(report)
    for text in ("[]", "{}", '{"format": "another"}'):
        with pytest.raises(ValueError, match="is no report"):
            EvaluationReport.from_json(text)


def test_samples_stand_beside_real_text_and_that_with_its_words_shuffled(report):
    one, _, causal = (of.samples for of in report.checkpoints)
    for of in (one, causal):
        assert of["generated"]["num_texts"] == of["real"]["num_texts"] == of["shuffled"]["num_texts"] == 3
        assert of["real"]["words_per_text"] == of["shuffled"]["words_per_text"] == of["generated"]["words_per_text"]
        assert of["real"]["distinct_1"] == of["shuffled"]["distinct_1"]
    assert [point["steps"] for point in one["by_steps"]] == [None, 2, 5]
    assert [point["forwards_per_text"] for point in one["by_steps"]] == [8, 2, 5]
    (point,) = causal["by_steps"]
    assert point["forwards_per_text"] == 16 - 2  # `<s>` and `</s>` are given


def test_greedy_samples_are_flagged_in_the_report(models):
    greedy, _ = models["one"]
    greedy.generation_config = DiffusionGenerationConfig(preset="greedy", max_new_tokens=8)
    try:
        found = evaluation_report(
            {"greedy": (greedy, TOKENIZER)}, STORIES, ReportOptions(draws=1, num_samples=4, steps=[])
        )
    finally:
        greedy.generation_config = DiffusionGenerationConfig(max_new_tokens=8, batch_size=2)
    warning = "greedy: 3 of 4 samples are the same as an earlier one"
    assert any(text.startswith(warning) for text in found.warnings)
    assert f"* {warning}" in report_markdown(found)


def test_a_generator_in_blocks_is_measured_and_steps_too_few_for_them_are_refused_before_anything_else(models):
    blocks = copy.deepcopy(models["one"][0])
    blocks.generation_config = DiffusionGenerationConfig(max_new_tokens=8, block_length=2)
    checkpoints, seen = {"blocks": (blocks, TOKENIZER)}, []
    with pytest.raises(ValueError, match="`steps` is 3, but 8 tokens in blocks of 2 need at least 4"):
        evaluation_report(
            checkpoints,
            STORIES,
            ReportOptions(draws=1, num_samples=2, steps=[4, 3]),
            progress=lambda *of: seen.append(of),
        )
    assert not seen
    (found,) = evaluation_report(checkpoints, STORIES, ReportOptions(draws=1, num_samples=2, steps=[4])).checkpoints
    assert sorted(point["forwards_per_text"] for point in found.samples["by_steps"]) == [4, 8]


def test_a_good_generator_of_stories_is_seen_to_be_good():
    generator = load_generator(STORIES_GENERATOR)
    options = ReportOptions(draws=2, steps=[4], num_samples=2, stories=True)
    found = evaluation_report({"stories": generator}, STORIES, options)
    (stories,) = found.checkpoints
    sets = [stories.samples[name] for name in ("generated", "real", "shuffled")]
    assert [of["valid_share"] for of in sets] == [1, 1, 0] and sets[2]["exact_nats_per_token"] is None
    assert sets[1] | grammar_figures(STORIES[:2]) == sets[1]
    few, default = sorted(stories.samples["by_steps"], key=lambda point: point["forwards_per_text"])
    assert few["steps"] == 4 and few["valid_share"] < default["valid_share"]
    tokens = found.exact["num_tokens"]
    assert found.exact["nats_per_token"] == -float(story_language.log_prob(STORIES).sum()) / tokens
    assert tokens == stories.likelihood["num_tokens"]
    exact = dict(map(tuple, found.exact["loss_by_mask_rate"]))
    assert exact.keys() == {rate for rate, _ in stories.loss_by_mask_rate}
    assert all(nats == pytest.approx(exact[rate], rel=0.1, abs=0.1) for rate, nats in stories.loss_by_mask_rate)
    markdown = report_markdown(found)
    for words in ("exact denoiser", "above the exact value", "stories that the grammar accepts", "words shuffled"):
        assert words in markdown


@pytest.mark.skipif(not (REAL.is_file() and JUDGE.is_dir()), reason="TinyStories and its judge are not there")
def test_the_judge_ranks_real_text_above_the_same_words_shuffled_and_random_ones(models):
    texts = re.split(r"(?<=[^\n])\n(?=[^\n])", REAL.read_text(encoding="utf-8"))[:200:25]
    judge = Judge.from_pretrained(str(JUDGE), end_token="<s>")
    options = ReportOptions(draws=1, steps=[], max_length=16, num_samples=4)
    found = evaluation_report({"one": models["one"]}, texts, options, judge=judge)
    (one,) = found.checkpoints
    random_words, real, shuffled = (
        one.samples[name]["judge_bits_per_character"] for name in ("generated", "real", "shuffled")
    )
    assert real < shuffled and real < random_words
    assert f"| **judge, bits per character** | {random_words:.3f} |" in report_markdown(found)
    assert f"| … of real text, words shuffled | {shuffled:.3f} |" in report_markdown(found)


def test_the_causal_model_writes_its_own_texts_and_ends_them_only_where_it_may(models):
    causal, _ = models["causal"]
    options = {"max_length": 12, "prefix": "Once upon"}
    one, again, other = (
        write_causally(causal, TOKENIZER, 3, may_end=False, seed=seed, **options).texts for seed in (1, 1, 2)
    )
    assert one == again != other and len(set(one)) == 3
    assert all(text.startswith("Once upon ") for text in one)
    endless = write_causally(causal, TOKENIZER, 40, may_end=False, max_length=12)
    ending = write_causally(causal, TOKENIZER, 40, may_end=True, max_length=12)
    assert not any(endless.finished) and endless.forwards == 10
    assert any(ending.finished) and ending.forwards < 11
    assert not any(
        special in text for text in [*endless.texts, *ending.texts] for special in TOKENIZER.all_special_tokens
    )
    with pytest.raises(ValueError, match="`prefix` has 2 tokens"):
        write_causally(causal, TOKENIZER, 1, may_end=False, max_length=4, prefix="Once upon")


def test_kinds_of_models_are_told_by_their_configuration():
    assert not is_causal(RobertaConfig()) and not is_causal(RobertaConfig(architectures=["RobertaForMaskedLM"]))
    assert is_causal(RobertaConfig(is_decoder=True)) and is_causal(RobertaConfig(architectures=["RobertaForCausalLM"]))
    assert is_causal(GPT2Config()) and is_causal(GPT2Config(architectures=["GPT2LMHeadModel"]))
    assert not is_causal(story_language.ExactDenoiser().config)


def test_pieces_of_packed_text_are_whole_words_in_order():
    pieces = evenly_cut(STORIES, 5)
    assert " ".join(pieces).split() == " ".join(STORIES).split()
    sizes = [len(piece.split()) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="2 words of held-out text cannot be cut into 3 pieces"):
        evenly_cut(["So be"], 3)


def test_shuffled_words_are_the_same_words():
    shuffled = shuffle_words([STORIES[0]] * 2, seed=0)
    assert shuffled[0] != shuffled[1] and sorted(shuffled[0].split()) == sorted(STORIES[0].split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ReportOptions(num_samples=5, packing="one_per_row", draws=1), "`num_samples` is 5, and there are 4"),
        (ReportOptions(max_length=99), "`max_length` is 99"),
        (ReportOptions(num_samples=1, prefix=" ".join(["Once"] * 40)), "prefix"),
        (ReportOptions(num_samples=1, steps=[0]), "`steps`"),
    ],
)
def test_what_cannot_be_measured_is_found_before_anything_is(models, options, words):
    def progress(*_):
        pytest.fail("something was measured")

    with pytest.raises(ValueError, match=words):
        evaluation_report(models, STORIES, options, progress=progress)
    with pytest.raises(ValueError, match="`checkpoints` is empty"):
        evaluation_report({}, STORIES)
    with pytest.raises(ValueError, match="does not know all of the texts"):
        evaluation_report(models, ["Once upon"], ReportOptions(stories=True), progress=progress)
    with pytest.raises(ValueError, match="`num_samples`"):
        ReportOptions(num_samples=-1)


# The directory


def test_a_report_that_fails_halfway_leaves_the_directory_as_it_was(tmp_path, causal_report):
    before = {path.name: path.read_bytes() for path in ReportDirectory(tmp_path).write(causal_report)}
    assert before.keys() == {"report.json", "report.md", "quality_by_forwards.png"}
    assert before["quality_by_forwards.png"].startswith(b"\x89PNG")
    assert "](quality_by_forwards.png)" in before["report.md"].decode()
    assert json.loads(before["report.json"]) == causal_report.to_dict()
    (tmp_path / "quality_by_forwards.png.tmp").symlink_to(tmp_path / "nowhere" / "x")  # there is no writing to that
    with pytest.raises(OSError, match="quality_by_forwards"):
        ReportDirectory(tmp_path).write(replace(causal_report, device="another"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_a_directory_of_its_own_is_written_to(tmp_path):
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "report.md.tmp").write_text("half", encoding="utf-8")
    ReportDirectory(killed)
    (killed / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for path, words in ((killed, "thesis.tex"), (tmp_path / "file", "no report can be written")):
        with pytest.raises(OutputDirectoryError, match=words):
            ReportDirectory(path)


def test_without_matplotlib_all_else_is_written_and_the_remedy_named(tmp_path, report, monkeypatch):
    (tmp_path / "calibration.png").touch()  # of an older report
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    paths = ReportDirectory(tmp_path).write(report)
    assert (
        [path.name for path in paths]
        == ["report.md", "report.json"]
        == sorted([path.name for path in tmp_path.iterdir()], reverse=True)
    )
    text = paths[0].read_text(encoding="utf-8")
    assert "> The plots were left out." in text and "pip install 'diffusion-mlm[viz]'" in text and ".png" not in text


def test_no_name_and_no_sample_brings_markdown_to_life(report):
    found = json.loads(report.to_json())
    found["checkpoints"][0]["name"] = "a|b`c`"
    found["checkpoints"][0]["samples"]["texts"] = ["`x` <b>| \n# Title\x1b[0m"] * 3
    text = report_markdown(EvaluationReport.from_json(json.dumps(found)))
    assert "\n# Title" not in text and "\x1b" not in text
    assert "`'x' <b>¦  ⏎ # Title�[0m`" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == tables[0].count("|") for line in tables[:8])
