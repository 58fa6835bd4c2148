"""The options of `generate`, `infill` and `edit` that keep the steps of a run, as a trace, a page or pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..visualization.trace_files import PICTURES, require_targets, write_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..tracing import TraceRecorder


def _target(help_text: str) -> Any:
    return field(default=None, metadata={"help": help_text})


@dataclass
class TraceArguments:
    """Where the steps go."""

    trace: str | None = _target("JSON file with every step of all texts, for `diffusion-mlm replay`.")
    html: str | None = _target("Page that plays the steps of all texts; it needs no network.")
    gif: str | None = _target("Animation of the first text.")
    png: str | None = _target("Picture of the first text, coloured by step.")
    svg: str | None = _target("The same as a drawing.")
    trace_alternatives: int = field(
        default=4, metadata={"help": "Likeliest tokens kept at each position with their probabilities; 0 for none."}
    )

    @property
    def trace_targets(self) -> list[str]:
        """The options among these that name a file."""
        return [f"--{name}" for name in ("trace", *PICTURES) if getattr(self, name) is not None]

    def require_trace_targets(self) -> None:
        """Raises ValueError for a file that cannot be what is asked for, before anything heavy is loaded."""
        if self.trace_alternatives is not None and self.trace_alternatives < 0:
            raise ValueError(
                f"`--trace-alternatives` must be a whole number of at least 0, not {self.trace_alternatives}."
            )
        require_targets({name: getattr(self, name) for name in ("trace", *PICTURES)})

    def recorder(self, tokenizer: "PreTrainedTokenizerBase") -> "TraceRecorder | None":
        """What keeps the steps, if they are asked for."""
        if not self.trace_targets:
            return None
        from ..tracing import TraceRecorder

        return TraceRecorder(tokenizer, alternatives=self.trace_alternatives)

    def save_trace(self, recorder: "TraceRecorder", seed: int) -> None:
        """Writes the files that were named."""
        settings: dict[str, Any] = self.settings()  # type: ignore[attr-defined]  # of the class this one is mixed into
        trace = recorder.trace(**settings | {"seed": seed})
        if self.trace is not None:
            Path(self.trace).parent.mkdir(parents=True, exist_ok=True)
            trace.save(self.trace)
        write_targets(trace, {name: getattr(self, name) for name in PICTURES})
