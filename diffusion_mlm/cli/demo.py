"""`diffusion-mlm demo`: a page in the browser to write, fill in, edit and compare, for one checkpoint."""

import ipaddress
import sys
from dataclasses import dataclass, field

from ..hub_access import require_repository
from .checkpoint_arguments import CheckpointArguments, load_checkpoint
from .parsing import parse


@dataclass
class DemoArguments(CheckpointArguments):
    """Where the page is served, and what a visitor may ask for."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 is open to all."})
    port: int = field(default=7860, metadata={"help": "Port to listen on."})
    queue_size: int = field(default=16, metadata={"help": "Requests that may wait; more are turned away."})
    max_characters: int = field(default=2000, metadata={"help": "The longest text that is taken."})
    max_new_tokens: int = field(default=256, metadata={"help": "The most tokens of a request."})
    max_steps: int = field(default=256, metadata={"help": "The most steps of a text."})
    max_samples: int = field(default=4, metadata={"help": "The most texts of a request."})

    def __post_init__(self) -> None:
        for name in ("queue_size", "max_characters", "max_new_tokens", "max_steps", "max_samples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be a whole number of at least 1, not {getattr(self, name)}."
                )
        if not 1 <= self.port < 2**16:
            raise ValueError(f"`--port` must lie between 1 and 65535, not {self.port}.")
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"`--host` must be an address such as 127.0.0.1 or 0.0.0.0, not {self.host!r}.") from None


def run(argv: list[str]) -> int:
    """Runs `demo` with these arguments until it is interrupted, and returns the exit status 0; errors are raised."""
    (args,) = parse([DemoArguments], argv, "demo")
    from ..demo.app import build_app, launch, require_gradio

    require_gradio()
    require_repository(args.checkpoint_name, "model", "--checkpoint")
    from ..demo.limits import Limits
    from ..demo.writer import Writer

    model, tokenizer = load_checkpoint(args.checkpoint_name, args.trust_remote_code)
    limits = Limits(args.max_characters, args.max_new_tokens, args.max_steps, args.max_samples)
    app = build_app(Writer(model, tokenizer, limits), "Text out of masks", args.queue_size)
    if not ipaddress.ip_address(args.host).is_loopback:
        print(f"Listening on {args.host}: everybody who reaches this machine can use the page.", file=sys.stderr)
    print(f"http://{args.host}:{args.port}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    launch(app, args.host, args.port)
    return 0
