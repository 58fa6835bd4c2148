"""The command line: exit statuses, one sentence for every mistake, and nothing written before it is found."""

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm.cli import main, report_error
from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint
from diffusion_mlm.cli.generate import GenerateArguments
from diffusion_mlm.cli.generation_settings import CHOICES
from diffusion_mlm.cli.parsing import arguments_of_file
from diffusion_mlm.denoising import REVEALS
from diffusion_mlm.errors import HubUnavailableError, NonFiniteLossError, NotAllowedError, OutputDirectoryError
from diffusion_mlm.generation import generate, load_generator
from diffusion_mlm.generation_config import DEFAULTS, PRESETS, SAMPLERS
from diffusion_mlm.precision import DTYPES
from diffusion_mlm.remasking import REMASKS
from diffusion_mlm.sampling import NonFiniteLogitsError, SamplingMethod
from diffusion_mlm.schedules import SCHEDULES
from diffusion_mlm.tokenization import train_characters
from diffusion_mlm.unmasking import ADAPTIVE_RULES, ORDERS

ROOT = Path(__file__).parents[1]

# Runs a command in this process; returns exit status, standard output and standard error.
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """A command in an empty directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run_here(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        logging.getLogger("diffusion_mlm").handlers.clear()  # of a command before, with its standard error
        status = main([str(word) for word in argv])
        return (status, *capsys.readouterr())

    return run_here


def assert_one_sentence(err: str, *words: str) -> None:
    """The last line of standard error is the message, and there is no traceback."""
    assert "Traceback" not in err
    (message,) = [line for line in err.splitlines() if line.startswith("diffusion-mlm: ")]
    assert message.endswith((".", "?", ")")), message
    assert err.endswith(message + "\n")
    for word in words:
        assert word in message, message


def files_here() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


# The command as a whole


def test_without_a_verb_the_verbs_are_listed(run: Command) -> None:
    status, out, _ = run()
    assert status == 2 and "train" in out and "generate" in out
    assert run("--help")[0] == 0


def test_unknown_verb_is_wrong_use(run: Command) -> None:
    status, _, err = run("generat")
    assert status == 2
    assert_one_sentence(err, "'generat'", "generate")


def test_version_is_printed(run: Command) -> None:
    status, out, _ = run("--version")
    assert status == 0 and out.startswith("diffusion-mlm ")


@pytest.mark.parametrize("verb, default", [("generate", "else nucleus"), ("train", "(default: 0.0001)")])
def test_help_shows_defaults(run: Command, verb: str, default: str) -> None:
    status, out, err = run(verb, "--help")
    assert status == 0 and not err
    assert default in " ".join(out.split())
    assert "default: None" not in out


def test_help_of_generate_tells_the_true_choices_and_defaults() -> None:
    assert {
        "dtype": list(DTYPES),
        "preset": list(PRESETS),
        "schedule": list(SCHEDULES),
        "reveal": list(REVEALS),
        "adaptive": list(ADAPTIVE_RULES),
        "sampling": list(get_args(SamplingMethod)),
        "order": list(ORDERS),
        "order_from": ["distribution", "sample"],
        "remask": list(REMASKS),
        "sampler": list(SAMPLERS),
    } == CHOICES
    fields = GenerateArguments.__dataclass_fields__
    for name, value in DEFAULTS.items():
        text = fields["num_samples" if name == "num_return_sequences" else name].metadata["help"]
        assert value is None or text.endswith(f"else {str(value).lower() if isinstance(value, bool) else value})")
    every: dict[str, Any] = {name: None for name in fields if name != "prefix"}
    assert set(GenerateArguments(**every | dict.fromkeys(DEFAULTS.keys() & fields.keys(), 1)).settings()) <= set(
        DEFAULTS
    )


def test_help_of_generate_does_not_wait_for_torch() -> None:
    code = "import sys; from diffusion_mlm.cli import main; main(['generate', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "error, status",
    [
        (ValueError("a"), 2),
        (HubUnavailableError("a"), 69),
        (NonFiniteLossError("a"), 70),
        (NonFiniteLogitsError("a"), 70),
        (OutputDirectoryError("a"), 73),
        (FileNotFoundError("a"), 74),
        (NotAllowedError("a"), 77),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a\nb"), 1),
    ],
)
def test_every_error_has_its_exit_status_and_one_line(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error) == status
    err = capsys.readouterr().err
    assert err.startswith("diffusion-mlm: ") and err.count("\n") == 1


# generate


def test_generate_prints_texts(run: Command, checkpoint: str) -> None:
    status, out, _ = run("generate", "--checkpoint", checkpoint, "--prefix", "One day", "The", "--seed", 3)
    model, tokenizer = load_generator(checkpoint)
    expected = generate(model, tokenizer, ["One day", "The"], seed=3).texts
    assert status == 0
    assert out == f"{expected[0]}\n\n{expected[1]}\n"


def test_constraints_of_the_command_line_hold(run: Command, checkpoint: str) -> None:
    """The model reads 32 tokens, so that they hold from window to window."""
    lists = ["--banned-words", "the", "a", "--banned-strings", "er", "in", "--ignore-case"]
    options = ["--num-samples", 4, "--max-new-tokens", 40, "--stride", 10, "--seed", 0]
    status, out, _ = run("generate", "--checkpoint", checkpoint, *lists, *options)
    assert status == 0 and out.strip()
    assert not re.search(r"\b(the|a)\b|er|in", out, re.IGNORECASE)


def test_json_has_the_documented_fields_and_its_seed_replays_the_sample(run: Command, checkpoint: str) -> None:
    asked = ["generate", "--checkpoint", checkpoint, "--prefix", "One 😀", "--output-format", "json", "--steps", 2]
    status, out, err = run(*asked, "--num-samples", 2)
    samples = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(samples) == 2
    for sample in samples:
        assert list(sample) == [
            "prefix",
            "completion",
            "text",
            "token_ids",
            "seed",
            "num_forwards",
            "tokens_per_forward",
            "finished",
        ]
        assert sample["text"] == sample["prefix"] + sample["completion"] and sample["num_forwards"] == 2
    assert f"seed {samples[0]['seed']}" in err
    assert json.loads(run(*asked, "--seed", samples[1]["seed"])[1]) == samples[1]


def test_show_steps_gives_the_same_samples_and_keeps_standard_output_clean(run: Command, checkpoint: str) -> None:
    asked = ["generate", "--checkpoint", checkpoint, "--prefix", "One", "One", "--num-samples", 2, "--seed", 5]
    _, plain, _ = run(*asked, "--output-format", "json")
    status, out, err = run(*asked, "--output-format", "json", "--show-steps")
    assert status == 0 and out == plain
    assert err.count("   1  One") == 4


def test_config_file_is_read_and_the_command_line_wins(run: Command, checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"checkpoint: {checkpoint}\nprefix: [One day, The]\nsteps: 2\nseed: 1\noutput-format: json\ntop_p: 5e-1\n"
    )
    status, out, _ = run("generate", "--config", file, "--steps", 3, "--prefix", "A")
    (sample,) = map(json.loads, out.splitlines())
    assert status == 0
    assert (sample["prefix"], sample["num_forwards"], sample["seed"]) == ("A", 3, 1)


def test_config_values_stay_text_until_the_parser_converts_them(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("schedule: off\nrate: 1e-4\nnothing: null\nempty:\nflag: true\nmany: [1, no]\nmap: {a: 1}\n")
    assert arguments_of_file(str(file)) == [
        "--schedule=off",
        "--rate=1e-4",
        "--flag=true",
        *("--many", "1", "no"),
        '--map={"a": "1"}',
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        ("stps: 3\n", ("--stps", "--steps")),
        ("steps: three\n", ("--steps", "three")),
        ("steps: 3.7\n", ("--steps", "3.7")),
        ("schedule: off\n", ("--schedule", "off")),
        ("- 1\n", ("`--config`", "option: value")),
        ("a: [\n", ("`--config`", "YAML")),
        (b"\xff\xfea", ("`--config`", "UTF-8")),
        (None, ("`--config`", "no such file")),
    ],
)
def test_wrong_config_file_is_wrong_use(
    run: Command, tmp_path: Path, content: str | bytes | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = run("generate", "--config", file)
    assert status == 2 and not out
    assert_one_sentence(err, *words)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--stps", "3"], ("--stps", "--steps")),
        (["--step", "3"], ("--step", "--steps")),  # no abbreviations
        (["story"], ("story",)),
        (["--steps", "three"], ("--steps", "three")),
        (["--steps"], ("--steps",)),
        (["--config"], ("--config",)),
        (["--steps", "0"], ("steps", "0")),
        (["--max-new-tokens", "0"], ("max_new_tokens", "0")),
        (["--num-samples", "0"], ("`--num-samples`", "0")),
        (["--batch-size", "-3"], ("batch_size", "-3")),
        (["--temperature", "-1"], ("temperature", "-1")),
        (["--temperature", "nan"], ("temperature", "nan")),
        (["--top-p", "0"], ("top_p", "0")),
        (["--top-p", "1e999"], ("top_p", "inf")),
        (["--top-k", "-1"], ("top_k", "-1")),
        (["--order-noise", "nan"], ("order_noise", "nan")),
        (["--seed", "-1"], ("`--seed`", "-1")),
        (["--seed", str(2**32)], ("`--seed`", str(2**32))),
        (["--prefix", "a\udcffb"], ("`--prefix`", "character 1")),
        (["--schedule", "cosin"], ("--schedule", "cosin", "cosine")),
        (["--sampling", "beam"], ("--sampling", "beam", "nucleus")),
        (["--order-from", "sample", "--order", "margin"], ("order_from", "margin")),
        (["--ignore-case"], ("`--ignore-case`", "`--banned-words`")),
        (["--banned-strings", ""], ("`banned_strings[0]`", "''")),
        (["--regex", "(a"], ("`regex`", "(a")),
        (["--checkpoint", "./missing"], ("`--checkpoint`", "./missing")),
        (["--checkpoint", ""], ("`--checkpoint`",)),
        (["--checkpoint", "."], ("`--checkpoint`", "config.json")),
        (["--checkpoint", "no spaces allowed"], ("`--checkpoint`", "no spaces allowed")),
    ],
)
def test_wrong_use_of_generate_is_one_sentence_and_loads_nothing(
    run: Command, argv: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = run("generate", *argv)
    assert status == 2 and not out
    assert_one_sentence(err, *words)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--top-k", "100000"], ("`top_k`", "100000", "364")),
        (["--max-new-tokens", "40", "--stride", "31"], ("`stride`", "31", "room for 30")),
        (["--prefix", "One day " * 20], ("41 tokens", "reads 31")),
    ],
)
def test_what_the_model_cannot_do_is_wrong_use(
    run: Command, checkpoint: str, argv: list[str], words: tuple[str, ...]
) -> None:
    status, out, err = run("generate", "--checkpoint", checkpoint, "--seed", 0, *argv)
    assert status == 2 and not out
    assert_one_sentence(err, *words)


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from(
            [f"--{name.replace('_', '-')}" for name in GenerateArguments.__dataclass_fields__] + ["--config"]
        )
        | st.sampled_from(["", "-1", "0", "nan", "1e999", "😀", "../..", "nul\0", "json", "greedy", "--", "-x", "2"]),
        min_size=1,
        max_size=6,
    ).filter(lambda argv: "2" not in argv or "--checkpoint" not in argv)
)
def test_any_command_line_ends_in_a_documented_status_with_one_line(
    checkpoint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str]
) -> None:
    """Names that are no path go to the Hub, which is switched off here."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # for --output-file
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("diffusion_mlm.cli.checkpoint_arguments.default_checkpoint", lambda: checkpoint)
        status = main(["generate", *argv])
    err = capsys.readouterr().err
    assert status in (0, 2, 69, 74)
    if status:
        assert_one_sentence(err)


def test_debug_shows_the_traceback_and_keeps_the_status(run: Command) -> None:
    status, _, err = run("generate", "--steps", "0", "--debug")
    assert status == 2
    assert "Traceback" in err and err.splitlines()[-1].startswith("diffusion-mlm: `steps`")


def test_model_without_mask_token_is_refused(
    run: Command, tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=story_tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    tiny_roberta.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for verb, option in (("generate", "--checkpoint"), ("train", "--model-name")):
        status, _, err = run(verb, option, tmp_path / "model")
        assert status == 2
        assert_one_sentence(err, f"`{option}`", "mask token")
    assert files_here() == []


@pytest.mark.parametrize("value, status", [(math.nan, 2), (3e38, 70)])
def test_numbers_that_are_not_finite_are_told(
    run: Command, checkpoint: str, tmp_path: Path, value: float, status: int
) -> None:
    """NaN weights are refused when they are loaded; finite ones may still overflow."""
    for path in Path(checkpoint).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.dense.weight"] = torch.full_like(weights["lm_head.dense.weight"], value)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found, out, err = run("generate", "--checkpoint", tmp_path, "--seed", 0)
    assert (found, out) == (status, "")
    assert_one_sentence(err)


@pytest.mark.parametrize(
    "argv, word",
    [
        (["generate", "--checkpoint", "nobody/nothing"], "`--checkpoint`"),
        (["train", "--model-name", "nobody/nothing"], "`--model-name`"),
        (["train", "--dataset", "nobody/nothing"], "`--dataset`"),
        (["train", "--preset", "roberta-tiny", "--tokenizer", "nobody/nothing"], "`--tokenizer`"),
    ],
)
def test_unknown_name_without_network_ends_soon(
    run: Command, argv: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    status, out, err = run(*argv)
    assert time.monotonic() - start < 10
    assert (status, out) == (69, "")
    assert_one_sentence(err, word, "nobody/nothing")
    assert files_here() == []


def test_closed_name_is_not_allowed(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    response: Any = SimpleNamespace(status_code=403, headers={}, request=None)

    def closed(*args: Any, **kwargs: Any) -> None:
        raise GatedRepoError("gated", response=response)

    monkeypatch.setattr(HfApi, "repo_info", closed)
    status, _, err = run("generate", "--checkpoint", "somebody/closed")
    assert status == 77
    assert_one_sentence(err, "`--checkpoint`", "somebody/closed", "log in")


def test_final_model_of_the_directory_is_preferred_to_the_packaged_one(run: Command, checkpoint: str) -> None:
    packaged = default_checkpoint()
    assert packaged == str(ROOT / "diffusion_mlm" / "checkpoints" / "stories-generator")
    Path("results").mkdir()
    Path("results/final-model").symlink_to(checkpoint)
    assert default_checkpoint() == "results/final-model"
    assert run("generate", "--seed", 0)[0] == 0


def test_generate_needs_no_arguments(run: Command) -> None:
    """The package carries a model that writes stories."""
    assert Path(default_checkpoint(), "model.safetensors").is_file()
    status, out, err = run("generate")
    assert status == 0
    assert err.startswith("seed ")
    assert len(out.split()) > 20


def start_generating(checkpoint: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """A process that writes far more samples than anybody waits for."""
    command = [sys.executable, "generate.py", "--checkpoint", checkpoint, "--seed", "1", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupt_ends_with_130_after_the_samples_that_are_complete(checkpoint: str) -> None:
    options = ["--num-samples", "100000", "--batch-size", "1", "--output-format", "json"]
    process = start_generating(checkpoint, *options)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first["seed"] == 1
    assert [json.loads(line)["seed"] for line in out.splitlines()] == list(range(2, 2 + len(out.splitlines())))
    assert (process.returncode, err) == (130, "diffusion-mlm: interrupted.\n")


def test_closed_standard_output_is_no_error_and_any_locale_will_do(checkpoint: str) -> None:
    options = ["--num-samples", "100000", "--batch-size", "1", "--prefix", "naïve 😀"]
    process = start_generating(checkpoint, *options, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert first.startswith("na\\xefve \\U0001f600 ")
    assert "Traceback" not in err and "Exception" not in err


# train


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("One day a fox lived in a small house.\n" * 40)
    return str(file)


def write_bad_files(directory: Path) -> None:
    (directory / "empty.txt").write_text("")
    (directory / "blank.txt").write_text("\n \n\n")
    (directory / "binary.bin").write_bytes(bytes(range(256)) * 40)
    (directory / "utf16.txt").write_text("One day a fox.\n" * 40, encoding="utf-16")
    (directory / "latin1.txt").write_text("One day a naïve fox.\n" * 40, encoding="latin-1")


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing.txt", ("missing.txt",)),
        ("empty.txt", ("empty.txt", "empty")),
        ("blank.txt", ("blank.txt", "0 usable")),
        ("binary.bin", ("binary.bin",)),
        ("utf16.txt", ("utf16.txt", "utf-16")),
        ("latin1.txt", ("latin1.txt", "line 1")),
        (".", ()),
    ],
)
def test_training_file_that_cannot_be_used_is_named(
    run: Command, checkpoint: str, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    write_bad_files(tmp_path)
    for option in ("--train-file", "--eval-file"):
        argv = ["--train-file", tmp_path / "good.txt", option, tmp_path / name]
        (tmp_path / "good.txt").write_text("One day a fox.\n" * 40)
        status, out, err = run("train", "--model-name", checkpoint, *argv)
        assert (status, out) == (2, "")
        assert_one_sentence(err, *words)
        assert files_here() == []


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--learning-rate", "0"], ("learning_rate", "0")),
        (["--learning-rate=-1e-4"], ("learning_rate", "-0.0001")),
        (["--learning-rate", "nan"], ("learning_rate", "nan")),
        (["--batch-size", "0"], ("per_device_train_batch_size", "0")),
        (["--gradient-accumulation-steps", "0"], ("gradient_accumulation_steps", "0")),
        (["--epochs", "0"], ("num_train_epochs", "0")),
        (["--max-steps", "-5"], ("max_steps", "-5")),
        (["--save-steps", "0", "--save-strategy", "steps"], ("save_steps",)),
        (["--seed", "-1"], ("seed", "-1")),
        (["--schedule", "cosin"], ("--schedule", "cosin", "cosine")),
        (["--objective", "elb"], ("--objective", "elb", "elbo")),
        (["--label-smoothing-factor", "0.1"], ("label_smoothing_factor", "0.1")),
        (["--mask-levels", "0.5", "1.5", "--masking", "levels"], ("mask_levels", "1.5")),
        (["--no-prefix-share", "2"], ("no_prefix_share", "2")),
        (["--span-length", "0"], ("span_length", "0")),
        (["--prefix-length", "many"], ("prefix_length", "many")),
        (["--prefix-length", "30"], ("--prefix-length", "30", "32")),
        (["--max-length", "2"], ("--max-length", "2")),
        (["--max-length", "33"], ("--max-length", "33", "32")),
        (["--validation", "-1"], ("--validation", "-1")),
        (["--preset", "roberta-tiny"], ("--preset", "--model-name")),
        (["--resume-from-checkpoint", "true"], ("--resume-from-checkpoint",)),
        (["--resume-from-checkpoint", "./missing"], ("--resume-from-checkpoint", "./missing")),
        (["--lerning-rate", "1"], ("--lerning-rate", "--learning-rate")),
        (["--max-length", "long"], ("--max-length", "long")),
        (["--batch-size", "5000"], ("5000",)),
        (["--lr-scheduler-type", "cosin"], ("cosin",)),
        (["--rate-distribution", "beta"], ("rate_parameters", "2 numbers", "beta")),
        (["--rate-distribution", "gamma"], ("--rate-distribution", "gamma", "beta")),
        (["--early-stopping-patience", "2", "--validation", "0"], ("--early-stopping-patience", "--validation")),
        (["--lora-rank", "0"], ("--lora-rank", "0")),
        (["--attention-dropout", "1.5"], ("--attention-dropout", "[0, 1)", "1.5")),
        (["--lora-alpha", "4"], ("--lora-alpha", "--lora-rank")),
        (["--lora-rank", "2", "--lora-targets", "query", "quary"], ("targets", "'quary'", "query, value")),
    ],
)
def test_wrong_use_of_train_is_one_sentence_and_writes_nothing(
    run: Command, checkpoint: str, text_file: str, argv: list[str], words: tuple[str, ...]
) -> None:
    status, out, err = run("train", "--model-name", checkpoint, "--train-file", text_file, *argv)
    assert (status, out) == (2, "")
    assert_one_sentence(err, *words)
    assert files_here() == []


def test_model_from_scratch_on_own_text_needs_a_tokenizer(run: Command, text_file: str) -> None:
    status, _, err = run("train", "--preset", "roberta-tiny", "--train-file", text_file)
    assert status == 2
    assert_one_sentence(err, "`--preset`", "`--tokenizer`")
    assert files_here() == []


def test_output_directory_that_is_in_use_is_left_alone(run: Command, checkpoint: str, text_file: str) -> None:
    Path("file").write_text("mine")
    Path("used/checkpoint-10").mkdir(parents=True)
    argv = ["train", "--model-name", checkpoint, "--train-file", text_file, "--output-dir"]
    status, _, err = run(*argv, "file")
    assert status == 73
    assert_one_sentence(err, "`--output-dir`", "'file'")
    status, _, err = run(*argv, "used")
    assert status == 2
    assert_one_sentence(err, "`--output-dir`", "'used'", "--resume-from-checkpoint", "--overwrite-output")
    assert files_here() == ["file", "used", "used/checkpoint-10"]
    assert Path("file").read_text() == "mine"


def test_what_train_saves_generate_reads(run: Command, tmp_path: Path) -> None:
    """From one's own text, a character tokenizer and a model from scratch to a written text."""
    text = tmp_path / "text.txt"
    text.write_text("One day a fox lived in a small house.\n" * 40)
    options = [
        "--preset",
        "roberta-tiny",
        "--tokenizer",
        "char",
        "--max-length",
        16,
        "--batch-size",
        8,
        "--max-steps",
        2,
    ]
    quiet = ["--disable-tqdm", "true", "--report-to", "none", "--use-cpu", "true", "--save-strategy", "no"]
    status, _, err = run("train", "--train-file", text, *options, *quiet, "--output-dir", "out")
    assert status == 0, err
    assert "Trained " in err and "  model        out/final-model" in err and "  log          out/log.jsonl" in err
    status, out, _ = run("generate", "--checkpoint", "out/final-model", "--prefix", "One ", "--max-new-tokens", 6)
    assert status == 0
    assert out.startswith("One ") and len(out) == len("One ") + 6 + 1
    assert set(out) <= set(text.read_text())
    assert (
        train_characters(text.read_text().splitlines()).get_vocab() == load_generator("out/final-model")[1].get_vocab()
    )
