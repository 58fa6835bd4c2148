"""Infilling: blanks anywhere in a text are filled, what stands around them stays."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from .canvas import Canvas, closing_of_whole_text, is_gaussian, training_facts
from .denoising_step import GuideLogits
from .evaluation.likelihood import bound_of_rows
from .filled_text import fill_texts
from .filling import fill_canvases
from .generation import resolve_config, resolve_seed
from .generation_config import DiffusionGenerationConfig
from .modeling import context_length, end_token_id, forbidden_token_ids, logits_at, require_mask_token, unwrap
from .randomness import make_key
from .tokenization import boundary_token_ids, encode_text
from .tracing import Run, TraceRecorder

_BLANK = re.compile(r"<mask(?::(\d+)(?:-(\d+))?)?>")
_MOST_CANDIDATES = 32  # fillings of different lengths that are made and compared for one sample


@dataclass(frozen=True)
class Blank:
    """A blank of `least` to `most` tokens."""

    least: int
    most: int


@dataclass
class InfilledText:
    """One sample.

    Attributes:
        template, text (`str`): what was given, and the same with its blanks filled.
        fills (`list[str]`): what stands in each blank.
        lengths (`list[int]`): tokens in each blank.
        seed (`int`): passing it with the same template and settings gives this sample again.
        num_forwards (`int`): calls of the model on this text; those for lengths that were not chosen, and for their
            likelihood, count too.
        nelbo_nats_per_token (`float`, *optional*): by which the lengths were chosen, if there was a choice.
    """

    template: str
    text: str
    fills: list[str]
    lengths: list[int]
    seed: int
    num_forwards: int
    nelbo_nats_per_token: float | None = None

    def to_json(self) -> str:
        """One line of strict JSON, in ASCII."""
        return json.dumps(vars(self), allow_nan=False)


def parse_template(template: str, mask_token: str = "<mask>") -> list[str | Blank]:
    """Literal pieces and blanks, in turn.

    `<mask>` is a blank of one token, `<mask:3>` of three, `<mask:2-6>` of two to six, whatever suits the text best;
    the mask token of the tokenizer, `[MASK]` for BERT, is a blank of one token too.

    Raises:
        ValueError: there is no blank, or one of no or too many tokens.

    >>> parse_template("The <mask> sat on the <mask:2-3>.")
    ['The ', Blank(least=1, most=1), ' sat on the ', Blank(least=2, most=3), '.']
    """
    if not isinstance(template, str):
        raise ValueError(f"`templates` must hold strings, not {type(template).__name__}.")
    template = template.replace(mask_token, "<mask>")
    pieces: list[str | Blank] = []
    end = 0
    for found in _BLANK.finditer(template):
        pieces += [template[end : found.start()]] if found.start() > end else []
        least = int(found[1] or 1)
        most = int(found[2] or least)
        if not 1 <= least <= most:
            raise ValueError(f"`templates` holds the blank {found[0]!r}: its length must be at least 1, and not fall.")
        pieces.append(Blank(least, most))
        end = found.end()
    if not end:
        raise ValueError(
            f"`templates` holds {template!r}, in which there is nothing to fill: mark blanks with <mask>, <mask:3> or "
            f"<mask:2-6>."
        )
    return pieces + ([template[end:]] if end < len(template) else [])


def infill(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    templates: str | Sequence[str],
    generation_config: DiffusionGenerationConfig | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    logits_processor: LogitsProcessorList | None = None,
    guidance: GuideLogits | None = None,
    draws: int = 16,
    recorder: TraceRecorder | None = None,
    **settings: Any,
) -> list[InfilledText]:
    """Fills the blanks of each template; what stands around them comes back byte for byte.

    Args:
        model, tokenizer, generation_config, seed, generator, logits_processor, guidance, settings: as for
            `generate`. `max_new_tokens` has no meaning here.
        templates (`str` or sequence of them): see `parse_template`. Blanks of unknown length are tried at several
            lengths, and the text of the least likelihood bound per token is kept.
        draws (`int`): masks per text for that bound.
        recorder (`TraceRecorder`, *optional*): keeps every step of the texts that are returned.

    Returns:
        `list[InfilledText]`: the samples of the first template, then those of the second, ...

    Raises:
        ValueError: a template has no blank, leaves too many lengths to try, or does not fit into the context; or a
            setting is unknown or impossible.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    config = resolve_config(model, generation_config, settings)
    # The length is given, and no token may end the text sooner: what is written from the left does not know where it
    # has to arrive. So no blocks by default.
    config = config.updated(block_length=config.block_length or 0)
    templates = [templates] if isinstance(templates, str) else templates
    first_seed = resolve_seed(seed, generator)
    mask_token = str(tokenizer.mask_token)
    require_mask_token(tokenizer, "tokenizer")
    seen: Counter[str] = Counter()
    candidates: list[_Candidate] = []
    for template in templates:
        pieces = parse_template(template, mask_token)
        for _ in range(config.num_return_sequences):
            own = (first_seed + seen[template]) % 2**32
            seen[template] += 1
            for lengths in _lengths_to_try(template, pieces):
                candidates.append(_make_candidate(model, tokenizer, template, pieces, lengths, own))
    was_training = model.training
    try:
        texts = _fill(model, tokenizer, candidates, config, logits_processor, guidance, draws, recorder)
    finally:
        model.train(was_training)
    return texts


@dataclass
class _Candidate:
    template: str
    pieces: list[str | Blank]
    lengths: list[int]
    spans: list[slice]  # of the blanks in the row
    canvas: Canvas
    seed: int

    @property
    def parts(self) -> list[str | slice]:
        """The pieces, blanks as their places in the row."""
        spans = iter(self.spans)
        return [piece if isinstance(piece, str) else next(spans) for piece in self.pieces]


@dataclass
class _Filled:
    """A candidate whose blanks are filled, and its recorded steps."""

    text: InfilledText
    candidate: _Candidate
    ids: list[int]
    run: Run | None


def _lengths_to_try(template: str, pieces: list[str | Blank]) -> list[list[int]]:
    ranges = [range(piece.least, piece.most + 1) for piece in pieces if isinstance(piece, Blank)]
    number = 1
    for choices in ranges:
        number *= len(choices)
    if number > _MOST_CANDIDATES:
        raise ValueError(
            f"`templates` holds {template!r}, whose blanks leave {number} combinations of lengths to try, more than "
            f"{_MOST_CANDIDATES}. Narrow them."
        )
    return [list(lengths) for lengths in itertools.product(*ranges)]


def _make_candidate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    pieces: list[str | Blank],
    lengths: list[int],
    seed: int,
) -> _Candidate:
    start, _ = boundary_token_ids(tokenizer)
    ids, to_fill, spans = [start], [False], []
    waiting = iter(lengths)
    for place, piece in enumerate(pieces):
        if isinstance(piece, Blank):
            length = next(waiting)
            spans.append(slice(len(ids), len(ids) + length))
            new = [0] * length
        else:
            # The space before a blank belongs to the word that fills it.
            literal = piece.rstrip(" ") if place + 1 < len(pieces) else piece
            new = encode_continuation(tokenizer, literal) if place > 0 else encode_text(tokenizer, literal)
        ids += new
        to_fill += [isinstance(piece, Blank)] * len(new)
    closing = closing_of_whole_text(model, tokenizer, len(ids))
    limit = context_length(unwrap(model), tokenizer)
    if len(ids) + len(closing) > limit:
        raise ValueError(
            f"`templates` holds a text of {len(ids)} tokens (the start token included), but this model reads "
            f"{limit - 1}. Shorten it or its blanks."
        )
    canvas = Canvas(
        ids + closing,
        to_fill + [False] * len(closing),
        given=[False] + [not fill for fill in to_fill[1:]] + [False] * len(closing),
        key=make_key("infill", seed, *[-1 if fill else token for token, fill in zip(ids, to_fill, strict=True)]),
        may_end=False,
    )
    return _Candidate(template, pieces, lengths, spans, canvas, seed)


def _fill(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    candidates: list[_Candidate],
    config: DiffusionGenerationConfig,
    logits_processor: LogitsProcessorList | None,
    guidance: GuideLogits | None,
    draws: int,
    recorder: TraceRecorder | None,
) -> list[InfilledText]:
    """The likeliest text of each sample."""
    groups: dict[tuple[str, int], list[_Filled]] = {}
    batch_size = config.batch_size
    if recorder is not None:
        batch_size, guidance = 1, recorder.watch(guidance)
    for first in range(0, len(candidates), batch_size):
        batch = candidates[first : first + batch_size]
        places = [place for place, filled in enumerate(batch[0].canvas.to_fill) if filled]
        for step in fill_canvases(
            model, tokenizer, [candidate.canvas for candidate in batch], config, logits_processor, guidance
        ):
            if recorder is not None:
                recorder.see(step, places)
        for place, candidate in enumerate(batch):
            row = step.canvas[place, : len(candidate.canvas.ids)]
            text = _finish(tokenizer, candidate, row.tolist(), int(step.num_forwards[place]))
            if any(isinstance(piece, Blank) and piece.least < piece.most for piece in candidate.pieces):
                text.nelbo_nats_per_token = _bound_per_token(model, tokenizer, row, draws)
                text.num_forwards += draws
            run = recorder.take() if recorder is not None else None
            groups.setdefault((candidate.template, candidate.seed), []).append(
                _Filled(text, candidate, row.tolist(), run)
            )
    texts = []
    for group in groups.values():
        best = min(group, key=lambda filled: filled.text.nelbo_nats_per_token or 0.0)
        best.text.num_forwards = sum(filled.text.num_forwards for filled in group)
        if recorder is not None and best.run is not None:
            facts = {"seed": best.text.seed, "num_forwards": best.text.num_forwards}
            recorder.finish_filling(best.run, best.ids, best.candidate.parts, best.text.text, **facts)
        texts.append(best.text)
    return texts


def _bound_per_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase, row: Tensor, draws: int) -> float:
    """The likelihood bound of the whole text in nats per token, its end counted once."""
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", len(tokenizer))
    writes_ends, end = bool(training_facts(model).get("generates_end")), end_token_id(tokenizer)
    parameter = next(model.parameters(), None)
    ids = row[None].to(row.device if parameter is None else parameter.device)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, 0] = False
    if not writes_ends:
        maskable &= ids.ne(end)

    def predict_logits(input_ids: Tensor, rows: Tensor) -> Tensor:
        return logits_at(model, rows, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))

    options: dict[str, Any] = {
        "end_id": end if writes_ends else -1,
        "forbidden_ids": torch.tensor(forbidden_token_ids(tokenizer, writes_ends, vocab_size), device=ids.device),
        "draws": draws,
    }
    if is_gaussian(model):
        gaussian: Any = unwrap(model)
        bounds = gaussian.bound_of_rows(ids, torch.ones_like(ids), maskable, **options)
    else:
        mask_id = require_mask_token(tokenizer, "tokenizer")
        bounds = bound_of_rows(predict_logits, ids, maskable, mask_id=mask_id, **options)
    return float(bounds.nats / bounds.num_tokens)


def _finish(
    tokenizer: PreTrainedTokenizerBase, candidate: _Candidate, ids: list[int], num_forwards: int
) -> InfilledText:
    """Puts what was generated between the literal pieces, which are taken as they were given."""
    texts = fill_texts(tokenizer, ids, candidate.parts)
    fills = [text for text, part in zip(texts, candidate.parts, strict=True) if isinstance(part, slice)]
    text = "".join(texts)
    return InfilledText(candidate.template, text, fills, candidate.lengths, candidate.seed, num_forwards)


def encode_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that goes on after other text, so that no space is put before it.

    Tokenizers that open every text with a space (or its mark) would begin "." as " .": it is encoded behind a
    character it does not merge with, whose ids are taken off again.
    """
    if not text:
        return []
    opening = "." if text[0].isalnum() else "a"
    ids, head = encode_text(tokenizer, opening + text), encode_text(tokenizer, opening)
    return ids[len(head) :] if ids[: len(head)] == head else encode_text(tokenizer, text)
