"""What is claimed of traces, checked on a real run: replay, page, animation and pictures of a text of 128 tokens.

    pip install 'diffusion-mlm[viz]' playwright
    python experiments/trace_check.py --browser /usr/bin/chromium

Writes `results/generation.gif`, `results/trace.png` and what it found to `results/trace_check.json`. The page is
opened from disk in a browser without a network. Exit status 1 if a claim does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm import TraceRecorder, generate, load_generator
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.visualization.html import trace_page
from diffusion_mlm.visualization.picture import make_gif, make_png, make_svg
from diffusion_mlm.visualization.trace import Trace, frame_text

ROOT = Path(__file__).parents[1]


@dataclass
class TraceCheckArguments:
    """What is run, and where it goes."""

    browser: str = field(default="/usr/bin/chromium", metadata={"help": "Chromium or Chrome; empty: leave it out."})
    prefix: str = field(default="Once upon a time", metadata={"help": "What is written on from."})
    new_tokens: int = field(default=128, metadata={"help": "Tokens of the text."})
    seed: int = field(default=1, metadata={"help": "Of the text."})
    output: str = field(default="results/trace_check.json", metadata={"help": "What was found."})
    gif: str = field(default="results/generation.gif", metadata={"help": "The animation, of a text of usual length."})
    png: str = field(default="results/trace.png", metadata={"help": "The page, as the browser shows it."})


def timed(make: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """What a function returns, and how long it took: by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make(*arguments)
    spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - cpu}
    return made, {name: round(value, 2) for name, value in spent.items()}


def open_page(browser: str, page: Path, png: str) -> dict[str, Any]:
    """What a browser without a network shows of a page at its end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = chromium.new_context(offline=True, viewport={"width": 900, "height": 760})
        opened, asked, errors = context.new_page(), [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(page.as_uri())
        opened.keyboard.press("Home")
        first = opened.locator(".cell.mask").count()
        opened.keyboard.press("End")
        text = opened.locator(".text").text_content()
        last = opened.locator(".cell.mask").count()
        for _ in range(opened.locator(".shown").count() * 2 // 5):
            opened.keyboard.press("ArrowLeft")
        opened.locator(".shown").nth(6).click()
        if png:
            opened.screenshot(path=png)
        chromium.close()
    return {"text": text, "masks": [first, last], "requests": len(asked), "errors": errors}


def main(argv: list[str]) -> int:
    (args,) = parse([TraceCheckArguments], argv, "trace_check")
    model, tokenizer = load_generator(default_checkpoint())

    whole: dict[str, Any] = {"max_new_tokens": args.new_tokens, "stride": args.new_tokens // 2}  # in two windows

    def recorded(settings: dict[str, Any]) -> tuple[Trace, str]:
        recorder = TraceRecorder(tokenizer, alternatives=4)
        out = generate(model, tokenizer, args.prefix, seed=args.seed, recorder=recorder, **settings)
        return recorder.trace(seed=args.seed), out.texts[0]

    (trace, text), generating = timed(recorded, whole)
    plain = generate(model, tokenizer, args.prefix, seed=args.seed, **whole).texts[0]
    sample = trace.samples[0]
    page, making_page = timed(trace_page, trace)
    gif, making_gif = timed(make_gif, sample)
    png, making_png = timed(make_png, sample)
    svg, making_svg = timed(make_svg, sample)
    Path(args.gif).write_bytes(make_gif(recorded({})[0].samples[0]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        trace.save(file)
        code = "import sys; from diffusion_mlm.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "replay", str(file)]
        replayed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        loaded = frame_text(Trace.load(file).samples[0].last_frame())
        target = Path(folder, "page.html")
        target.write_text(page, encoding="utf-8")
        shown = open_page(args.browser, target, args.png) if args.browser else None
        size = file.stat().st_size
    claims = {
        "a recorder changes nothing": text == plain,
        "replay prints the text": replayed == f"{text}\n",
        "the trace ends in the text": loaded == text,
        "the page is below 300 kB": len(page.encode()) < 300_000,
        "GIF and PNG take less than 10 s of one core": making_gif["processor_seconds"] < 10
        and making_png["processor_seconds"] < 10,
    }
    if shown is not None:
        claims["the last frame in the browser is the text"] = shown["text"] == text
        claims["the browser asks for nothing but the page"] = shown["requests"] == 1 and not shown["errors"]
        claims["the browser shows all masks, then none"] = shown["masks"] == [sample.num_positions, 0]
    found = {
        "claims": claims,
        "new_tokens": sample.num_positions,
        "steps": len(sample.steps),
        "bytes": {"trace": size, "page": len(page.encode()), "gif": len(gif), "png": len(png), "svg": len(svg)},
        "load_average": round(os.getloadavg()[0], 1),  # of the machine, on which others may be at work
        "cores": os.cpu_count(),
        "generating, with a recorder": generating,
        "page": making_page,
        "gif": making_gif,
        "png": making_png,
        "svg": making_svg,
        "text": text,
    }
    Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(report_error(error))
