"""`diffusion-mlm sweep`: whatever kills it, the same command ends with the same file; the best is what it says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import DiffusionGenerationConfig, generate, load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.cli import main
from diffusion_mlm.cli import sweep as command
from diffusion_mlm.cli.sweep_arguments import (
    DEFAULT_PRESETS,
    DEFAULT_VALUES,
    GAUSSIAN_VALUES,
    SweepArguments,
    SweptSettings,
)
from diffusion_mlm.cli.sweep_record import SweepRecord
from diffusion_mlm.cli.sweep_report import save_picture, write_best
from diffusion_mlm.errors import OutputDirectoryError
from diffusion_mlm.evaluation.story_quality import StoryQuality
from diffusion_mlm.evaluation.sweep import SweepPoint, config_of, frontier, settings_grid
from diffusion_mlm.generation_config import DEFAULTS

Command = Callable[..., tuple[int, str, str]]
VALUES: dict[str, list[Any]] = {"steps": [1, 2], "order": ["random", "margin"], "temperature": [0.5]}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    def run(*argv: object) -> tuple[int, str, str]:
        status = main(["sweep", *map(str, argv), "--picture", "false", "--output-dir", str(tmp_path / "out")])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def own(checkpoint: str, tmp_path: Path) -> Path:
    """A tiny checkpoint that one may write into."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, story_tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Options: a tiny causal model with random weights, and stories to compare with."""
    directory = tmp_path_factory.mktemp("judge")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(story_tokenizer), max_position_embeddings=32, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory)
    story_tokenizer.save_pretrained(directory)
    (directory / "held out.txt").write_text("\n".join(story_language.sample(8, seed=3)), encoding="utf-8")
    return ["--judge", str(directory), "--eval-file", str(directory / "held out.txt")]


# Going on


class Sweep:
    """A sweep of four settings by a loaded model, into a directory."""

    def __init__(self, directory: Path, model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.directory, self.model, self.tokenizer = directory, model, tokenizer
        self.grid = settings_grid(VALUES)
        self.lines = directory / "settings.jsonl"

    def run(self, at_most: int | None = None) -> None:
        """Goes on to the end, or is killed when it has measured so many settings."""
        args = SweepArguments(num_samples=2, output_dir=str(self.directory))
        record, quality = SweepRecord(str(self.directory)), StoryQuality(2)
        measure, left = quality.measure, [at_most]

        def measure_or_die(texts: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] = None if left[0] is None else left[0] - 1
            return measure(texts)

        quality.measure = measure_or_die  # type: ignore[method-assign]
        record.require_usable(overwrite=False)
        record.claim({"values": VALUES}, overwrite=False)
        base = DiffusionGenerationConfig(max_new_tokens=5, num_return_sequences=2)
        try:
            points = command.sweep(self.model, self.tokenizer, self.grid, quality, args, base, record)
            assert [point.settings for point in points] == self.grid.settings
        except KeyboardInterrupt:
            assert at_most is not None
        finally:
            record.close()


@pytest.fixture
def sweep(tmp_path: Path, shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast) -> Sweep:
    return Sweep(tmp_path / "swept", shared_roberta, story_tokenizer)


def test_a_sweep_killed_at_any_setting_goes_on_to_the_same_file(sweep: Sweep, tmp_path: Path) -> None:
    sweep.run()
    whole = sweep.lines.read_bytes()
    assert [json.loads(line)["settings"] for line in whole.splitlines()] == sweep.grid.settings
    for killed_after in range(len(sweep.grid.settings)):
        other = Sweep(tmp_path / f"killed {killed_after}", sweep.model, sweep.tokenizer)
        other.run(killed_after)
        assert other.lines.read_bytes() == b"".join(whole.splitlines(keepends=True)[:killed_after])
        other.run()
        assert other.lines.read_bytes() == whole


def test_a_file_cut_or_damaged_anywhere_is_completed(sweep: Sweep) -> None:
    sweep.run()
    whole = sweep.lines.read_bytes()
    lines = whole.splitlines(keepends=True)
    starts = [len(b"".join(lines[:place])) for place in range(len(lines) + 1)]
    damaged = [whole[:end] for start in starts for end in (start - 1, start + 7) if 0 <= end <= len(whole)]
    damaged += [lines[0] + b"\0" * 40 + b"\n" + lines[2], lines[1] + lines[0], whole + lines[0], whole + b"[1]\n{"]
    for content in damaged:
        sweep.lines.write_bytes(content)
        sweep.run()
        assert sweep.lines.read_bytes() == whole


def test_what_is_done_is_not_done_again(sweep: Sweep) -> None:
    sweep.run()
    sweep.run(at_most=0)
    sweep.lines.write_bytes(b"".join(sweep.lines.read_bytes().splitlines(keepends=True)[:3]))
    sweep.run(at_most=1)
    assert len(sweep.lines.read_bytes().splitlines()) == 4


def test_another_sweep_is_refused_or_replaced(sweep: Sweep) -> None:
    sweep.run()
    record = SweepRecord(str(sweep.directory))
    for refuse in (record.require_same, record.claim):
        with pytest.raises(ValueError, match="holds another sweep: other `values`.*--overwrite-output"):
            refuse({"values": {**VALUES, "steps": [1, 3]}}, overwrite=False)
        record.close()
    assert len(sweep.lines.read_bytes().splitlines()) == 4
    record.claim({"values": VALUES}, overwrite=True)
    assert len(record.finished(sweep.grid.settings)) == 4
    record.close()
    record.claim({"values": {}}, overwrite=True)
    assert record.finished(sweep.grid.settings) == [] and sweep.lines.read_bytes() == b""
    record.close()


def test_a_directory_that_another_run_writes_is_left_alone(sweep: Sweep) -> None:
    """The lock is of a process, and goes with it."""
    sweep.run(at_most=1)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    holding = [sys.executable, "-c", hold, str(sweep.lines)]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        with pytest.raises(OutputDirectoryError, match="another run is writing"):
            sweep.run()
        holder.kill()
    sweep.run()
    assert len(sweep.lines.read_bytes().splitlines()) == 4


# From the command line to the checkpoint


def test_a_judged_sweep_prints_its_settings_and_writes_the_best_into_the_checkpoint(
    run: Command, own: Path, judge: list[str], tmp_path: Path
) -> None:
    options = ["--checkpoint", own, *judge, "--steps", 1, 3, "--order", "random", "margin", "--sampling", "greedy"]
    options += ["nucleus", "--num-samples", 4, "--prefix", "the lake", "--seed", 2]
    status, out, err = run(*options, "--output-format", "json")
    assert status == 0, err
    assert "8 settings of 4 texts each" in err and "the figures of all settings" in err
    lines = [json.loads(line) for line in out.splitlines()]
    written = (tmp_path / "out" / "settings.jsonl").read_bytes()
    flags = ("on_frontier", "is_best")
    assert [{name: line[name] for name in line if name not in flags} for line in lines] == [
        json.loads(line) for line in written.splitlines()
    ]
    (best,) = [line for line in lines if line["is_best"]]
    assert best["on_frontier"] and not best["collapsed"]
    assert best["quality"] == max(line["quality"] for line in lines if not line["collapsed"])

    before = DiffusionGenerationConfig.from_pretrained(own)
    status, out, err = run(*options, "--write-best")
    assert status == 0 and "8 of 8 settings are there already" in err
    assert (tmp_path / "out" / "settings.jsonl").read_bytes() == written
    assert f"generation_config.json: steps: None -> {best['settings']['steps']}" in err
    assert out.startswith("| setting") and "best: steps" in out
    model, tokenizer = load_generator(str(own))
    config = model.generation_config
    assert {name: getattr(config, name) for name in DEFAULTS} == {
        name: getattr(config_of(best["settings"], before), name) for name in DEFAULTS
    }
    texts = generate(model, tokenizer, "the lake", num_return_sequences=2, seed=2).texts
    assert texts == best["samples"]


def test_the_budget_chooses_among_the_frontier(run: Command, own: Path, judge: list[str]) -> None:
    options = ["--checkpoint", own, *judge, "--steps", 2, 5, "--num-samples", 4]
    status, out, _ = run(*options, "--max-forwards", 2.5)
    assert status == 0 and "best: steps 2" in out
    before = (own / "generation_config.json").read_bytes()
    status, out, err = run(*options, "--max-forwards", 1, "--write-best")
    assert status == 2 and out.startswith("| setting")
    assert "`max_forwards` is 1, and with so few no setting writes anything of quality (the fewest are 2)" in err
    assert (own / "generation_config.json").read_bytes() == before


def test_what_cannot_be_written_at_the_checkpoints_own_length_is_not_swept(
    run: Command, own: Path, judge: list[str], tmp_path: Path
) -> None:
    options = ["--checkpoint", own, *judge, "--max-new-tokens", 2, "--block-length", 2, "--steps", 1]
    status, _, err = run(*options, "--write-best")
    assert status == 2 and "`--write-best` may have to write a setting that is impossible at" in err
    assert err.endswith(
        "`steps` is 1, but 5 tokens in blocks of 2 need at least 3. Raise `steps` or `block_length`.\n"
    )
    assert not (tmp_path / "out" / "settings.jsonl").exists()


def test_the_best_setting_is_written_as_transformers_writes_it(own: Path, tmp_path: Path) -> None:
    saved = DiffusionGenerationConfig(max_new_tokens=5, stride=3, sampling="greedy", bos_token_id=0)
    saved.save_pretrained(own)
    assert write_best(str(own), {"preset": "guide"}) == [
        "steps: None -> 10",
        "order: entropy -> random",
        "sampling: greedy -> nucleus",
        "remask: none -> renoise",
    ]
    assert write_best(str(own), {"preset": "guide"}) == []
    DiffusionGenerationConfig("guide", max_new_tokens=5, stride=3, bos_token_id=0).save_pretrained(tmp_path)
    assert json.loads((own / "generation_config.json").read_text()) == json.loads(
        (tmp_path / "generation_config.json").read_text()
    )
    assert sorted(path.name for path in own.iterdir() if "new-" in path.name) == []


def test_without_a_judge_the_grammar_judges_and_without_quality_nothing_is_the_best(
    run: Command, checkpoint: str, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text("steps: [1, 2]\nadaptive: [none, threshold]\nremask: [none, renoise]\nnum_samples: 2\n")
    status, out, err = run("--config", config, "--checkpoint", checkpoint)
    assert status == 0 and "left out: 2 impossible combinations" in err
    assert "No setting is the best" in err and out.count("\n") == 3 and "real text" in out
    lines = (tmp_path / "out" / "settings.jsonl").read_text().splitlines()
    assert [json.loads(line)["settings"] for line in lines] == settings_grid(
        {"steps": [1, 2], "adaptive": [None, "threshold"], "remask": ["none", "renoise"]}
    ).settings
    assert (tmp_path / "out" / "frontier.md").read_text() == out


def test_a_checkpoint_that_has_changed_is_refused(run: Command, own: Path, shared_roberta: RobertaForMaskedLM) -> None:
    options = ["--checkpoint", own, "--steps", 1, "--num-samples", 2]
    assert run(*options)[0] == 0
    model = RobertaForMaskedLM(shared_roberta.config)
    model.save_pretrained(own)
    DiffusionGenerationConfig(max_new_tokens=5).save_pretrained(own)
    status, _, err = run(*options)
    assert status == 2 and "which holds another sweep: other `checkpoint`" in err
    assert run(*options, "--overwrite-output", "true")[0] == 0


@pytest.mark.parametrize("first, last", [(1, 20), (3, 4)], ids=["frontier", "collapsed alone"])
def test_the_picture_is_drawn_with_and_without_a_frontier(first: int, last: int, tmp_path: Path) -> None:
    points = [SweepPoint({"steps": 2 * n}, 2.0 * n, 0.25 * (n % 4), n == 3, {}, []) for n in range(first, last)]
    save_picture(tmp_path / "frontier.png", points, frontier(points), "Note.")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_told_at_once(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["sweep", "--checkpoint", checkpoint, "--output-dir", str(tmp_path / "out")]) == 2
    assert "pip install 'diffusion-mlm[viz]'`, or pass `--picture false`" in capsys.readouterr().err


# Wrong use, before anything heavy is loaded


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--steps", "0", "8"],
            "`steps` 0 is in no possible combination: `steps` must be a whole number of at least 1",
        ),
        (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["--order", "backwards"], "invalid choice: 'backwards'"),
        (["--ordre", "random"], "--ordre is no option of `sweep`. Did you mean --order"),
        (["--remask", "low_confidence"], "`remask` 'low_confidence' is in no possible combination"),
        (["--num-samples", "1"], "`--num-samples` must be a whole number of at least 2, not 1."),
        (["--max-new-tokens", "0"], "`--max-new-tokens` must be a whole number of at least 1, not 0."),
        (["--max-forwards", "0.5"], "`--max-forwards` must be a number of at least 1, not 0.5."),
        (["--seed", "-1"], "`--seed` must be a whole number in [0, 2**32), not -1."),
        (["--judge", "gpt2"], "`--judge` is named and `--eval-file` is not"),
        (["--eval-file", __file__], "`--eval-file` is named and `--judge` is not"),
        (["--judge", "./no", "--eval-file", "no.txt"], "`--eval-file` is 'no.txt', and there is no such file."),
        (["--judge", "./no", "--eval-file", __file__], "`--judge` is './no', and there is no such directory."),
        (["--prefix", "The lake"], "`--prefix` is for models with a `--judge`"),
        (["--checkpoint", "./no"], "`--checkpoint` is './no', and there is no such directory."),
        (
            ["--checkpoint", STORIES_GENERATOR, "--write-best"],
            "`--write-best` would change a checkpoint of the packag",
        ),
    ],
)
def test_wrong_use_is_told_before_anything_is_loaded(
    run: Command, checkpoint: str, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "load_checkpoint", lambda *_: pytest.fail("a model is loaded"))
    status, out, err = run("--checkpoint", checkpoint, *options)
    assert (status, out) == (2, "") and message in err, err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_other_arguments_are_told_before_anything_is_loaded(
    run: Command, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--checkpoint", checkpoint, "--num-samples", 2, "--steps", 1]
    assert run(*options)[0] == 0
    monkeypatch.setattr(command, "load_checkpoint", lambda *_: pytest.fail("a model is loaded"))
    status, _, err = run(*options, 2, "--seed", 5)
    assert status == 2 and "holds another sweep: `values` was {'steps': [1]}" in err and "`seed` was 0, now 5" in err


def test_what_only_the_model_can_refuse_leaves_no_directory(run: Command, checkpoint: str, tmp_path: Path) -> None:
    for options, message in (
        (["--top-k", 9999, "--sampling", "topk"], "`top_k` is 9999, above the vocabulary"),
        (["--block-length", 1, "--steps", 2], "5 tokens in blocks of 1 need at least 5"),
        (["--sampler", "ddim"], "`sampler` is 'ddim', but a masked model has none"),
    ):
        status, _, err = run("--checkpoint", checkpoint, *options)
        assert status == 2 and message in err and not (tmp_path / "out").exists()


def test_a_model_of_other_text_needs_a_judge(
    run: Command, own: Path, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = story_language.tokenizer()
    tokenizer.add_tokens(["dragonfly"])
    tokenizer.save_pretrained(own)
    status, _, err = run("--checkpoint", own)
    assert status == 2 and "`--judge` is missing" in err and "`--eval-file`" in err


@pytest.mark.parametrize("name", ["a-file", "a-file/below", "nul\0"])
def test_a_directory_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("mine")
    assert main(["sweep", "--checkpoint", checkpoint, "--output-dir", name]) == 2
    assert "`--output-dir` is" in capsys.readouterr().err


def test_lines_of_no_sweep_are_replaced_when_asked_only(run: Command, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.jsonl").write_text("mine")
    options = ["--checkpoint", checkpoint, "--num-samples", 2, "--steps", 1]
    assert run(*options)[0] == 2 and (tmp_path / "out" / "settings.jsonl").read_text() == "mine"
    assert run(*options, "--overwrite-output", "true")[0] == 0


def test_without_any_setting_presets_and_a_small_grid_are_tried() -> None:
    args = SweepArguments()
    assert (args.presets(False), args.values(False)) == (DEFAULT_PRESETS, DEFAULT_VALUES)
    assert (args.presets(True), args.values(True)) == ([], GAUSSIAN_VALUES)
    assert (SweepArguments(steps=[4]).presets(False), SweepArguments(preset=["fast"]).values(False)) == ([], {})
    assert {of.name for of in fields(SweptSettings)} < set(DEFAULTS)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from diffusion_mlm.cli import main; main(['sweep', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
