"""Answers: what a model writes behind a context, up to the first of some stop strings."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..canvas import closing_ids, is_gaussian, start_ids, training_facts
from ..continuation import Continuation, make_continuations
from ..denoising_step import DenoisingStep
from ..filling import fill_canvases
from ..generation import finish_text
from ..generation_config import DiffusionGenerationConfig
from ..modeling import context_length, end_token_id, unwrap
from ..tokenization import decode_text


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """What stands before the first of the stop strings, all of `text` if there is none; empty ones count for nothing.

    >>> cut_at("Paris. Q: next", ["Q:", ".", ""])
    'Paris'
    """
    found = [text.find(stop) for stop in stop_strings if stop and stop in text]
    return text[: min(found)] if found else text


def write_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    config: DiffusionGenerationConfig,
    *,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, str]]:
    """What `generate` writes behind each context, up to the first stop string, without it.

    Once a stop string stands in what is revealed without a gap, the rest of its text is not written; with remasking,
    which may take it back, all of the window is. A context that leaves no room for the answer is cut from the left,
    with one warning for all.

    Args:
        model, tokenizer: as for `generation.generate`.
        contexts (sequence of `str`).
        config (`DiffusionGenerationConfig`): how to write; one answer for each context.
        seed (`int`): of the first answer to a context; the second to the same one has `seed + 1`, as in `generate`.
        progress (callable, *optional*): called after every step with the number of new tokens that are visible or not
            asked for any more, and of all.

    Yields:
        The place of each context in `contexts` and its answer, batch by batch, long contexts first.

    Raises:
        ValueError: a context is no valid text, or a setting does not suit the model.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    config = config.updated(num_return_sequences=1)
    texts = make_continuations(model, tokenizer, contexts, config, seed, longest_context(model, tokenizer, config))
    places = sorted(range(len(texts)), key=lambda place: -len(texts[place].prefix_ids))
    total, finished = sum(text.num_new for text in texts), 0
    was_training = model.training
    try:
        for first in range(0, len(places), config.batch_size):
            batch = [texts[place] for place in places[first : first + config.batch_size]]
            for visible in _write(model, tokenizer, batch, config, stop_strings):
                if progress is not None:
                    progress(finished + visible, total)
            finished += sum(text.num_new for text in batch)
            for place, text in zip(places[first:], batch, strict=False):
                yield place, cut_at(finish_text(tokenizer, text).completion, stop_strings)
    finally:
        model.train(was_training)


def _write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[Continuation],
    config: DiffusionGenerationConfig,
    stop_strings: Sequence[str],
) -> Iterator[int]:
    """Continues a batch of texts until each holds a stop string or is as long as it shall be.

    Yields:
        After every step, how many of the new tokens of the batch are visible or will not be asked for.
    """
    end_id = end_token_id(tokenizer) if training_facts(model).get("generates_end") else None
    keeps = config.remask == "none" and not is_gaussian(model)  # what is revealed stays
    while going := [text for text in batch if not text.is_done]:
        canvases, new = zip(*[text.next_window() for text in going], strict=True)
        answers = [_GrowingAnswer(tokenizer, text.new_ids, place) for text, place in zip(going, new, strict=True)]

        def stop(step: DenoisingStep, answers: list["_GrowingAnswer"] = answers) -> tuple[Tensor, Tensor]:
            canvas, is_masked = step.canvas.cpu(), step.is_masked.cpu()
            rows = zip(answers, canvas, is_masked, strict=True)
            stopped = [answer.holds(stop_strings, ids, masks) for answer, ids, masks in rows]
            return step.canvas, torch.tensor(stopped)

        done = sum(text.num_new if text.ended else len(text.new_ids) for text in batch)
        done += sum(place.stop - place.start for place in new)
        on_step = stop if keeps and any(stop_strings) else None
        for step in fill_canvases(model, tokenizer, list(canvases), config, on_step=on_step):
            yield done - int(step.is_masked.sum())
        for row, (text, place) in enumerate(zip(going, new, strict=True)):
            text.close_window(step.canvas[row, place].tolist(), int(step.num_forwards[row]), end_id)
            completion = finish_text(tokenizer, text).completion
            text.ended |= cut_at(completion, stop_strings) != completion


class _GrowingAnswer:
    """What of one text is revealed without a gap; it is decoded when that has grown.

    Args:
        written (`list[int]`): tokens of windows that are done; new (`slice`): where the window has new tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: list[int], new: slice) -> None:
        self.tokenizer, self.written, self.new = tokenizer, written, new
        self.length, self.stopped = 0, False

    def holds(self, stop_strings: Sequence[str], canvas: Tensor, is_masked: Tensor) -> bool:
        """Whether one of the strings stands in it; `canvas` and `is_masked` are `(L,)`, of its row after a step."""
        masked = is_masked[self.new].nonzero()
        length = int(masked[0]) if len(masked) else self.new.stop - self.new.start
        if length > self.length and not self.stopped:
            self.length = length
            text = decode_text(self.tokenizer, self.written + canvas[self.new][:length].tolist())
            self.stopped = cut_at(text, stop_strings) != text
        return self.stopped


def longest_context(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiffusionGenerationConfig) -> int:
    """How many tokens of a context leave room for an answer.

    That is one of `max_new_tokens`, or, where these are above three quarters of what the model reads, of `stride`:
    such answers are written window by window. If nobody says how many, it is a quarter of a row of training.
    """
    limit, num_new = context_length(unwrap(model), tokenizer), config.max_new_tokens
    if num_new is None:
        limit = min(limit, training_facts(model).get("row_length") or limit)
        num_new = limit // 4
    room = limit - len(start_ids(tokenizer)) - len(closing_ids(model, tokenizer))
    if num_new > 3 * room // 4:
        num_new = config.stride if config.stride is not None else room // 2
    return max(room - num_new, 1)
