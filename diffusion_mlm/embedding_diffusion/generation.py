"""Text from a model of embedding diffusion: canvases go in, denoising steps come out, as from `filling`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..denoising_step import Constraint, DenoisingStep, EditLogits, GuideLogits, OnStep
from ..generation_config import DEFAULTS, DiffusionGenerationConfig
from ..randomness import fold_in, uniform
from ..sampling import log_probabilities
from .clearing import AsInTraining, SurestFirst
from .likelihood import TOKEN_STREAM, row_noise
from .modeling import EmbeddingDiffusionConfig, EmbeddingDiffusionModel
from .noise import add_noise, ddim_step, ddpm_step, expected_embedding

DEFAULT_STEPS = 64

_PADDING = -1
_SHOWN = 0.5  # from this probability on, a token is shown while the text forms
# What has a meaning here; any other setting says how masks go, and is left as it is by default.
_MEANT = ("steps", "sampler", "max_new_tokens", "stride", "num_return_sequences", "batch_size")
_MEANT_OF_MEANS = ("sampling", "temperature")
_MEANT_OF_DRAWS = ("sampling", "temperature", "top_k", "top_p", "min_p", "typical_p", "order", "defer_end")
_ORDERS = ("entropy", "random")


def require_gaussian_settings(config: DiffusionGenerationConfig, model_config: EmbeddingDiffusionConfig) -> None:
    """Refuses settings that speak of masks, and those that a model which draws no tokens cannot follow.

    Raises:
        ValueError: one is not as by default.
    """
    draws = model_config.draws_tokens
    meant = (*_MEANT, *(_MEANT_OF_DRAWS if draws else _MEANT_OF_MEANS))
    for name, default in DEFAULTS.items():
        value = getattr(config, name)
        if name in meant or (value or None) == (default or None):  # a block length of 0 is off
            continue
        if name in _MEANT_OF_DRAWS:
            raise ValueError(
                f"`{name}` is {value!r}, but this model of Gaussian diffusion clears all places at once, or predicts "
                f"noise, and draws no tokens: leave it out, or train with a `stagger`."
            )
        raise ValueError(
            f"`{name}` is {value!r}, which says how masks go, but this model of Gaussian diffusion has none: leave it "
            f"out. It knows {', '.join(meant)}."
        )
    if not draws and config.sampling not in (DEFAULTS["sampling"], "greedy"):
        raise ValueError(
            f"`sampling` is {config.sampling!r}, but this model of Gaussian diffusion draws no tokens: greedy is all "
            f"that makes a difference."
        )
    if config.order not in _ORDERS:
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

    Each step predicts the tokens and takes the places to their next noise level, with the noise that they have by DDIM
    or by a draw of the posterior (`sampler="ddpm"`):

    * of a model that was trained with `stagger`, one place after another, those of which the model is surest first
      (`clearing.SurestFirst`; `order="random"`, and always with a stagger below 1: as in training). Of a place that
      moves a token is drawn as `sampling`, `temperature` and `top_p` say, and it moves towards the token's embedding.
      By DDIM the token is drawn when a place begins, which is clear in the next step (in the order of training: after
      its window). By DDPM it is drawn anew in each step, over half as many steps as a window has in training. A place
      that goes alone so follows the model's own law, in however few steps. There is no self-conditioning: a draw is
      news that the prediction before lacks.
    * of any other model, all places at once, each towards the mean embedding under the model's distribution (at
      `temperature`; the likeliest at 0 or with greedy sampling), or towards what it predicts by itself.

    The tokens of a row are the likeliest of its last prediction. What is given is never noised. Chance depends on the
    key of the canvas and the place alone.

    A step's canvas shows the likeliest token where its probability is at least one half, and a mask elsewhere; what
    changes is shown anew, and what becomes unsure is masked again.

    Raises:
        ValueError: a setting speaks of masks, there is a constraint, or `on_step` wants to change the canvas.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    stagger = model.config.stagger or 0.0
    require_gaussian_settings(config, model.config)
    if constraint is not None:
        raise ValueError("`constraints` need a masked model: embedding diffusion settles no token for good.")
    device, steps = ids.device, config.steps or DEFAULT_STEPS
    keys, attended, forbidden_ids = keys.to(device), ids.ne(_PADDING), forbidden_ids.to(device)
    read = ids.masked_fill(~attended, padding_id)
    clearing: SurestFirst | AsInTraining = AsInTraining(to_fill, keys, steps, stagger)
    if stagger >= 1 and config.order == "entropy":
        # DDIM keeps token and noise, so that nothing happens on the way of a place: it is clear one step later.
        window = max(int(steps / (1 + stagger) / 2), 1) if config.sampler == "ddpm" else 1
        clearing = SurestFirst(to_fill, steps, window, end_id if config.defer_end else None)
    move = _Move(model, config, keys, ids.shape[1])
    z = row_noise(keys, ids.shape[1], model.config.embedding_dim)
    rows = torch.arange(len(ids), device=device)  # that are still being written
    previous: Tensor | None = None
    canvas, is_masked = ids.masked_fill(to_fill, mask_id), to_fill
    confidence = torch.full(ids.shape, torch.nan, device=device)
    num_forwards, finishing = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
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
                before = logits[noised]
                logits[noised] = change(before).float().masked_fill(before.isneginf(), -torch.inf)
        log_probabilities(logits[noised])  # raises where there is nothing to choose from
        is_last = times.eq(0).all(-1) | finishing[rows] | (index + 1 == steps)
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
        if on_step is not None:
            finishing |= _finishing(on_step(step), step)
        yield step
        goes_on = ~is_last
        if not bool(goes_on.any()):
            return
        rows, here, logits = rows[goes_on], here[goes_on], logits[goes_on]
        x0 = output.embedding[goes_on] if output.embedding is not None else None
        clearing.advance(rows, logits)
        following = model.schedule.log_snr(clearing.times[rows])
        z[rows] = move(z[rows], logits, x0, times[goes_on].eq(1), here, following, rows, index)
        previous = None if model.config.draws_tokens else logits


def _finishing(answer: Tensor | str | tuple[Tensor, Tensor] | None, step: DenoisingStep) -> Tensor | bool:
    """Which rows end with the next step, `(B,)` bool, by what `on_step` answers."""
    canvas, finish = answer if isinstance(answer, tuple) else (answer, None)
    if isinstance(canvas, Tensor) and not torch.equal(canvas.to(step.canvas), step.canvas):
        raise ValueError(
            "`on_step` returned another canvas, but embedding diffusion has none that could be changed: return None "
            "or 'finish'."
        )
    return finish.to(step.canvas.device) if finish is not None else isinstance(answer, str)


class _Move:
    """Takes noisy embeddings to their next levels: towards drawn tokens, or towards mean embeddings."""

    def __init__(
        self, model: EmbeddingDiffusionModel, config: DiffusionGenerationConfig, keys: Tensor, length: int
    ) -> None:
        self.table, self.draws, self.keys = model.clean_embeddings(), model.config.draws_tokens, keys
        self.sampling, self.is_ddpm = config.to_sampling(), config.sampler == "ddpm"
        self.temperature = 0.0 if self.sampling.is_greedy else config.temperature
        self.tokens = torch.zeros(len(keys), length, dtype=torch.int64, device=keys.device)

    def __call__(
        self,
        z: Tensor,
        logits: Tensor,
        x0: Tensor | None,
        waits: Tensor,
        here: Tensor,
        following: Tensor,
        rows: Tensor,
        index: int,
    ) -> Tensor:
        """Rows `z` `(A, L, d)` from the levels `here` to `following`, `(A, L)`, in step `index`.

        Args:
            logits (`torch.Tensor` of shape `(A, L, V)`); x0 (`torch.Tensor` of shape `(A, L, d)`, *optional*): what
                the model predicts in place of the mean under them.
            waits (`torch.BoolTensor` of shape `(A, L)`): places that are noise; rows (`torch.Tensor` of shape `(A,)`).
        """
        moves = following > here
        fresh = fold_in(self.keys[rows], index + 1)
        if self.draws:
            u = uniform(fold_in(fresh, TOKEN_STREAM), z.shape[1])
            drawn = moves if self.is_ddpm else moves & waits
            tokens = self.tokens[rows]
            tokens[drawn] = self.sampling.choose(logits[drawn], u[drawn])
            self.tokens[rows] = tokens
            x0 = self.table[tokens]
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
