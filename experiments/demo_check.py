"""Opens the demo in a real browser: writes, fills in, reads the texts back, and tries to do harm.

    pip install 'diffusion-mlm[demo]' playwright
    python experiments/demo_check.py --browser /usr/bin/chromium

Starts `diffusion-mlm demo` with the packaged story generator on a port of its own, and writes `results/demo_check.json`
and the screenshot `results/demo.png`. Exit status 1 if anything that is claimed does not hold.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_mlm import load_generator
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.checkpoint_arguments import default_checkpoint
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.generation import generate
from diffusion_mlm.visualization.trace import Trace

ROOT = Path(__file__).parents[1]
HARM = {
    "markup": "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "templates": "${document.title='owned'} {{7*7}} </div></textarea>",
    "control characters": "\x1b[2J\x07\x08\u202e\u200b words",
    "very long": "word " * 5000,
}


@dataclass
class DemoCheckArguments:
    """What is opened, and with what."""

    browser: str = field(default="/usr/bin/chromium", metadata={"help": "Chromium or Chrome."})
    prefix: str = field(default="Once upon a time", metadata={"help": "What is written on from."})
    seed: int = field(default=1, metadata={"help": "Of the text."})
    output: str = field(default="results/demo_check.json", metadata={"help": "What was found."})
    screenshot: str = field(default="results/demo.png", metadata={"help": "The page with a finished text."})


def start(queue_size: int) -> tuple[subprocess.Popen[bytes], str]:
    """The demo as its own process, and its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from diffusion_mlm.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--port", str(port), "--queue-size", str(queue_size)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        if process.poll() is not None:
            raise ValueError("The demo ended at once: run `diffusion-mlm demo` to see why.")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return process, address
        except OSError:
            time.sleep(0.5)
    process.kill()
    raise ValueError("The demo does not answer.")


def write(page: Any, prefix: str, seed: int) -> str:
    """Writes on from a prefix in the page and returns what it shows in the end, a text or a problem."""
    page.locator("#write-prefix textarea").fill(prefix)
    page.locator("#write-seed input").fill(str(seed))
    page.locator("#write-output").evaluate("node => node.dataset.old = node.innerHTML")
    page.locator("#write-go").click()
    page.wait_for_function(
        """() => { const node = document.querySelector("#write-output");
        return node.innerHTML !== node.dataset.old && (node.querySelector(".problem") || node.textContent.includes("forwards in")); }""",
        timeout=120_000,
    )
    return str(page.locator("#write-output .canvas, #write-output .problem").first.text_content())


def check(args: DemoCheckArguments, address: str, driver: Any) -> dict[str, Any]:
    """What a browser finds, and whether each claim holds."""
    chromium = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    page = context.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    context.on(
        "request", lambda r: elsewhere.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else 0
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#write-prefix textarea", timeout=120_000)
    title = page.title()

    model, tokenizer = load_generator(default_checkpoint())
    expected = generate(model, tokenizer, args.prefix, seed=args.seed, order="entropy", temperature=1.0).texts[0]
    begin = time.perf_counter()
    shown = write(page, args.prefix, args.seed)
    found: dict[str, Any] = {"text": shown, "seconds": round(time.perf_counter() - begin, 1)}
    claims = {"the text is what generate writes": shown == expected}
    page.screenshot(path=args.screenshot)
    with page.expect_download() as download:
        page.locator("#write-output ~ * a[download], .file-preview a[download]").first.click()
    trace = Trace.load(download.value.path())
    claims["the trace that is downloaded ends in it"] = trace.samples[0].text == expected

    for name, prefix in HARM.items():
        answer = write(page, prefix, 0)
        clean = page.title() == title and not page.locator("#write-output script, #write-output img").count()
        claims[f"{name}: harmless"] = clean and bool(answer)
        found[name] = answer[:160]
    claims["the text after them is the same"] = write(page, args.prefix, args.seed) == expected

    page.get_by_role("tab", name="Fill in").click()
    page.locator("#fill-words label", has_text="Rusty").click()
    page.locator("#fill-seed input").fill("0")
    page.locator("#fill-go").click()
    page.wait_for_function("() => document.querySelector('#fill-output').textContent.includes('forwards in')")
    filled = page.locator("#fill-output .canvas").first
    found["filled"] = filled.text_content()
    claims["words are filled in where they were clicked"] = filled.locator(".given").count() > 1
    claims["nothing is fetched from elsewhere"] = not elsewhere
    claims["no error in the page"] = not errors
    found["elsewhere"], found["errors"] = sorted(set(elsewhere)), errors
    context.close()

    found["ten at once"] = crowd(chromium, address, args)
    claims["ten visitors at once get the text, or are told that the queue is full"] = all(
        text == expected or "full" in text for text in found["ten at once"]
    )
    chromium.close()
    found["ten at once"] = {
        "answered": sum(text == expected for text in found["ten at once"]),
        "turned away": sum("full" in text for text in found["ten at once"]),
    }
    return {"claims": claims, **found}


def crowd(chromium: Any, address: str, args: DemoCheckArguments, number: int = 10) -> list[str]:
    """What so many visitors see who press the button at once."""
    contexts = [chromium.new_context() for _ in range(number)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(address)
        page.locator("#write-prefix textarea").wait_for(timeout=120_000)
        page.locator("#write-seed input").fill(str(args.seed))
    for page in pages:
        page.locator("#write-go").click(no_wait_after=True)
    texts = []
    for page in pages:
        page.wait_for_function(
            """() => document.querySelector("#write-output").textContent.includes("forwards in")
            || /queue is full/i.test(document.body.textContent)""",
            timeout=300_000,
        )
        done = page.locator("#write-output .done")
        texts.append(str(done.first.text_content()) if done.count() else "the queue is full")
    for context in contexts:
        context.close()
    return texts


def main(argv: list[str]) -> int:
    (args,) = parse([DemoCheckArguments], argv, "demo_check")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ValueError("A browser is driven by playwright: run `pip install playwright`.") from None
    process, address = start(queue_size=6)
    try:
        with sync_playwright() as driver:
            found = check(args, address, driver)
    finally:
        process.terminate()
        process.wait(30)
    Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for claim, holds in found["claims"].items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(found["claims"].values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
