"""The picture of what the model sees, on the built-in stories and on hand-made units."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from diffusion_mlm import story_language
from diffusion_mlm.tokenization import train_bpe, train_characters
from experiments.masking_viz import (
    DOTS_PER_INCH,
    MARGIN,
    Piece,
    Unit,
    draw_picture,
    main,
    mask_at_all_levels,
    pieces_of,
    units_of,
)

ROOT = Path(__file__).parents[1]
STORY = story_language.sample(1, seed=0)[0]
WORDS = [Piece("Once", False), Piece("upon", True), Piece("a", True), Piece("time", True), Piece(".", False)]


def test_visible_tokens_join_to_words_and_masks_stand_apart() -> None:
    units = units_of(WORDS, [False, False, True, False, False], prefix_length=1)
    assert units == [
        Unit("prefix", "Once", False),
        Unit("visible", "upon", True),
        Unit("masked", "", True),
        Unit("visible", "time.", True),
    ]


def test_a_visible_word_ending_is_joined_to_the_mask_before_it() -> None:
    assert units_of(WORDS, [True] * 4 + [False], prefix_length=0)[-1] == Unit("visible", ".", False)


@pytest.mark.parametrize("text", [STORY, "A  naïve 🙂 fox,\nthen “two”.", "日本語", "<mask> is text here"])
@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_all_pieces_together_are_the_text(text: str, kind: str) -> None:
    tokenizer = train_bpe([STORY], vocab_size=300) if kind == "bpe" else train_characters([text])
    ids, pieces = pieces_of(tokenizer, text)
    assert len(ids) == len(pieces)
    together = "".join(" " * piece.space_before + piece.text for piece in pieces)
    assert together.split() == text.replace("\n", "↵").split()


def test_unknown_words_are_shown_as_the_model_sees_them() -> None:
    _, pieces = pieces_of(story_language.tokenizer(), "Once upon a zeppelin")
    assert pieces[-1] == Piece("<unk>", True)


def test_each_level_masks_its_share_and_a_part_of_the_level_above() -> None:
    pieces, levels = mask_at_all_levels(story_language.tokenizer(), STORY, prefix_length=5, seed=0)
    maskable = len(pieces) - 5
    assert [level.mask_rate for level in levels] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [level.num_masked for level in levels] == [-(-maskable * tenths // 10) for tenths in range(10, 0, -1)]
    assert {level.num_maskable for level in levels} == {maskable}
    visible_words: set[str] = set()
    for level in levels:
        shown = {word for unit in level.units if unit.kind == "visible" for word in unit.text.strip('.,"').split()}
        assert visible_words <= shown
        visible_words = shown


def test_prefix_is_kept_at_every_level() -> None:
    pieces, levels = mask_at_all_levels(story_language.tokenizer(), STORY, prefix_length=5, seed=0)
    words = [piece.text for piece in pieces[:5]]
    assert all([unit.text for unit in level.units if unit.kind == "prefix"] == words for level in levels)


def test_seed_chooses_the_masks() -> None:
    rows = [mask_at_all_levels(story_language.tokenizer(), STORY, 5, seed)[1] for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


@pytest.mark.parametrize(
    "text",
    [STORY, "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 4, "$x^2$ & $y$", "ab " * 90],
    ids=["story", "one long word", "mathematics", "many short words"],
)
def test_nothing_in_the_picture_overlaps_or_leaves_the_margins(text: str) -> None:
    tokenizer = train_bpe([STORY], vocab_size=300)
    pieces, levels = mask_at_all_levels(tokenizer, text[:250], prefix_length=3, seed=0)
    figure = draw_picture(levels[::4], pieces, prefix_length=3)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (page,) = figure.axes
    drawn = [*page.texts, *(patch for patch in page.patches if isinstance(patch, FancyBboxPatch))]
    boxes = [artist.get_window_extent(renderer) for artist in drawn]
    width, height = (round(inches * DOTS_PER_INCH) for inches in figure.get_size_inches())
    margin = MARGIN * DOTS_PER_INCH / 72
    for place, box in enumerate(boxes):
        assert margin - 4 <= box.x0 < box.x1 <= width - margin + 4
        assert margin / 2 <= box.y0 < box.y1 <= height - margin / 2
        for other in boxes[:place]:  # letters may lean over their neighbours by a pixel or two
            assert min(box.x1, other.x1) - max(box.x0, other.x0) < 3 or min(box.y1, other.y1) <= max(box.y0, other.y0)


def test_command_prints_a_row_per_level_and_writes_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    target = tmp_path / "new folder" / "masking.png"
    assert main(["--output", str(target)]) == 0
    printed = capsys.readouterr().out
    for tenths in range(1, 11):
        assert f" {tenths}0% " in printed
    assert printed.count(f"[{' '.join(STORY.split()[:5])}] ") == 10
    assert str(target) in printed
    pieces, levels = mask_at_all_levels(story_language.tokenizer(), STORY, 5, 0)
    expected = draw_picture(levels, pieces, 5).get_size_inches() * DOTS_PER_INCH
    with Image.open(target) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (1800, round(expected[1]))
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(255, 255, 255), (0, 114, 178), (230, 159, 0)} <= colours


def test_characters_that_the_font_lacks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_characters(["日本 text"]).save_pretrained(tmp_path)
    options = [
        "--text",
        "日本 text",
        "--prefix-length",
        "2",
        "--output",
        str(tmp_path / "masking.png"),
        "--no-terminal",
    ]
    assert main(["--tokenizer", str(tmp_path), *options]) == 0
    assert capsys.readouterr().err == "The picture's font lacks 2 of the characters: boxes stand for them.\n"


def test_table_tells_the_kinds_apart_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--text", "Once upon a time", "--prefix-length", "2", "--output", ""]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[Once upon] ___ ___" in printed


def test_other_tokenizers_are_loaded_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_bpe([STORY], vocab_size=300).save_pretrained(tmp_path)
    assert main(["--tokenizer", str(tmp_path), "--text", "Unbelievable!", "--prefix-length", "1", "--output", ""]) == 0
    assert "[U]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefix-length", "-1"], "`--prefix-length` must be 0 or more, not -1."),
        (["--text", "  "], "`--text` must hold at least one token to mask"),
        (["--text", "Once upon", "--prefix-length", "2"], "which is 2, not 2"),
        (["--text", "a" + " a" * 299], "`--text` has 300 tokens, and 256 are the most"),
        (["--output", "masking.bmp"], "`--output` must end in .png, .pdf, .svg, unlike 'masking.bmp'."),
        (["--no-terminal", "--output", ""], "shows nothing"),
        (["--tokenizer", "/nowhere/at/all"], "`--tokenizer` is '/nowhere/at/all', and there is no such directory."),
        (["--prefix-lenght", "3"], "Did you mean --prefix"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_tokenizer_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tokenizer", str(tmp_path), "--output", ""]) == 2
    assert f"`--tokenizer` is {str(tmp_path)!r}" in capsys.readouterr().err


def test_script_runs_from_the_command_line() -> None:
    command = [sys.executable, str(ROOT / "experiments" / "masking_viz.py"), "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--prefix-length" in result.stdout
