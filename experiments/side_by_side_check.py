"""Opens the page of `side_by_side.py` in a browser without a network, plays it, and reads both texts at the end.

    pip install playwright
    python experiments/side_by_side_check.py --browser /usr/bin/chromium

Writes `results/side_by_side_check.json`. Exit status 1 if a claim does not hold.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse

TIMEOUT = 60_000  # milliseconds


@dataclass
class SideBySideCheckArguments:
    """What is opened, and with what."""

    browser: str = field(default="/usr/bin/chromium", metadata={"help": "Chromium or Chrome."})
    page: str = field(default="results/side_by_side", metadata={"help": "Files, without .html and .json."})
    output: str = field(default="results/side_by_side_check.json", metadata={"help": "What was found."})

    def __post_init__(self) -> None:
        for name in (f"{self.page}.html", f"{self.page}.json"):
            if not Path(name).is_file():
                raise ValueError(f"`--page` is {self.page!r}, and there is no {name}: run side_by_side.py.")


def play(browser: str, page: Path) -> dict[str, Any]:
    """What is seen at the beginning, whenever one text is done, and at the end of one play."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ValueError("A browser is driven by playwright: run `pip install playwright`.") from None
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = chromium.new_context(offline=True)
        context.set_default_timeout(TIMEOUT)
        opened, asked, errors = context.new_page(), [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(page.resolve().as_uri())

        def masks() -> list[int]:
            panes = opened.locator(".pane")
            return [panes.nth(place).locator(".cell.mask").count() for place in range(panes.count())]

        opened.keyboard.press("Home")  # the page plays as soon as it is open
        first = masks()
        begin = time.perf_counter()
        opened.locator("#play").click()
        opened.locator("#play", has_text="Pause").wait_for()
        opened.locator("#play", has_text="Play").wait_for()  # by itself, at the end
        seconds = time.perf_counter() - begin
        found = {
            "titles": opened.locator(".pane h2").all_text_contents(),
            "texts": opened.locator(".pane .text").all_text_contents(),
            "notes": opened.locator(".pane > p.pale").all_text_contents(),
            "masks": [first, masks()],
            "seconds": round(seconds, 1),
            "speed": opened.locator("#speed").input_value(),
            "requests": len(asked),
            "errors": errors,
        }
        chromium.close()
    return found


def main(argv: list[str]) -> int:
    (args,) = parse([SideBySideCheckArguments], argv, "side_by_side_check")
    figures = json.loads(Path(f"{args.page}.json").read_text(encoding="utf-8"))
    written = [figures[name] for name in ("diffusion", "autoregressive")]
    found = play(args.browser, Path(f"{args.page}.html"))
    longest = max(of["seconds"] for of in written)
    claims = {
        "the texts at the end are those that were written": found["texts"] == [of["text"] for of in written],
        "the page begins with nothing but masks and ends without any": found["masks"]
        == [[figures["settings"]["new_tokens"]] * 2, [0, 0]],
        "both are said to be done when they were": found["notes"]
        == [f"step {of['forwards']} of {of['forwards']}, done after {of['seconds']:.2f} s" for of in written],
        "it does not play faster than it says": found["seconds"] >= longest / float(found["speed"]),
        "the browser asks for nothing but the page": found["requests"] == 1 and not found["errors"],
    }
    text = json.dumps({"claims": claims, **found}, indent=1, ensure_ascii=False)
    Path(args.output).write_text(f"{text}\n", encoding="utf-8")
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
