"""Text from a model of embedding diffusion: canvases go in, denoising steps come out, as from `filling`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..denoising_step import Constraint, DenoisingStep, EditLogits, GuideLogits, OnStep
from ..generation_config import DEFAULTS, DiffusionGenerationConfig
from ..randomness import fold_in, uniform
from ..sampling import NonFiniteLogitsError
from .clearing import AsInTraining, SurestFirst
from .likelihood import TOKEN_STREAM, row_noise
from .modeling import EmbeddingDiffusionModel
from .noise import add_noise, ddim_step, ddpm_step, expected_embedding

DEFAULT_STEPS = 64

_PADDING = -1
_SHOWN = 0.5  # from this probability on, a token is shown while the text forms
# What has a meaning here; any other setting says how masks go, and is left as it is by default.
_MEANT = (
    "steps",
    "sampler",
    "sampling",
    "temperature",
    "max_new_tokens",
    "stride",
    "num_return_sequences",
    "batch_size",
)
_MEANT_WITH_STAGGER = (*_MEANT, "order", "defer_end", "top_k", "top_p", "min_p", "typical_p")
_ORDERS = ("entropy", "random")


def require_gaussian_settings(config: DiffusionGenerationConfig, stagger: float) -> None:
    """Refuses settings that speak of masks, and without `stagger` those that speak of one place after another.

    Raises:
        ValueError: one is not as by default.
    """
    for name, default in DEFAULTS.items():
        value = getattr(config, name)
        if name not in _MEANT_WITH_STAGGER and (value or None) != (default or None):  # a block length of 0 is off
            raise ValueError(
                f"`{name}` is {value!r}, which says how masks go, but this model of Gaussian diffusion "
                f"has none: leave it out. `steps`, `sampler`, `order` and `temperature` are what it knows."
            )
        if not stagger and name not in _MEANT and value != default:
            raise ValueError(
                f"`{name}` is {value!r}, but this model was trained without `stagger`: all places become clear at "
                f"once, and no token is drawn. Leave it out."
            )
    if stagger and config.order not in _ORDERS:
        raise ValueError(
            f"`order` must be one of {', '.join(_ORDERS)} for a model of Gaussian diffusion, not {config.order!r}."
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

    Each step predicts the tokens and takes the places to their next noise level, without chance by DDIM or by a draw
    of the posterior (`sampler="ddpm"`):

    * of a model that was trained with `stagger`, one place after another, those of which the model is surest first
      (`clearing.SurestFirst`; `order="random"`: as in training). Of a place that moves a token is drawn as
      `sampling`, `temperature` and `top_p` say, and it moves towards its embedding. Of a place that goes alone such a
      step draws from the model's own law, in however few steps. DDIM draws with the same number at every step, so that
      chance is in the start alone.
    * of any other model, all places at once, each towards the mean embedding under the model's distribution (at
      `temperature`; the likeliest at 0 or with greedy sampling).

    The tokens of a row are the likeliest of its last prediction. What is given is never noised. Chance depends on the
    key of the canvas and the place alone.

    A step's canvas shows the likeliest token where its probability is at least one half, and a mask elsewhere; what
    changes is shown anew, and what becomes unsure is masked again.

    Raises:
        ValueError: a setting speaks of masks, there is a constraint, or `on_step` wants to change the canvas.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    stagger = model.config.stagger or 0.0
    require_gaussian_settings(config, stagger)
    if constraint is not None:
        raise ValueError("`constraints` need a masked model: embedding diffusion settles no token for good.")
    device, steps = ids.device, config.steps or DEFAULT_STEPS
    keys, attended, forbidden_ids = keys.to(device), ids.ne(_PADDING), forbidden_ids.to(device)
    read = ids.masked_fill(~attended, padding_id)
    clearing: SurestFirst | AsInTraining = AsInTraining(to_fill, keys, steps, stagger)
    if stagger and config.order == "entropy":
        clearing = SurestFirst(to_fill, steps, stagger, end_id if config.defer_end else None)
    move = _Move(model, config, stagger > 0)
    z = row_noise(keys, ids.shape[1], model.config.embedding_dim)
    rows = torch.arange(len(ids), device=device)  # that are still being written
    previous: Tensor | None = None
    canvas, is_masked = ids.masked_fill(to_fill, mask_id), to_fill
    confidence = torch.full(ids.shape, torch.nan, device=device)
    num_forwards = torch.zeros_like(rows)
    for index in range(steps):
        times, noised = clearing.times[rows], to_fill[rows]
        here = model.schedule.log_snr(times)
        output = model.predict(z[rows], here, read[rows], noised, attended[rows].long(), previous)
        logits = output.logits.float().index_fill(-1, forbidden_ids, -torch.inf)
        if end_id is not None:
            logits[..., end_id].masked_fill_(~may_end[rows], -torch.inf)
        of_row, position = noised.nonzero(as_tuple=True)
        for change in (
            edit_logits and partial(edit_logits, canvas[rows][of_row]),
            guide_logits and partial(guide_logits, canvas[rows][of_row], position),
        ):
            if change:
                logits[noised] = change(logits[noised]).float()
        _require_finite(logits[noised])
        is_last = times.eq(0).all(-1) | (index + 1 == steps)
        probability, token = torch.softmax(logits, -1).max(-1)
        was_masked, before, is_masked, canvas = is_masked, canvas, is_masked.clone(), canvas.clone()
        is_masked[rows] = noised & (probability < _SHOWN) & ~is_last[:, None]
        canvas[rows] = torch.where(noised, token.masked_fill(is_masked[rows], mask_id), ids[rows])
        confidence = confidence.index_copy(0, rows, probability.masked_fill(~noised | is_masked[rows], torch.nan))
        num_forwards[rows] += 1
        step = DenoisingStep(
            index=index,
            canvas=canvas.clone(),
            revealed=was_masked & ~is_masked,
            remasked=is_masked & ~was_masked & before.ne(mask_id),
            confidence=confidence.clone(),
            is_masked=is_masked.clone(),
            num_forwards=num_forwards.clone(),
        )
        if on_step is not None and on_step(step) is not None:
            raise ValueError("`on_step` may only look on: embedding diffusion has no canvas that could be changed.")
        yield step
        goes_on = ~is_last
        if not bool(goes_on.any()):
            return
        rows, here, logits = rows[goes_on], here[goes_on], logits[goes_on]
        x0 = output.embedding[goes_on] if output.embedding is not None else None
        clearing.advance(rows, torch.log_softmax(logits, -1))
        following = model.schedule.log_snr(clearing.times[rows])
        z[rows] = move(z[rows], logits, x0, here, following, keys[rows], index)
        previous = logits


class _Move:
    """Takes noisy embeddings to their next levels.

    Args:
        draws (`bool`): whether to drawn tokens, not to mean embeddings.
    """

    def __init__(self, model: EmbeddingDiffusionModel, config: DiffusionGenerationConfig, draws: bool) -> None:
        self.table, self.draws, self.is_ddpm = model.clean_embeddings(), draws, config.sampler == "ddpm"
        self.sampling = config.to_sampling()
        self.temperature = 0.0 if self.sampling.is_greedy else config.temperature

    def __call__(
        self, z: Tensor, logits: Tensor, x0: Tensor | None, here: Tensor, following: Tensor, keys: Tensor, index: int
    ) -> Tensor:
        """Rows `z` `(A, L, d)` from the levels `here` to `following`, `(A, L)`, in step `index`.

        Args:
            logits (`torch.Tensor` of shape `(A, L, V)`); x0 (`torch.Tensor` of shape `(A, L, d)`, *optional*): what
                the model predicts in place of the mean under them.
        """
        moves = following > here
        fresh = fold_in(keys, index + 1)
        if x0 is None and self.draws:
            u = uniform(fold_in(fresh if self.is_ddpm else keys, TOKEN_STREAM), z.shape[1])
            x0 = torch.zeros_like(z)
            x0[moves] = self.table[self.sampling.choose(logits[moves], u[moves])]
        elif x0 is None:
            x0 = expected_embedding(logits, self.table, self.temperature)
        if self.is_ddpm:
            moved = ddpm_step(z, x0, here, following, row_noise(fresh, *z.shape[1:]))
        else:
            moved = ddim_step(z, x0, here, following)
        return torch.where(moves[..., None], moved, z)


def noised_rows(model: EmbeddingDiffusionModel, input_ids: Tensor, log_snr: Tensor, keys: Tensor) -> Tensor:
    """Noisy embeddings of rows, `(B, L, d)`, at the levels `(B,)`: the forward process by itself, to look at."""
    clean = model.clean_embeddings()[input_ids]
    return add_noise(clean, row_noise(keys, input_ids.shape[1], clean.shape[-1]), log_snr)


def _require_finite(logits: Tensor) -> None:
    if bool(torch.isnan(logits).any()):
        raise NonFiniteLogitsError("The model's logits are not finite (NaN). Go back to an earlier checkpoint.")
