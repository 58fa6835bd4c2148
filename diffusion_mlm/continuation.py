"""Continuations: texts that go on after a prefix, in one canvas or, beyond what the model reads, window by window."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from .canvas import Canvas, closing_ids, encode_prefix, start_ids, training_facts
from .constraints import Constraints, compile_constraints
from .denoising_step import DenoisingStep, GuideLogits
from .filling import fill_canvases
from .generation_config import DiffusionGenerationConfig
from .modeling import context_length, end_token_id, forbidden_token_ids, require_mask_token, unwrap
from .randomness import make_key
from .reveal_plan import require_steps_for_blocks
from .row_steps import OnTextStep, RowSteps
from .token_automaton import TokenAutomaton
from .tokenization import decode_text

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 64


@dataclass
class Continuation:
    """One text that is being continued.

    Attributes:
        prefix (`str`), prefix_ids (`list[int]`): what is given; the ids begin with the start token, if there is one.
        num_new (`int`): tokens to generate.
        closing (`list[int]`): ids that stand visible behind the text.
        seed (`int`): of the sample.
        num_start (`int`): start tokens, 0 or 1.
        window (`int`): the most tokens of a row, start and closing included.
        stride (`int`): new tokens of each window, if one window cannot hold the text.
        new_ids (`list[int]`): what has been generated, in the windows that are done.
        num_forwards (`int`): what that took.
    """

    prefix: str
    prefix_ids: list[int]
    num_new: int
    closing: list[int]
    seed: int
    num_start: int
    window: int
    stride: int
    new_ids: list[int] = field(default_factory=list)
    num_forwards: int = 0
    ended: bool = False
    automaton: TokenAutomaton | None = None  # what all of the new text must be like

    @property
    def is_done(self) -> bool:
        return self.ended or len(self.new_ids) >= self.num_new

    @property
    def fits(self) -> bool:
        """Whether one window holds all of it."""
        return len(self.prefix_ids) + self.num_new + len(self.closing) <= self.window

    @property
    def ids(self) -> list[int]:
        """The whole row, once it is done."""
        return self.prefix_ids + self.new_ids + self.closing

    def next_window(self) -> tuple[Canvas, slice]:
        """The canvas that goes on where the text stands, and where in it new tokens are generated.

        Beyond what one window holds, the last tokens so far stay as what is given and `stride` more are generated
        behind them (as in MDLM, arXiv:2406.07524).
        """
        num_prefix, num_new = len(self.prefix_ids), self.num_new
        visible = self.prefix_ids
        if not self.fits:
            num_new = min(self.stride, self.num_new - len(self.new_ids))
            text = self.prefix_ids[self.num_start :] + self.new_ids
            room = self.window - self.num_start - num_new - len(self.closing)
            cut = max(len(text) - room, 0)
            visible = self.prefix_ids[: self.num_start] + text[cut:]
            num_prefix = max(num_prefix - cut, self.num_start)
        to_fill = [False] * len(visible) + [True] * num_new + [False] * len(self.closing)
        given = [self.num_start <= place < num_prefix for place in range(len(to_fill))]
        # The key of the first window is that of a text of one window.
        key = make_key("generate", self.seed, *self.prefix_ids, *([len(self.new_ids)] if self.new_ids else []))
        new = slice(len(visible), len(visible) + num_new)
        return Canvas(visible + [0] * num_new + self.closing, to_fill, given, key), new

    def close_window(self, new_ids: list[int], num_forwards: int, end_id: int | None) -> None:
        """Takes over what a window has brought."""
        self.new_ids += new_ids
        self.num_forwards += num_forwards
        self.ended = end_id in new_ids

    def automaton_of_window(self, new: slice) -> TokenAutomaton | None:
        """What the new tokens of the next window must be like, so that the windows behind it can be written too."""
        left = self.num_new - len(self.new_ids) - (new.stop - new.start)
        return self.automaton if self.automaton is None or self.fits else self.automaton.behind(self.new_ids, left)


def continue_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Continuation],
    config: DiffusionGenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
    guidance: GuideLogits | None = None,
    on_step: OnTextStep | None = None,
) -> Iterator[tuple[DenoisingStep, list[slice]]]:
    """Continues a batch of texts to their ends; they hold the result. `on_step` is asked about each text by itself.

    Yields:
        Each step, with one row for every text that is not done, in order, and where new tokens stand in these rows.
    """
    end_id = end_token_id(tokenizer) if training_facts(model).get("generates_end") else None
    while going := [text for text in texts if not text.is_done]:
        canvases, places = zip(*[text.next_window() for text in going], strict=True)
        automata = [text.automaton_of_window(new) for text, new in zip(going, places, strict=True)]
        constraint = (
            RowConstraints(automata, list(places), config.to_sampling().is_greedy) if automata[0] is not None else None
        )
        asked = RowSteps(on_step, [len(canvas.ids) for canvas in canvases]) if on_step is not None else None
        hooks: dict[str, Any] = {"on_step": asked, "constraint": constraint}
        for step in fill_canvases(model, tokenizer, list(canvases), config, logits_processor, guidance, **hooks):
            yield step, list(places)
        for row, (text, new) in enumerate(zip(going, places, strict=True)):
            text.close_window(step.canvas[row, new].tolist(), int(step.num_forwards[row]), end_id)


def constrain(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[Continuation], constraints: Constraints
) -> None:
    """Binds texts to constraints, over all their windows.

    Raises:
        ValueError: the tokenizer cannot be constrained, or no text of the length asked for keeps to the constraints.
    """
    writes_ends = bool(training_facts(model).get("generates_end"))
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", len(tokenizer))
    automata = compile_constraints(
        constraints,
        tokenizer,
        [(text.prefix, text.prefix_ids[text.num_start :]) for text in texts],
        vocab_size=vocab_size,
        forbidden_ids=forbidden_token_ids(tokenizer, writes_ends, vocab_size),
        end_id=end_token_id(tokenizer) if writes_ends else None,
        decode=partial(decode_text, tokenizer),
        num_new=[text.num_new for text in texts],
    )
    for text, automaton in zip(texts, automata, strict=True):
        if not automaton.can_be_filled(text.num_new):  # quick, also for a long text
            automaton.require_feasible(
                torch.zeros(text.num_new, dtype=torch.int64), torch.ones(text.num_new, dtype=torch.bool)
            )
        text.automaton = automaton


@dataclass(frozen=True)
class RowConstraints:
    """The automata of the rows of a batch, as `denoise` asks for them."""

    automata: list[TokenAutomaton | None]
    new: list[slice]  # where in its row each automaton's text stands
    greedy: bool

    def allowed(self, row: int, canvas: Tensor, is_masked: Tensor) -> Tensor:
        return self._of(row).allowed(canvas[self.new[row]], is_masked[self.new[row]])

    def draw(self, row: int, canvas: Tensor, is_masked: Tensor, reveal: Tensor, logits: Tensor, u: Tensor) -> Tensor:
        new = self.new[row]
        slots = reveal[new].nonzero().squeeze(-1)
        return self._of(row).draw(logits, slots, canvas[new], is_masked[new], u, self.greedy)

    def _of(self, row: int) -> TokenAutomaton:
        automaton = self.automata[row]
        if automaton is None:
            raise ValueError("Either all texts of a batch are constrained, or none.")
        return automaton


def make_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: str | Sequence[str],
    config: DiffusionGenerationConfig,
    seed: int,
    longest_prefix: int | None = None,
) -> list[Continuation]:
    """One per sample; sample j of a prefix has the seed `seed + j`, so that a batch changes nothing.

    Of a prefix with more than `longest_prefix` tokens only the last ones are seen, with one warning for all.

    Raises:
        ValueError: a prefix is no valid text or leaves no room in the context, a window has no room for `stride`, or
            there are fewer steps than blocks.
    """
    if not isinstance(prefixes, (str, Sequence)) or isinstance(prefixes, bytes):
        raise ValueError(f"`prefixes` must be a string or a sequence of strings, not {type(prefixes).__name__}.")
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    require_mask_token(tokenizer, "tokenizer")
    start, closing = start_ids(tokenizer), closing_ids(model, tokenizer)
    window = context_length(unwrap(model), tokenizer)
    room = window - len(start) - len(closing)
    stride = config.stride if config.stride is not None else max(room // 2, 1)
    texts: list[Continuation] = []
    seen: Counter[str] = Counter()
    num_cut = 0
    for place, prefix in enumerate(prefixes):
        prefix_ids = encode_prefix(tokenizer, prefix, place)
        first = max(len(prefix_ids) - longest_prefix, 0) if longest_prefix is not None else 0
        num_cut += first > 0
        prefix_ids = start + prefix_ids[first:]
        num_new = _num_new(model, tokenizer, config, len(prefix_ids), len(closing))
        fits = len(prefix_ids) + num_new + len(closing) <= window
        if not fits:
            if stride > room:
                raise ValueError(f"`stride` is {stride}, but a window of this model has room for {room} new tokens.")
            logger.info("%d new tokens are more than this model reads: written %d at a time.", num_new, stride)
        require_steps_for_blocks(config.steps, num_new if fits else stride, config.to_block_length())
        for _ in range(config.num_return_sequences):
            own = (seed + seen[prefix]) % 2**32
            seen[prefix] += 1
            texts.append(Continuation(prefix, prefix_ids, num_new, closing, own, len(start), window, stride))
    if num_cut:
        logger.warning("%d of %d prefixes are too long, and are cut from the left.", num_cut, len(prefixes))
    return texts


def _num_new(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiffusionGenerationConfig,
    num_prefix: int,
    num_closing: int,
) -> int:
    """How many tokens to generate after a prefix of `num_prefix` ids.

    By default a model that writes `</s>` fills a row of the length of training, and any other `DEFAULT_NEW_TOKENS`, or
    as many as there is room for. More than there is room for is written window by window.
    """
    facts, limit = training_facts(model), context_length(unwrap(model), tokenizer)
    room = limit - num_prefix - num_closing
    trained = facts.get("row_length") if facts.get("generates_end") else None
    default = min(room, DEFAULT_NEW_TOKENS) if trained is None else min(room, trained - num_prefix)
    num_new = config.max_new_tokens if config.max_new_tokens is not None else default
    if num_new >= 1 and room >= 1:
        return num_new
    reads = f"The prefix takes {num_prefix} tokens (the start token included)"
    if room < 1:
        raise ValueError(
            f"{reads}, but this model reads {limit - num_closing}, new ones included. Shorten the prefix."
        )
    raise ValueError(
        f"{reads}, as long as the rows of training ({trained}). Shorten it, or pass `max_new_tokens` up to {room}."
    )
