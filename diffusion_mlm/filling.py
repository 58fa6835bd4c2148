"""Filling: a masked language model, canvases and settings go in, denoising steps come out."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from .canvas import Canvas, is_gaussian, padding_id, training_facts
from .denoising import DenoisingStep, OnStep, denoise
from .denoising_step import Constraint, GuideLogits
from .generation_config import DiffusionGenerationConfig
from .guidance import require_guidance
from .last_layer import is_like_bert
from .modeling import end_token_id, forbidden_token_ids, logits_at, require_mask_token, unwrap

_PADDING = -1  # no token: a tokenizer's padding may be its end token too, which stands in text


def fill_canvases(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    canvases: list[Canvas],
    config: DiffusionGenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
    guidance: GuideLogits | None = None,
    on_step: OnStep | None = None,
    constraint: Constraint | None = None,
) -> Iterator[DenoisingStep]:
    """The steps that fill a batch of canvases; beyond the end of a shorter one its row holds -1.

    A model of embedding diffusion fills them by taking noise away, see `embedding_diffusion.generation`; the steps of
    any other lie on the CPU, wherever the model is. The model is put into evaluation mode, and stays there. `guidance`
    sees every canvas as it is alone, without -1.
    """
    require_guidance(guidance)
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else getattr(model, "device", None)
    mask_id, padding = require_mask_token(tokenizer, "tokenizer"), padding_id(tokenizer)
    ids = torch.full((len(canvases), max(len(canvas.ids) for canvas in canvases)), _PADDING)
    to_fill = torch.zeros(ids.shape, dtype=torch.bool)
    given, may_end = torch.zeros_like(to_fill), torch.zeros_like(to_fill)
    for row, canvas in enumerate(canvases):
        ids[row, : len(canvas.ids)] = torch.tensor(canvas.ids)
        to_fill[row, : len(canvas.ids)] = torch.tensor(canvas.to_fill)
        given[row, : len(canvas.ids)] = torch.tensor(canvas.given)
        may_end[row] = canvas.may_end

    looks_for_itself = is_like_bert(unwrap(model))

    def predict_logits(canvas: Tensor, needed: Tensor) -> Tensor:
        attended = canvas.ne(_PADDING)
        read = canvas.masked_fill(~attended, padding)
        inputs = {"input_ids": read.to(device, non_blocking=True)}
        if not (looks_for_itself and bool(attended.all())):  # it would wait for its device to look
            inputs["attention_mask"] = attended.long().to(device, non_blocking=True)
        return logits_at(model, needed, **inputs)

    def edit_logits(canvas: Tensor, logits: Tensor) -> Tensor:
        return logits_processor(canvas.masked_fill(canvas.eq(_PADDING), padding), logits)  # type: ignore[misc, arg-type]  # asked only if given

    def guide_logits(canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
        guided, lengths = torch.empty_like(logits), canvas.ne(_PADDING).sum(-1)
        for length in lengths.unique().tolist():
            rows = lengths == length
            found = guidance(canvas[rows, :length], position[rows], logits[rows])  # type: ignore[misc]  # asked only if given
            if not isinstance(found, Tensor) or found.shape != logits[rows].shape:
                expected = tuple(logits[rows].shape)
                raise ValueError(f"`guidance` must return logits of shape {expected}, as it gets them.")
            guided[rows] = found.to(guided)
        return guided

    model.eval()
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", len(tokenizer))
    writes_ends = bool(training_facts(model).get("generates_end"))
    keys = torch.tensor([canvas.key for canvas in canvases])
    forbidden_ids = torch.tensor(forbidden_token_ids(tokenizer, writes_ends, vocab_size))
    if is_gaussian(model):
        gaussian: Any = unwrap(model)
        return gaussian.fill(
            ids.to(device),
            to_fill.to(device),
            config,
            mask_id=mask_id,
            padding_id=padding,
            keys=keys,
            forbidden_ids=forbidden_ids,
            end_id=end_token_id(tokenizer) if writes_ends else None,
            may_end=may_end.to(device),
            edit_logits=edit_logits if logits_processor else None,
            guide_logits=guide_logits if guidance is not None else None,
            on_step=on_step,
            constraint=constraint,
        )
    require_masked_settings(config)
    # Canvases stay on the CPU: a step does much with few numbers, and starting each of these on a GPU takes longer.
    return denoise(
        predict_logits,
        ids,
        to_fill,
        mask_id=mask_id,
        keys=keys,
        forbidden_ids=forbidden_ids,
        sampling=config.to_sampling(),
        steps=config.steps,
        steps_per_token=config.steps_per_token,
        schedule=config.schedule,
        reveal=config.reveal,
        adaptive=config.to_adaptive(),
        block_length=config.to_block_length(),
        order=config.order,
        order_noise=config.order_noise,
        order_from=config.order_from,  # type: ignore[arg-type]  # the config has checked it
        min_gap=config.min_gap,
        remask=config.to_remasking(),
        final_pass=config.final_pass,
        end_id=end_token_id(tokenizer) if writes_ends else None,
        may_end=may_end,
        defer_end=config.defer_end,
        guidance_scale=config.guidance_scale,
        condition=given,
        repetition=config.to_repetition(),
        edit_logits=edit_logits if logits_processor else None,
        guide_logits=guide_logits if guidance is not None else None,
        on_step=on_step,
        constraint=constraint,
    )


def require_masked_settings(config: DiffusionGenerationConfig) -> None:
    """Refuses what a model of masks does not have.

    Raises:
        ValueError: there is a sampler of Gaussian diffusion.
    """
    if config.sampler is not None:
        raise ValueError(f"`sampler` is {config.sampler!r}, but a masked model has none: leave it out.")
