"""Text from a masked language model: `generate` for finished texts, `stream` for every step on the way."""

import importlib
import json
import logging
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
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

from .canvas import is_gaussian_checkpoint, padding_id, without_start
from .constraints import Constraints, completion_text
from .continuation import Continuation, constrain, continue_texts, make_continuations
from .denoising import DenoisingStep
from .denoising_step import GuideLogits
from .generation_config import DEFAULTS, DiffusionGenerationConfig
from .guidance import require_guidance
from .hub_access import HubSource
from .modeling import end_token_id, load_model, require_mask_token, unwrap
from .packed_linear import pack_linears
from .row_steps import OnTextStep
from .tokenization import decode_text
from .tracing import TraceRecorder

logger = logging.getLogger(__name__)


@dataclass
class GeneratedText:
    """One sample.

    Attributes:
        prefix, completion, text (`str`): `text` is `prefix` + `completion`, the prefix byte for byte as given.
        token_ids (`list[int]`): the new tokens, up to the first `</s>` and without it.
        seed (`int`): passing it with the same prefix and settings gives this sample again.
        num_forwards (`int`): calls of the model on this row; two a step with `guidance_scale`.
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
    name_or_path: str,
    *,
    trust_remote_code: bool = False,
    argument: str = "--checkpoint",
    source: HubSource | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model ready to generate and its tokenizer, from a directory or the Hub (`source`: see `load_model`).

    The model's `generation_config` is the `DiffusionGenerationConfig` saved beside it, or the defaults. On a CPU its
    matrices are packed when they are first used, which takes their memory twice; `packed_linear.unpack_linears` makes
    plain `torch.nn.Linear` of its layers again, which quantization and the like look for.

    Raises:
        ValueError: see `modeling.load_model`; or the tokenizer cannot be loaded or has no mask token; or
            `generation_config.json` is damaged or holds impossible settings.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "argument": argument, "source": source}
    model: PreTrainedModel
    if is_gaussian_checkpoint(name_or_path, source):
        # Found by name: the code that a repository carries (`remote_code`) is of masked models and goes without.
        loading = importlib.import_module(f"{__package__}.embedding_diffusion.loading")
        model = loading.load_embedding_diffusion(name_or_path, argument, source)
    else:
        model = load_model(name_or_path, **how)
    tokenizer = load_tokenizer(name_or_path, **how)
    model.generation_config = saved_generation_config(name_or_path, argument, source)
    pack_linears(model)
    return model.eval(), tokenizer


def load_tokenizer(
    name_or_path: str,
    *,
    trust_remote_code: bool = False,
    argument: str = "--checkpoint",
    source: HubSource | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a masked language model, from a directory or the Hub (`source`: see `load_model`).

    Raises:
        ValueError: it cannot be loaded, is not there at all, or has no mask token.
    """
    try:
        where: dict[str, Any] = {**(source or {})}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **where)
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
    constraints: Constraints | None = None,
    guidance: GuideLogits | None = None,
    streamer: BaseStreamer | None = None,
    on_step: OnTextStep | None = None,
    recorder: TraceRecorder | None = None,
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
        constraints (`Constraints`, *optional*): an expression, banned or allowed words that hold in every sample.
        guidance (`Callable`, *optional*): changes the logits of tokens that are about to be drawn, such as a
            `CandidateGuidance`; it gets each canvas `(N, L)`, the position `(N,)` and the logits `(N, V)`.
        streamer (`BaseStreamer`, *optional*): gets the ids of the prefix, after every step a draft of the new ones (if
            it has `put_draft`), and at last the new ids; one sample after another, whatever `batch_size`.
        on_step (`Callable`, *optional*): called after every step of every text, with that text alone as `stream` shows
            it: tensors `(1, L)`, whatever `batch_size`. It returns None to go on; a canvas `(1, L)` to go on with, in
            which new tokens may differ, `<mask>` among them to have places written again (nothing but that with
            `constraints`); or `"finish"` to have all that is left of this canvas revealed by one more forward. What it
            masks again after the last step is revealed by one more forward, once. In a text longer than the model
            reads, all this is about the window at hand; the next one is asked about anew.
        recorder (`TraceRecorder`, *optional*): keeps every step, to be saved and replayed without a model.
        **settings: of `DiffusionGenerationConfig`, for this call.

    Returns:
        `DiffusionGenerationOutput`.

    Raises:
        ValueError: a setting is unknown or impossible, a prefix is no valid text or leaves no room in the context.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    was_training = model.training
    options: dict[str, Any] = {
        "seed": seed,
        "generator": generator,
        "logits_processor": logits_processor,
        "constraints": constraints,
        "on_step": on_step,
        "guidance": guidance,
        "recorder": recorder,
    }
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
    constraints: Constraints | None = None,
    guidance: GuideLogits | None = None,
    streamer: BaseStreamer | None = None,
    on_step: OnTextStep | None = None,
    recorder: TraceRecorder | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Iterator[tuple[GeneratedText, Tensor]]:
    """What `generate` does, sample by sample: each comes with its canvas `(L,)` as soon as its batch is done.

    The arguments are checked at the call. `progress`, if given, is called after every step with the number of new
    tokens that are visible and of those there will be. The model stays in evaluation mode.
    """
    config = resolve_config(model, generation_config, settings)
    require_guidance(guidance)
    texts = make_continuations(model, tokenizer, prefixes, config, resolve_seed(seed, generator))
    if constraints:
        constrain(model, tokenizer, texts, constraints)
    total = sum(text.num_new for text in texts)
    batch_size = 1 if streamer is not None or recorder is not None else config.batch_size
    if recorder is not None and not constraints:  # under constraints, whoever watches changes how tokens are drawn
        guidance = recorder.watch(guidance)

    def run() -> Iterator[tuple[GeneratedText, Tensor]]:
        finished = 0
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            if streamer is not None:
                streamer.put(torch.tensor(without_start(batch[0].prefix_ids, tokenizer), dtype=torch.int64))
            if recorder is not None:
                recorder.start()
            for step, places in continue_texts(model, tokenizer, batch, config, logits_processor, guidance, on_step):
                if streamer is not None and hasattr(streamer, "put_draft"):
                    draft = batch[0].new_ids + step.canvas[0, places[0]].tolist()
                    streamer.put_draft(value=torch.tensor(draft))
                if recorder is not None:
                    recorder.see(step, range(places[0].start, places[0].stop))
                if progress is not None:
                    done = sum(text.num_new if text.ended else len(text.new_ids) for text in batch)
                    visible = sum(new.stop - new.start for new in places) - int(step.is_masked.sum())
                    progress(finished + done + visible, total)
            finished += sum(text.num_new for text in batch)
            for text in batch:
                sample = finish_text(tokenizer, text)
                if recorder is not None:
                    prefix_ids = without_start(text.prefix_ids, tokenizer)
                    facts = {"seed": sample.seed, "num_forwards": sample.num_forwards}
                    recorder.finish_continuation(text.prefix, prefix_ids, sample.token_ids, sample.text, **facts)
                if streamer is not None:
                    streamer.put(torch.tensor(sample.token_ids, dtype=torch.int64))
                    streamer.end()
                yield sample, torch.tensor(text.ids)

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
    constraints: Constraints | None = None,
    guidance: GuideLogits | None = None,
    on_step: OnTextStep | None = None,
    **settings: Any,
) -> Iterator[DenoisingStep]:
    """The steps by which `generate` fills one canvas, each with tensors of shape `(1, L)`; arguments as there.

    Where the text is longer than the model reads, one window after another is the canvas. What `on_step` changes in a
    step is part of it. The model stays in evaluation mode.
    """
    config = resolve_config(model, generation_config, settings).updated(num_return_sequences=1)
    require_guidance(guidance)
    texts = make_continuations(model, tokenizer, [prefix], config, resolve_seed(seed, generator))
    if constraints:
        constrain(model, tokenizer, texts, constraints)
    return (step for step, _ in continue_texts(model, tokenizer, texts, config, logits_processor, guidance, on_step))


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


def saved_generation_config(
    name_or_path: str, argument: str = "--checkpoint", source: HubSource | None = None
) -> DiffusionGenerationConfig:
    """The settings saved beside a model, or the defaults, with a warning if one cannot know; no weights are loaded.

    Raises:
        ValueError: `generation_config.json` is damaged or holds impossible settings.
    """
    where: dict[str, Any] = {**(source or {})}
    try:
        # Of a greedy one transformers would warn that it has a nucleus, which it may well have.
        saved = GenerationConfig.from_pretrained(name_or_path, do_sample=True, **where)
    except OSError as error:
        if (Path(name_or_path) / "generation_config.json").is_file():
            raise ValueError(f"`{argument}` is {name_or_path!r}, whose generation_config.json is no JSON.") from error
        is_there_none = isinstance(error.__cause__, EntryNotFoundError)
        if not Path(name_or_path).is_dir() and (
            not is_there_none or isinstance(error.__cause__, LocalEntryNotFoundError)
        ):
            logger.warning(
                "generation_config.json of %s cannot be read: the default settings hold. If it is private, set "
                "HF_TOKEN or load it by `TextDiffusionPipeline.from_pretrained(..., token=...)`.",
                name_or_path,
            )
        return DiffusionGenerationConfig()  # a masked language model that was never trained here
    if not hasattr(saved, "schedule"):  # a file of transformers' own, which says nothing about diffusion
        return DiffusionGenerationConfig()
    try:
        return DiffusionGenerationConfig.from_pretrained(name_or_path, **where)
    except ValueError as error:
        raise ValueError(f"`{argument}` is {name_or_path!r}; in its generation_config.json {error}") from error


def resolve_seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` exclude one another: pass one of them.")
    if seed is None:
        device = generator.device if generator is not None else None
        return int(torch.randint(2**31, (), generator=generator, device=device))
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be a whole number in [0, 2**32), not {seed!r}.")
    return int(seed)


def finish_text(tokenizer: PreTrainedTokenizerBase, text: Continuation) -> GeneratedText:
    """The sample that a text which is done is."""
    end = end_token_id(tokenizer)
    finished = end in text.new_ids
    token_ids = text.new_ids[: text.new_ids.index(end)] if finished else text.new_ids
    prefix_ids = without_start(text.prefix_ids, tokenizer)
    completion = completion_text(partial(decode_text, tokenizer), text.prefix, prefix_ids, token_ids)
    return GeneratedText(
        prefix=text.prefix,
        completion=completion,
        text=text.prefix + completion,
        token_ids=token_ids,
        seed=text.seed,
        num_forwards=text.num_forwards,
        tokens_per_forward=len(text.new_ids) / max(text.num_forwards, 1),
        finished=finished,
    )
