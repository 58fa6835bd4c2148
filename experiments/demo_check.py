"""Opens the demo in a real browser: writes, fills in, reads the texts back, and tries to do harm.

    pip install 'diffusion-mlm[demo]' playwright
    python experiments/demo_check.py --browser /usr/bin/chromium

Starts `diffusion-mlm demo` with the packaged story generator on a port of its own, and writes what it finds to
`results/demo_check.json` and the screenshot `results/demo.png`. Exit status 1 if a claim does not hold.
"""

import concurrent.futures
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
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
TIMEOUT = 240_000  # milliseconds that an answer may take on a busy machine
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
    page.locator("#write-output").evaluate("node => node.firstElementChild.dataset.old = 1")
    page.locator("#write-go").click()
    page.wait_for_function(
        """seed => { const node = document.querySelector("#write-output"), problem = node.querySelector(".problem");
        return problem ? !problem.closest("[data-old]") : node.textContent.trim().endsWith(`seed ${seed}`); }""",
        arg=seed,
        timeout=TIMEOUT,
    )
    return str(page.locator("#write-output .canvas, #write-output .problem").first.text_content())


def check(args: DemoCheckArguments, address: str, driver: Any) -> dict[str, Any]:
    """What a browser finds, and whether each claim holds."""
    chromium = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    context.on(
        "request", lambda r: elsewhere.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else 0
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#write-prefix textarea", timeout=TIMEOUT)
    title = page.title()

    model, tokenizer = load_generator(default_checkpoint())
    expected = generate(model, tokenizer, args.prefix, seed=args.seed, order="entropy", temperature=1.0).texts[0]
    begin = time.perf_counter()
    shown = write(page, args.prefix, args.seed)
    found: dict[str, Any] = {"text": shown, "seconds": round(time.perf_counter() - begin, 1)}
    claims = {"the text is what generate writes": shown == expected}
    print(shown, flush=True)
    page.screenshot(path=args.screenshot)
    with page.expect_download() as download:
        page.locator("#write-output ~ * a[download], .file-preview a[download]").first.click()
    trace = Trace.load(download.value.path())
    claims["the trace that is downloaded ends in it"] = trace.samples[0].text == expected

    for place, (name, prefix) in enumerate(HARM.items()):
        answer = write(page, prefix, 1000 + place)
        clean = page.title() == title and not page.locator("#write-output script, #write-output img").count()
        print(f"{name}: {answer[:80]!r}", flush=True)
        claims[f"{name}: harmless"] = clean and bool(answer)
        found[name] = answer[:160]
        if place == len(HARM) - 2:  # the last one is refused
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

    chromium.close()
    answers = crowd(address, args)
    found["ten at once"] = Counter(answer[:40] for answer in answers)
    claims["ten at once get the text, or are told that the queue is full"] = all(
        expected in answer or "full" in answer for answer in answers
    )
    return {"claims": claims, **found}


def crowd(address: str, args: DemoCheckArguments, number: int = 10) -> list[str]:
    """What so many visitors are answered who press the button at once; without a browser, by the page's own calls."""
    with urllib.request.urlopen(f"{address}config", timeout=60) as answer:
        calls = json.load(answer)["dependencies"]
    call = next(place for place, item in enumerate(calls) if item["targets"] and item["targets"][0][1] == "click")
    settings = [0, "entropy", "nucleus", 1.0]
    data = [args.prefix, 0, 1, args.seed, *settings]

    def visit(place: int) -> str:
        session = f"visitor{place}"
        body = json.dumps({"data": data, "fn_index": calls[call]["id"], "session_hash": session}).encode()
        request = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT / 1000):
                pass
            last = ""
            with urllib.request.urlopen(
                f"{address}gradio_api/queue/data?session_hash={session}", timeout=TIMEOUT / 1000
            ) as lines:
                for line in lines:
                    message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                    if message.get("msg") == "process_completed":
                        shown = message["output"].get("data") or [message["output"].get("error")]
                        last = re.sub(r"<[^>]*>", "", str(shown[0])) or last
                        break
                    if message.get("msg") == "process_generating":
                        last = "".join(re.findall(r">([^<]*)<", json.dumps(message["output"]["data"][0]))) or last
            return last
        except urllib.error.HTTPError as error:
            return f"{error.code}: {error.read().decode()[:200]}"

    with concurrent.futures.ThreadPoolExecutor(number) as visitors:
        return list(visitors.map(visit, range(number)))


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
