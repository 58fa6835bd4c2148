"""Text from a model of embedding diffusion: canvases go in, denoising steps come out, as from `filling`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..denoising_step import Constraint, DenoisingStep, EditLogits, GuideLogits, OnStep
from ..generation_config import DEFAULTS, DiffusionGenerationConfig
from ..randomness import fold_in
from ..sampling import NonFiniteLogitsError
from .likelihood import row_noise
from .modeling import EmbeddingDiffusionModel
from .noise import add_noise, ddim_step, ddpm_step, expected_embedding, sampling_times, staggered_times

DEFAULT_STEPS = 64

_PADDING = -1
_SURE = 0.5  # from this probability on, a token is shown while the text forms
# What has a meaning here; any other setting says how masks go, and is left as it is by default.
_MEANT = (
    "steps", "sampler", "sampling", "temperature", "top_k", "top_p", "min_p", "typical_p", "max_new_tokens", "stride",
    "num_return_sequences", "batch_size",
)  # fmt: skip


def require_gaussian_settings(config: DiffusionGenerationConfig) -> None:
    """Refuses settings that speak of masks.

    Raises:
        ValueError: one is not as by default.
    """
    for name, default in DEFAULTS.items():
        value = getattr(config, name)
        if name not in _MEANT and (value or None) != (default or None):  # a block length of 0 is off
            raise ValueError(
                f"`{name}` is {value!r}, which says how masks go, but this model of Gaussian diffusion "
                f"has none: leave it out. `steps`, `sampler` and `temperature` are what it knows."
            )


@torch.no_grad()
def fill_by_denoising(
    model: EmbeddingDiffusionModel,
    ids: Tensor,
    to_fill: Tensor,
    config: DiffusionGenerationConfig,
    *,
    mask_id: int,
    padding_id: int,
    keys: Tensor,
    forbidden_ids: Tensor,
    end_id: int | None,
    may_end: Tensor,
    edit_logits: EditLogits | None = None,
    guide_logits: GuideLogits | None = None,
    on_step: OnStep | None = None,
    constraint: Constraint | None = None,
) -> Iterator[DenoisingStep]:
    """The steps that fill canvases `ids` `(B, L)` where `to_fill` `(B, L)` is True; -1 is beyond the end of a row.

    Each step predicts the clean embeddings as their mean under the model's distribution (at `temperature`; the
    likeliest at 0 or with greedy sampling) and goes to the next noise level: without chance by DDIM, or by a draw of
    the posterior (`sampler="ddpm"`). Levels are equally far in the model's diffusion time, and reach the places in a
    random order if the model was trained so (`stagger`). Tokens are the likeliest of
    the last prediction. What is given is never noised. Noise depends on the key of the canvas and the place alone.

    A step's canvas shows the likeliest token where its probability is at least one half, and a mask elsewhere; what
    changes is shown anew, and what becomes unsure is masked again.

    Raises:
        ValueError: a setting speaks of masks, there is a constraint, or `on_step` wants to change the canvas.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    require_gaussian_settings(config)
    if constraint is not None:
        raise ValueError("`constraints` need a masked model: embedding diffusion settles all tokens at once.")
    device = ids.device
    keys, attended = keys.to(device), ids.ne(_PADDING)
    read = ids.masked_fill(~attended, padding_id)
    rows, positions = to_fill.nonzero(as_tuple=True)
    temperature = 0.0 if config.to_sampling().is_greedy else config.temperature
    table, dim = model.clean_embeddings(), model.config.embedding_dim
    times = sampling_times(config.steps or DEFAULT_STEPS).to(device)
    levels = [
        model.schedule.log_snr(staggered_times(time.expand(len(ids)), to_fill, keys, model.config.stagger or 0.0))
        for time in times
    ]
    z = row_noise(keys, ids.shape[1], dim)
    previous: Tensor | None = None
    was_masked, canvas = to_fill, ids.masked_fill(to_fill, mask_id)
    for index, here in enumerate(levels):
        output = model.predict(z, here, read, to_fill, attended.long(), previous)
        logits = output.logits.float().index_fill(-1, forbidden_ids.to(device), -torch.inf)
        if end_id is not None:
            logits[..., end_id].masked_fill_(~may_end, -torch.inf)
        for change in (
            edit_logits and partial(edit_logits, canvas[rows]),
            guide_logits and partial(guide_logits, canvas[rows], positions),
        ):
            if change:
                logits[to_fill] = change(logits[to_fill]).float()
        _require_finite(logits[to_fill])
        is_last = index + 1 == len(levels)
        probability, token = torch.softmax(logits, -1).max(-1)
        is_masked = torch.zeros_like(to_fill) if is_last else to_fill & (probability < _SURE)
        before, canvas = canvas, torch.where(to_fill, token.masked_fill(is_masked, mask_id), ids)
        step = DenoisingStep(
            index=index,
            canvas=canvas.clone(),
            revealed=was_masked & ~is_masked,
            remasked=to_fill & is_masked & ~was_masked & before.ne(mask_id),
            confidence=probability.masked_fill(~to_fill | is_masked, torch.nan),
            is_masked=is_masked.clone(),
            num_forwards=torch.full((len(ids),), index + 1, device=device),
        )
        if on_step is not None and on_step(step) is not None:
            raise ValueError("`on_step` may only look on: embedding diffusion has no canvas that could be changed.")
        yield step
        if is_last:
            return
        was_masked, previous = is_masked, logits
        x0 = output.embedding if output.embedding is not None else expected_embedding(logits, table, temperature)
        following = levels[index + 1]
        if config.sampler in (None, "ddim"):
            z = ddim_step(z, x0, here, following)
        else:
            z = ddpm_step(z, x0, here, following, row_noise(fold_in(keys, index + 1), ids.shape[1], dim))


def noised_rows(model: EmbeddingDiffusionModel, input_ids: Tensor, log_snr: Tensor, keys: Tensor) -> Tensor:
    """Noisy embeddings of rows, `(B, L, d)`, at the levels `(B,)`: the forward process by itself, to look at."""
    clean = model.clean_embeddings()[input_ids]
    return add_noise(clean, row_noise(keys, input_ids.shape[1], clean.shape[-1]), log_snr)


def _require_finite(logits: Tensor) -> None:
    if bool(torch.isnan(logits).any()):
        raise NonFiniteLogitsError("The model's logits are not finite (NaN). Go back to an earlier checkpoint.")
