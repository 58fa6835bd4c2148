"""The live view: what reaches a terminal, a pipe, and what never does."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import RobertaForMaskedLM

from diffusion_mlm.generation import generate
from diffusion_mlm.tokenization import encode_text, train_characters
from diffusion_mlm.visualization.terminal import TerminalStreamer, printable


def make_console(is_terminal: bool, encoding: str = "utf-8", width: int = 80) -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=is_terminal, width=width, legacy_windows=False), raw


def test_without_a_terminal_each_draft_is_one_plain_line(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    console, raw = make_console(is_terminal=False, width=20)  # narrower than the text
    streamer = TerminalStreamer(story_tokenizer, console)
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 6, "steps": 3}
    (text,) = generate(tiny_roberta, story_tokenizer, "One day", streamer=streamer, **asked).texts
    lines = raw.getvalue().decode().splitlines()
    assert [line[:7] for line in lines] == ["   1  O", "   2  O", "   3  O"]
    assert [line.count("░░░") for line in lines] == [4, 2, 0]
    assert all(line[6:].startswith("One day") for line in lines)
    assert lines[-1][6:] == text
    assert b"\x1b" not in raw.getvalue()


def test_on_a_terminal_the_view_is_taken_down_at_the_end(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    console, raw = make_console(is_terminal=True)
    streamer = TerminalStreamer(story_tokenizer, console)
    generate(tiny_roberta, story_tokenizer, "One day", streamer=streamer, seed=4, max_new_tokens=3)
    shown = raw.getvalue().decode()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden once and comes back
    assert shown.rstrip().endswith("\x1b[2K")  # the last line is erased: the caller prints the text


def test_new_tokens_stand_out_and_settled_ones_do_not(story_tokenizer: Any) -> None:
    console, _ = make_console(is_terminal=True)
    streamer = TerminalStreamer(story_tokenizer, console)
    mask = story_tokenizer.mask_token_id
    one, day, fox = encode_text(story_tokenizer, "One day fox")
    streamer.put(torch.tensor([one]))
    for draft, shown, standing_out in (([mask, fox], "One ░░░ fox", "fox"), ([day, fox], "One day fox", " day")):
        text = streamer._render(torch.tensor([one, *draft]))
        styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
        assert text.plain == shown
        assert [piece for piece, style in styles.items() if style == "bold underline"] == [standing_out]
        streamer.put_draft(torch.tensor(draft))
    streamer.end()


def test_parts_of_a_word_are_not_torn_apart() -> None:
    tokenizer = train_characters(["becoming"])
    mask = tokenizer.mask_token_id
    streamer = TerminalStreamer(tokenizer, make_console(is_terminal=False)[0])
    ids = torch.tensor(encode_text(tokenizer, "becoming"))
    streamer.put_draft(ids.masked_fill(torch.tensor([0, 1, 0, 0, 1, 1, 0, 0]).bool(), mask))
    assert streamer._render(ids).plain == "becoming"


def test_text_ends_at_the_end_token(story_tokenizer: Any) -> None:
    console, raw = make_console(is_terminal=False)
    streamer = TerminalStreamer(story_tokenizer, console)
    (day,) = encode_text(story_tokenizer, "day")
    streamer.put_draft(torch.tensor([[day, story_tokenizer.eos_token_id, day, story_tokenizer.mask_token_id]]))
    assert raw.getvalue().decode() == "   1  day\n"


def test_a_console_that_cannot_show_blocks_gets_underscores(story_tokenizer: Any) -> None:
    console, raw = make_console(is_terminal=False, encoding="ascii")
    TerminalStreamer(story_tokenizer, console).put_draft(torch.tensor([story_tokenizer.mask_token_id]))
    assert raw.getvalue() == b"   1  ___\n"


def test_streamer_begins_anew_after_the_end(story_tokenizer: Any) -> None:
    console, raw = make_console(is_terminal=False)
    streamer = TerminalStreamer(story_tokenizer, console)
    one, day, fox = encode_text(story_tokenizer, "One day fox")
    for prompt in (one, day):
        streamer.put(torch.tensor([prompt]))
        streamer.put_draft(torch.tensor([fox]))
        streamer.put(torch.tensor([fox]))
        streamer.end()
    assert raw.getvalue().decode() == "   1  One fox\n   1  day fox\n"


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(text=st.text(alphabet=[chr(i) for i in range(160)], max_size=12), is_terminal=st.booleans())
def test_control_characters_in_text_never_reach_the_terminal(text: str, is_terminal: bool) -> None:
    tokenizer = train_characters([chr(i) for i in range(160)])
    console, raw = make_console(is_terminal)
    streamer = TerminalStreamer(tokenizer, console)
    streamer.put(torch.tensor(encode_text(tokenizer, text), dtype=torch.int64))
    streamer.put_draft(torch.tensor(encode_text(tokenizer, "x\x1b[31m\x9b2J\x07[bold]")))
    streamer.end()
    shown = raw.getvalue().decode()
    for code in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\x1b[1;4m", "\x1b[2m", "\x1b[0m"):
        shown = shown.replace(code, "")  # what the view itself sends
    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\r", "\t"}
    assert "[bold]" in shown.replace("\n", "")  # text is no markup


@pytest.mark.parametrize("text", ["naïve", "日本\u3000語", "a\u00a0b", "👩\u200d👩", "שלום", "e\u0301", "a\n\tb"])
def test_text_of_every_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_terminal_codes_become_replacement_characters() -> None:
    assert printable("a\x1b[2Jb\x00\x9b\x7f\r") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\ufffd"
