"""The page of the demo, in Gradio."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.generation_settings import CHOICES
from ..visualization.html import trace_page
from .limits import words_of
from .writer import Settings, Shown, Writer

if TYPE_CHECKING:
    import gradio

_KEPT_SECONDS = 3600  # that files of a visitor stay
_CSS = """
.canvas { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.15rem; line-height: 1.95; min-height: 3.5rem;
  padding: .9rem 1.1rem; border: 1px solid var(--border-color-primary); border-radius: 12px; margin-bottom: .6rem;
  background: var(--background-fill-primary); }
.canvas .mask { background: #a7a39a88; border-radius: 4px; }
.canvas .fresh { background: #e69f00; color: #1c1c1e; border-radius: 4px; text-decoration: underline 2px;
  text-underline-offset: .22em; }
.canvas .given { font-weight: 600; color: #0072b2; }
.dark .canvas .given { color: #7cc4f5; }
.note { color: var(--body-text-color); opacity: .75; font-size: .9rem; margin: .2rem 0; }
.problem { border-left: 4px solid #d55e00; padding: .5rem .9rem; margin: 0; }
.words label { padding: .25rem .6rem !important; }
.words input:checked + span { text-decoration: line-through; opacity: .6; }
footer { display: none !important; }
"""
_STORY = (
    "Once upon a time, Mia lived near the lake with Rusty the fox. She loved the red kite that her aunt had made. "
    "Then one misty morning, the red kite was gone."
)


def require_gradio() -> None:
    """Raises ValueError that names the extra, if there is no Gradio; switches its reports home off.

    To be called before Gradio is imported anywhere.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401  # whether it can be
    except ImportError:
        raise ValueError("`demo` needs Gradio: run `pip install 'diffusion-mlm[demo]'`.") from None


class TraceFolder:
    """Files of visitors for download, under names that nobody can guess; gone with the process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="diffusion-mlm-demo-")
        self._kept: list[Path] = []

    def files(self, shown: Shown) -> list[str] | None:
        """The trace and its page, if the run is done."""
        if shown.trace is None:
            return None
        folder = Path(self._folder.name, secrets.token_hex(8))
        folder.mkdir()
        shown.trace.save(folder / "trace.json")
        (folder / "page.html").write_text(trace_page(shown.trace), encoding="utf-8")
        self._kept.append(folder)
        for old in self._kept[:-64]:
            for file in old.glob("*"):
                file.unlink()
            old.rmdir()
        self._kept = self._kept[-64:]
        return [str(folder / "trace.json"), str(folder / "page.html")]


def build_app(writer: Writer, title: str, queue_size: int = 16) -> "gradio.Blocks":
    """The page for a writer. One request is worked on at a time, `queue_size` may wait, more are turned away.

    Raises:
        ValueError: there is no Gradio.
    """
    require_gradio()
    import gradio as gr

    limits, folder = writer.limits, TraceFolder()

    def settings_row(label: str = "Settings", open_: bool = False) -> list[Any]:
        with gr.Accordion(label, open=open_):
            with gr.Row():
                steps = gr.Slider(0, limits.steps, 0, step=1, label="Steps (0: one for each token)")
                temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature")
            with gr.Row():
                order = gr.Dropdown(CHOICES["order"], value="entropy", label="What is revealed first")
                sampling = gr.Dropdown(CHOICES["sampling"], value="nucleus", label="How a token is chosen")
        return [steps, order, sampling, temperature]

    def results(name: str) -> tuple[Any, Any]:
        output = gr.HTML('<div class="canvas"></div>', elem_id=f"{name}-output")
        files = gr.Files(label="Trace for `diffusion-mlm replay`, and a page that plays it", interactive=False)
        return output, files

    def buttons(name: str, label: str) -> tuple[Any, Any, Any]:
        with gr.Row():
            seed = gr.Number(None, label="Seed (empty: a new one)", precision=0, elem_id=f"{name}-seed")
            go = gr.Button(label, variant="primary", elem_id=f"{name}-go")
            stop = gr.Button("Stop")
        return seed, go, stop

    def connect(go: Any, stop: Any, run: Any, inputs: list[Any], outputs: list[Any]) -> None:
        shared = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        running = go.click(run, inputs, outputs, api_visibility="private", **shared)
        stop.click(None, cancels=[running], api_visibility="private", queue=False)

    def shown(steps: Iterator[Shown]) -> Iterator[tuple[str, list[str] | None]]:
        for step in steps:
            yield step.html, folder.files(step)

    def write(prefix: Any, length: Any, samples: Any, seed: Any, *settings: Any) -> Iterator[Any]:
        yield from shown(writer.write(prefix, length, samples, seed, Settings(*settings)))

    def fill_in(text: Any, chosen: Any, seed: Any, *settings: Any) -> Iterator[Any]:
        yield from shown(writer.fill_in(text, chosen, seed, Settings(*settings)))

    def edit(text: Any, strength: Any, protect: Any, seed: Any, *settings: Any) -> Iterator[Any]:
        yield from shown(writer.edit(text, strength, protect, seed, Settings(*settings)))

    def compare(prefix: Any, length: Any, seed: Any, *settings: Any) -> Iterator[Any]:
        for both in writer.compare(prefix, length, seed, [Settings(*settings[:4]), Settings(*settings[4:])]):
            yield [both[0].html, folder.files(both[0]), both[1].html, folder.files(both[1])]

    def choices(text: Any) -> Any:
        spans = words_of(text[: limits.characters]) if isinstance(text, str) else []
        return gr.CheckboxGroup(
            choices=[(text[start:end], place) for place, (start, end) in enumerate(spans)], value=[]
        )

    def prefix_box(name: str) -> Any:
        return gr.Textbox(
            "Once upon a time", label="Beginning", lines=2, max_length=limits.characters, elem_id=f"{name}-prefix"
        )

    def length_slider() -> Any:
        return gr.Slider(0, limits.new_tokens, 0, step=1, label="New tokens (0: as in training)")

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        gr.HTML(
            "<h1>Text out of masks</h1><p class='note'>A masked language model writes by revealing masks, "
            "step by step. Grey bars are masks; underlined words on orange are new.</p>"
        )
        with gr.Tab("Write"):
            prefix = prefix_box("write")
            with gr.Row():
                length = length_slider()
                samples = gr.Slider(1, limits.samples, 1, step=1, label="Texts")
            settings = settings_row()
            seed, go, stop = buttons("write", "Write")
            output = results("write")
            connect(go, stop, write, [prefix, length, samples, seed, *settings], list(output))
        with gr.Tab("Fill in"):
            text = gr.Textbox(_STORY, label="Text", lines=4, max_length=limits.characters, elem_id="fill-text")
            spans = words_of(_STORY)
            words = gr.CheckboxGroup(
                [(_STORY[start:end], place) for place, (start, end) in enumerate(spans)],
                value=[9, 12, 13],
                label="Click the words to write anew (<mask>, <mask:3> and <mask:2-4> in the text are blanks too)",
                elem_classes="words",
                elem_id="fill-words",
            )
            text.blur(choices, text, words, api_visibility="private", queue=False, show_progress="hidden")
            settings = settings_row()
            seed, go, stop = buttons("fill", "Fill in")
            output = results("fill")
            connect(go, stop, fill_in, [text, words, seed, *settings], list(output))
        with gr.Tab("Edit"):
            text = gr.Textbox(_STORY, label="Text", lines=4, max_length=limits.characters, elem_id="edit-text")
            with gr.Row():
                strength = gr.Slider(0.05, 1, 0.4, step=0.05, label="Strength: share of the tokens written anew")
                protect = gr.Textbox("Mia", label="What stays, with commas between", max_length=200)
            settings = settings_row()
            seed, go, stop = buttons("edit", "Edit")
            output = results("edit")
            connect(go, stop, edit, [text, strength, protect, seed, *settings], list(output))
        with gr.Tab("Compare"):
            prefix = prefix_box("compare")
            length = length_slider()
            outputs: list[Any] = []
            both: list[Any] = []
            with gr.Row():
                for name in ("first", "second"):
                    with gr.Column():
                        both += settings_row(f"Settings of the {name}", open_=True)
                        outputs += results(f"compare-{name}")
            seed, go, stop = buttons("compare", "Write both")
            connect(go, stop, compare, [prefix, length, seed, *both], outputs)
    app.queue(max_size=queue_size, default_concurrency_limit=4, api_open=False)
    return app


def launch(app: "gradio.Blocks", host: str, port: int, block: bool = True) -> str:
    """Serves the page and returns its address; nothing is shared or reported to anyone.

    Raises:
        OSError: the port is taken.
    """
    import gradio as gr

    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=not block,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1kb",
        footer_links=[],
        theme=theme,
        css=_CSS,
    )
    return str(address)
