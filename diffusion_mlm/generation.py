"""Text from a masked language model: `generate` for finished texts, `stream` for every step on the way."""

import json
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from .canvas import CanvasRow, canvas_rows, padding_id, training_facts, without_start
from .denoising import DenoisingStep, denoise
from .generation_config import DEFAULTS, DiffusionGenerationConfig
from .modeling import (
    end_token_id,
    forbidden_token_ids,
    load_model,
    logits_at,
    require_mask_token,
    unwrap,
)
from .randomness import make_key

_PADDING = -1  # no token: a tokenizer's padding may be its end token too, which stands in text


@dataclass
class GeneratedText:
    """One sample.

    Attributes:
        prefix, completion, text (`str`): `text` is `prefix` + `completion`, the prefix byte for byte as given.
        token_ids (`list[int]`): the new tokens, up to the first `</s>` and without it.
        seed (`int`): passing it with the same prefix and settings gives this sample again.
        num_forwards (`int`): calls of the model on this row.
        tokens_per_forward (`float`): new tokens (`</s>` and what follows it included) per forward.
        finished (`bool`): whether the model ended the text with `</s>`.
    """

    prefix: str
    completion: str
    text: str
    token_ids: list[int]
    seed: int
    num_forwards: int
    tokens_per_forward: float
    finished: bool

    def to_json(self) -> str:
        """One line of strict JSON, in ASCII: no encoding, line separator or terminal code can break it."""
        return json.dumps(vars(self), allow_nan=False)


@dataclass
class DiffusionGenerationOutput:
    """What `generate` returns: the samples of the first prefix, then those of the second, ...

    Attributes:
        sequences (`torch.Tensor` of shape `(num_samples, L)`): the canvases, padded on the right.
        samples (`list[GeneratedText]`): one per row of `sequences`.
    """

    sequences: Tensor
    samples: list[GeneratedText]

    @property
    def texts(self) -> list[str]:
        return [sample.text for sample in self.samples]


def load_generator(
    name_or_path: str, *, trust_remote_code: bool = False, argument: str = "--checkpoint"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model ready to generate and its tokenizer, from a directory or the Hub.

    The model's `generation_config` is the `DiffusionGenerationConfig` saved beside it, or the defaults.

    Raises:
        ValueError: see `modeling.load_model`; or the tokenizer cannot be loaded or has no mask token; or
            `generation_config.json` is damaged or holds impossible settings.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    model = load_model(name_or_path, trust_remote_code=trust_remote_code, argument=argument)
    tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code, argument=argument)
    model.generation_config = _saved_generation_config(name_or_path, argument)
    return model.eval(), tokenizer


def load_tokenizer(
    name_or_path: str, *, trust_remote_code: bool = False, argument: str = "--checkpoint"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a masked language model, from a directory or the Hub.

    Raises:
        ValueError: it cannot be loaded, is not there at all, or has no mask token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare `Exception`
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
        raise ValueError(f"`{argument}` is {name_or_path!r}, whose tokenizer cannot be loaded: {reason}.") from error
    require_mask_token(tokenizer, argument)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # Where there are no files, transformers makes a tokenizer of nothing but special tokens, and says nothing.
        raise ValueError(f"`{argument}` is {name_or_path!r}, which holds no tokenizer. Save one beside the model.")
    return tokenizer


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: str | Sequence[str] = "",
    generation_config: DiffusionGenerationConfig | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    logits_processor: LogitsProcessorList | None = None,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> DiffusionGenerationOutput:
    """Continues each prefix by unmasking.

    Args:
        model (`torch.nn.Module`): a masked language model, or anything called like one, such as `ExactDenoiser`.
        tokenizer: of the model. Special-token strings in a prefix (`<mask>`, `</s>`) are plain text here.
        prefixes (`str` or sequence of them): an empty one generates from nothing.
        generation_config (`DiffusionGenerationConfig`, *optional*): by default the model's own, else the defaults.
        seed (`int`, *optional*): sample j of a prefix uses `seed + j`. Without it, one is drawn from `generator` or
            from torch's global generator.
        generator (`torch.Generator`, *optional*).
        logits_processor (`LogitsProcessorList`, *optional*): called before temperature and truncation with the canvas
            of each row of logits, `(N, L)`, and the logits, `(N, V)`; processors that work row by row are right.
        streamer (`BaseStreamer`, *optional*): gets the ids of the prefix, after every step a draft of the new ones (if
            it has `put_draft`), and at last the new ids; one sample after another, whatever `batch_size`.
        **settings: of `DiffusionGenerationConfig`, for this call.

    Returns:
        `DiffusionGenerationOutput`.

    Raises:
        ValueError: a setting is unknown or impossible, a prefix is no valid text or leaves no room in the context.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    was_training = model.training
    options: dict[str, Any] = {"seed": seed, "generator": generator, "logits_processor": logits_processor}
    try:
        done = list(
            generate_each(model, tokenizer, prefixes, generation_config, streamer=streamer, **options, **settings)
        )
    finally:
        if was_training:
            model.train()
    padding = padding_id(tokenizer)
    canvases = [canvas for _, canvas in done] or [torch.zeros(0, 0, dtype=torch.int64)]
    sequences = pad_sequence(canvases, batch_first=True, padding_value=padding) if done else canvases[0]
    return DiffusionGenerationOutput(sequences, [sample for sample, _ in done])


def generate_each(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: str | Sequence[str] = "",
    generation_config: DiffusionGenerationConfig | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    logits_processor: LogitsProcessorList | None = None,
    streamer: BaseStreamer | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Iterator[tuple[GeneratedText, Tensor]]:
    """What `generate` does, sample by sample: each comes with its canvas `(L,)` as soon as its batch is done.

    The arguments are checked at the call. `progress`, if given, is called after every step with the number of new
    tokens that are visible and of those there will be. The model stays in evaluation mode.
    """
    config = resolve_config(model, generation_config, settings)
    rows = canvas_rows(model, tokenizer, prefixes, config, _resolve_seed(seed, generator))
    total = sum(row.num_new for row in rows)
    batch_size = 1 if streamer is not None else config.batch_size

    def run() -> Iterator[tuple[GeneratedText, Tensor]]:
        visible = 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            if streamer is not None:
                streamer.put(torch.tensor(without_start(batch[0].prefix_ids, tokenizer), dtype=torch.int64))
            for step in _denoise_rows(model, tokenizer, batch, config, logits_processor):
                if streamer is not None and hasattr(streamer, "put_draft"):
                    streamer.put_draft(value=step.canvas[0, batch[0].new].cpu())
                if progress is not None:
                    progress(visible + sum(row.num_new for row in batch) - int(step.is_masked.sum()), total)
            visible += sum(row.num_new for row in batch)
            for place, row in enumerate(batch):
                canvas = step.canvas[place, : row.length].cpu()
                sample = _finish(tokenizer, row, canvas, int(step.num_forwards[place]))
                if streamer is not None:
                    streamer.put(torch.tensor(sample.token_ids, dtype=torch.int64))
                    streamer.end()
                yield sample, canvas

    return run()


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefix: str = "",
    generation_config: DiffusionGenerationConfig | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    logits_processor: LogitsProcessorList | None = None,
    **settings: Any,
) -> Iterator[DenoisingStep]:
    """The steps by which `generate` fills one canvas, each with tensors of shape `(1, L)`; arguments as there.

    The model stays in evaluation mode.
    """
    config = resolve_config(model, generation_config, settings).updated(num_return_sequences=1)
    rows = canvas_rows(model, tokenizer, [prefix], config, _resolve_seed(seed, generator))
    return _denoise_rows(model, tokenizer, rows, config, logits_processor)


def resolve_config(
    model: nn.Module, generation_config: DiffusionGenerationConfig | None, settings: dict[str, Any]
) -> DiffusionGenerationConfig:
    """The settings in force: of the call, over those given, over those of the model, over the defaults.

    Raises:
        ValueError: a setting is unknown or impossible, or `top_k` was set above the vocabulary.
    """
    if generation_config is not None and not isinstance(generation_config, DiffusionGenerationConfig):
        kind = type(generation_config).__name__
        raise ValueError(
            f"`generation_config` must be a DiffusionGenerationConfig, not {kind}: it lacks our settings."
        )
    of_model = getattr(unwrap(model), "generation_config", None)
    base = of_model if isinstance(of_model, DiffusionGenerationConfig) else DiffusionGenerationConfig()
    config = (generation_config if generation_config is not None else base).updated(**settings)
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", None)
    is_set = "top_k" in settings or config.top_k != DEFAULTS["top_k"]  # the default is for vocabularies of any size
    if is_set and vocab_size is not None and config.top_k > vocab_size:
        raise ValueError(
            f"`top_k` is {config.top_k}, above the vocabulary of {vocab_size}. Use a smaller one, or 0: off."
        )
    return config


def _saved_generation_config(name_or_path: str, argument: str) -> DiffusionGenerationConfig:
    try:
        saved = GenerationConfig.from_pretrained(name_or_path)
    except OSError as error:
        if (Path(name_or_path) / "generation_config.json").is_file():
            raise ValueError(f"`{argument}` is {name_or_path!r}, whose generation_config.json is no JSON.") from error
        return DiffusionGenerationConfig()  # a masked language model that was never trained here
    if not hasattr(saved, "schedule"):  # a file of transformers' own, which says nothing about diffusion
        return DiffusionGenerationConfig()
    try:
        return DiffusionGenerationConfig.from_pretrained(name_or_path)
    except ValueError as error:
        raise ValueError(f"`{argument}` is {name_or_path!r}; in its generation_config.json {error}") from error


def _resolve_seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` exclude one another: pass one of them.")
    if seed is None:
        device = generator.device if generator is not None else None
        return int(torch.randint(2**31, (), generator=generator, device=device))
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be a whole number in [0, 2**32), not {seed!r}.")
    return int(seed)


def _denoise_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[CanvasRow],
    config: DiffusionGenerationConfig,
    logits_processor: LogitsProcessorList | None,
) -> Iterator[DenoisingStep]:
    """The steps of a batch; beyond the end of a shorter row its canvas holds `_PADDING`."""
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else getattr(model, "device", None)
    mask_id, padding = require_mask_token(tokenizer, "tokenizer"), padding_id(tokenizer)
    canvas = torch.full((len(rows), max(row.length for row in rows)), _PADDING)
    to_fill = torch.zeros(canvas.shape, dtype=torch.bool)
    for place, row in enumerate(rows):
        canvas[place, : row.length] = torch.tensor(row.prefix_ids + [mask_id] * row.num_new + row.closing)
        to_fill[place, row.new] = True

    def predict_logits(canvas: Tensor, needed: Tensor) -> Tensor:
        attended = canvas.ne(_PADDING)
        ids = canvas.masked_fill(~attended, padding)
        return logits_at(model, needed, input_ids=ids, attention_mask=attended.long())

    def edit_logits(canvas: Tensor, logits: Tensor) -> Tensor:
        return logits_processor(canvas.masked_fill(canvas.eq(_PADDING), padding), logits)  # type: ignore[misc, arg-type]

    model.eval()
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", len(tokenizer))
    forbidden = forbidden_token_ids(tokenizer, bool(training_facts(model).get("generates_end")), vocab_size)
    return denoise(
        predict_logits,
        canvas.to(device),
        to_fill.to(device),
        mask_id=mask_id,
        keys=torch.tensor([make_key("generate", row.seed, *row.prefix_ids) for row in rows]),
        forbidden_ids=torch.tensor(forbidden),
        sampling=config.to_sampling(),
        steps=config.steps,
        schedule=config.schedule,
        order=config.order,
        order_noise=config.order_noise,
        order_from=config.order_from,  # type: ignore[arg-type]
        remask=config.remask,
        edit_logits=edit_logits if logits_processor else None,
    )


def _finish(tokenizer: PreTrainedTokenizerBase, row: CanvasRow, canvas: Tensor, num_forwards: int) -> GeneratedText:
    new_ids = canvas[row.new].tolist()
    end = end_token_id(tokenizer)
    finished = end in new_ids
    token_ids = new_ids[: new_ids.index(end)] if finished else new_ids
    # Decoded together with its prefix, so that spaces and characters of several tokens come out right.
    prefix_ids = without_start(row.prefix_ids, tokenizer)
    before, whole = tokenizer.decode(prefix_ids), tokenizer.decode(prefix_ids + token_ids)
    completion = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(token_ids)
    if row.prefix.endswith(" ") and not before.endswith(" "):  # the space that `_encode_prefix` left to the next word
        completion = completion.removeprefix(" ")
    return GeneratedText(
        prefix=row.prefix,
        completion=completion,
        text=row.prefix + completion,
        token_ids=token_ids,
        seed=row.seed,
        num_forwards=num_forwards,
        tokens_per_forward=row.num_new / max(num_forwards, 1),
        finished=finished,
    )
