"""`diffusion-mlm replay` and the files of `generate --trace`: the same text, without a model."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from diffusion_mlm.cli import main
from diffusion_mlm.visualization.terminal_text import MASK_GLYPH, frame_as_text, progress_line, replay
from diffusion_mlm.visualization.trace import Reveal, Trace, TraceSample, TraceStep

Command = Callable[..., tuple[int, str, str]]
SAMPLE = TraceSample(
    ("One", 3),
    (
        TraceStep((Reveal(1, " fox", 0.5),)),
        TraceStep((Reveal(0, " red", 0.5), Reveal(2, "\x1b[2J", 0.5))),
    ),
    "One red fox\x1b[2J",
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> tuple[int, str, str]:
        status = main([str(word) for word in argv])
        return (status, *capsys.readouterr())

    return run


def test_replay_prints_what_generate_did(run: Command, checkpoint: str) -> None:
    asked = ["--checkpoint", checkpoint, "--prefix", "One day", "--num-samples", 2, "--seed", 3, "--trace", "t.json"]
    status, out, _ = run("generate", *asked, "--html", "deep/er/t.html", "--svg", "t.svg")
    assert status == 0
    status, replayed, err = run("replay", "t.json")
    assert status == 0 and replayed == out
    assert err.count("One day") == 2 * 6  # five steps, and what stood there before them
    assert run("replay", "t.json", "--text", 2)[1] == out.split("\n\n")[1]
    assert Path("deep/er/t.html").stat().st_size > 10_000 and "<svg" in Path("t.svg").read_text()
    settings = Trace.load("t.json").settings
    assert settings == {"num_return_sequences": 2, "seed": 3}
    texts = [json.loads(line)["text"] for line in run("replay", "t.json", "--output-format", "json")[1].splitlines()]
    assert "\n\n".join(texts) == out.rstrip("\n")
    assert run("replay", "t.json", "--gif", "new/t.gif", "--png", "t.png", "--text", 2)[1] == "new/t.gif\nt.png\n"
    assert Path("new/t.gif").read_bytes()[:6] == b"GIF89a"


@pytest.mark.parametrize(
    "argv",
    [["infill", "One <mask:2> day", "<mask:1-2> fox"], ["edit", "--text", "One day in May", "--strength", 0.5]],
    ids=["infill", "edit"],
)
def test_rewriting_is_traced_too(run: Command, checkpoint: str, argv: list[object]) -> None:
    status, out, _ = run(*argv, "--seed", 3, "--checkpoint", checkpoint, "--trace", "t.json", "--html", "t.html")
    assert status == 0 and Path("t.html").is_file()
    assert run("replay", "t.json")[1] == out


def test_replay_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    Trace((SAMPLE,)).save(tmp_path / "t.json")
    code = (
        "import sys; from diffusion_mlm.cli import main; status = main(sys.argv[1:]);"
        "sys.exit(status or sum(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    for argv in ([], ["--html", str(tmp_path / "t.html")]):
        command = [sys.executable, "-c", code, "replay", str(tmp_path / "t.json"), *argv]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_states_are_told_apart_without_colour() -> None:
    frames = list(SAMPLE.frames())
    texts = [frame_as_text(frame) for frame in frames]
    assert [text.plain for text in texts] == [
        f"One {MASK_GLYPH} {MASK_GLYPH} {MASK_GLYPH}",
        f"One {MASK_GLYPH} fox {MASK_GLYPH}",
        "One red fox\ufffd[2J",
    ]
    styles = {texts[1].plain[span.start : span.end]: str(span.style) for span in texts[1].spans if span.style}
    assert styles == {"One": "italic", MASK_GLYPH: "dim", "fox": "bold underline"}
    assert progress_line(frames[1], 1, 2) == "━" * 8 + "╌" * 16 + "  step 1 of 2, 2 of 3 masked"


def test_a_terminal_sees_every_frame_and_the_view_is_taken_down() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    pauses: list[float] = []
    replay(SAMPLE, console, seconds=3.0, sleep=pauses.append)
    shown = console.file.getvalue()
    assert pauses == [1.0, 1.0, 1.0]
    assert all(f"step {step} of 2" in shown for step in range(3))
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["replay"], ("`trace` is missing",)),
        (["replay", "no.json"], ("'no.json'", "no such file")),
        (["replay", "bad.json"], ("'bad.json'", "no trace")),
        (["replay", "t.json", "--text", "2"], ("`--text` is 2", "holds 1")),
        (["replay", "t.json", "--seconds", "-1"], ("`--seconds`", "-1")),
        (["replay", "t.json", "--seconds", "x"], ("--seconds", "'x'")),
        (["replay", "t.json", "--gif", "t.png"], ("`--gif` is 't.png'", ".gif")),
        (["replay", "t.json", "--html", "."], ("`--html`", "directory")),
        (["replay", "t.json", "--gfi", "t.gif"], ("--gfi", "Did you mean --gif")),
        (["generate", "--trace", "t.html", "--html", "t.html"], ("`--html` and `--trace`", "two files")),
        (["generate", "--html", "t.htm"], ("`--html` is 't.htm'", ".html")),
        (["generate", "--trace", "t.json", "--trace-alternatives", "-1"], ("`--trace-alternatives`", "-1")),
        (["generate", "--trace", "t.json", "--output-file", "o.jsonl"], ("`--trace`", "--output-file")),
        (["infill", "<mask>", "--png", "t.gif"], ("`--png`", ".png")),
    ],
)
def test_mistakes_are_wrong_use_and_one_sentence(run: Command, argv: list[str], words: tuple[str, ...]) -> None:
    Trace((SAMPLE,)).save("t.json")
    Path("bad.json").write_text("{}", encoding="utf-8")
    status, out, err = run(*argv)
    assert status == 2 and not out and "Traceback" not in err
    (message,) = [line for line in err.splitlines() if line.startswith("diffusion-mlm: ")]
    assert all(word in message for word in words), message


def test_without_pillow_the_extra_is_named(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    Trace((SAMPLE,)).save("t.json")
    status, _, err = run("replay", "t.json", "--gif", "t.gif")
    assert status == 2 and "`--gif`" in err and "pip install 'diffusion-mlm[viz]'" in err
