"""The model `diffusion_mlm` of lm-evaluation-harness: importing this module makes it known to `lm_eval`.

    import lm_eval
    import diffusion_mlm.evaluation.lm_eval_model

    lm_eval.simple_evaluate("diffusion_mlm", "checkpoint=results/final-model,draws=32", tasks=["lambada_openai"])

On the command line `diffusion-mlm lm-eval` is `lm_eval` with this model: the harness itself looks for no others.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import nn
from transformers import PreTrainedTokenizerBase

try:
    import lm_eval.models  # noqa: F401  # else the harness would take ours for the only model there is
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(
        f"lm-evaluation-harness cannot be imported ({error}). Install it: pip install 'diffusion-mlm[lm-eval]'."
    ) from error

from ..generation import load_generator, resolve_config, resolve_seed
from ..generation_config import DEFAULTS, DiffusionGenerationConfig
from ..modeling import unwrap
from .answers import write_answers
from .continuations import ScoredContinuation, score_continuations
from .row_predictor import writes_ends
from .text_nats import require_estimator

logger = logging.getLogger(__name__)

_ROWS = 64  # per call of the model, where the harness leaves it to us (`auto`)
_NEW_TOKENS = 256  # the harness's default for models that do not say when they have finished
_NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts


@register_model("diffusion_mlm")
class DiffusionMaskedLM(LM):  # type: ignore[misc]  # the harness has no types
    """A masked diffusion model in lm-evaluation-harness.

    `loglikelihood` and `loglikelihood_rolling` are negative nats by the estimator asked for, never of a special token;
    `generate_until` writes as `generate` does. No result depends on the batch size.

    Args:
        checkpoint (`str` or `torch.nn.Module`): a directory, a Hub id, or a model, which needs its `tokenizer`.
        pretrained (`str`, *optional*): what the harness's own models call the checkpoint. Named so, the files of
            `--output_path` lie in a folder of its name, else in one of a random name.
        estimator (`str`): `bound`, the negative ELBO by `draws` masks; `chain`, exact for writing from left to right,
            one forward a token, the cheaper one for short answers; `importance`, between the two, by `orders` orders.
        masks_behind (`int`, *optional*): how many masks stand behind what is scored, see `score_continuations`.
        max_length (`int`, *optional*): tokens of a scored row; as the model was trained by default.
        batch_size (`int` or `str`): rows per call of the model; `auto` is 64.
        max_batch_size: not used; the harness passes it.
        device (`str`, *optional*): by default the GPU if there is one; without a GPU a CUDA device means the CPU.
        seed (`int`): of masks and of sampled text.
        trust_remote_code (`bool`): let code in the repository run.
        **settings: of `DiffusionGenerationConfig`, for `generate_until`: `steps`, `order`, `preset`, ... They go over
            what a task asks for, and that goes over the checkpoint's. Of a task `until`, `max_gen_toks`, `do_sample`
            and the names of settings (`temperature`, `top_p`, ...) count. As in the harness's own models it is greedy
            unless the task samples, and 256 tokens if nobody says how many; a model that writes ends then fills a row
            of training.

    Raises:
        ValueError: an argument or setting is unknown or impossible, or the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        checkpoint: str | nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        pretrained: str | None = None,
        estimator: str = "bound",
        draws: int = 32,
        orders: int = 8,
        masks_behind: int | None = None,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        source = pretrained if checkpoint is None else checkpoint
        if source is None or (checkpoint is not None and pretrained is not None):
            raise ValueError(
                "`checkpoint` must name one directory or Hub id, as in --model_args checkpoint=DIR; `pretrained` is "
                "another word for it, and not both are needed."
            )
        if settings.get("num_return_sequences", 1) != 1:
            raise ValueError(
                f"`num_return_sequences` is {settings['num_return_sequences']!r}, but the harness takes one answer "
                f"to a request: leave it out, and set `repeats` in the task."
            )
        self.batch_size = _rows(batch_size)
        require_estimator(estimator, draws, orders, self.batch_size)
        DiffusionGenerationConfig(**settings)
        if isinstance(source, str):
            model, tokenizer = load_generator(source, trust_remote_code=trust_remote_code, argument="checkpoint")
            model.to(_device(device))  # type: ignore[arg-type]  # `to` hides behind a wrapper
        elif tokenizer is None:
            raise ValueError("`tokenizer` is missing: a model that is passed as `checkpoint` needs its own.")
        else:
            model = source if device is None else source.to(_device(device))
        self.name = source if isinstance(source, str) else type(unwrap(source)).__name__
        self.model, self.tokenizer = model, tokenizer
        self.scoring: dict[str, Any] = {
            "estimator": estimator,
            "draws": draws,
            "orders": orders,
            "masks_behind": masks_behind,
            "max_length": max_length,
            "seed": seed,
        }
        self.seed, self.settings = resolve_seed(seed, None), settings
        self.config = resolve_config(model, None, settings)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, is_greedy) of each continuation after its context.

        A continuation with words that the tokenizer does not know has (-inf, False): the model cannot write it. For
        `is_greedy` see `ScoredContinuation`: it is about filling from left to right, whatever the estimator.
        """
        found = self._score(requests, [request.args for request in requests], disable_tqdm)
        unknown = sum(scored.num_unknown > 0 for scored in found)
        if unknown:
            logger.warning("%d of %d continuations hold words unknown to the tokenizer: -inf.", unknown, len(found))
        answers = [(scored.log_probability, scored.is_greedy) for scored in found]
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each text, its end left open; one longer than a row is scored window by window.

        Words that the tokenizer does not know are seen and not scored, with one warning: one of them would make the
        perplexity of a whole corpus infinite, and not scoring it flatters the model.
        """
        found = self._score(requests, [("", request.args[0]) for request in requests], disable_tqdm)
        unknown = sum(scored.num_unknown for scored in found)
        if unknown:
            known = sum(scored.num_tokens for scored in found)
            logger.warning("%d unknown tokens beside %d known ones are not scored.", unknown, known)
        answers = [-scored.nats for scored in found]
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of its stop strings, without it."""
        answers: dict[int, str] = {}
        alike: dict[str, list[int]] = {}  # requests by what they ask for beside their context
        for place, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(place)
        for places in alike.values():
            stop_strings, config = self._how_to_write(requests[places[0]].args[1])
            contexts = [requests[place].args[0] for place in places]
            with _Bar("generate_until", disable_tqdm) as bar:
                how: dict[str, Any] = {"stop_strings": stop_strings, "seed": self.seed, "progress": bar}
                for index, answer in write_answers(self.model, self.tokenizer, contexts, config, **how):
                    answers[places[index]] = answer
                    self.cache_hook.add_partial("generate_until", requests[places[index]].args, answer)
        return [answers[place] for place in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_name": self.name,
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "scoring": self.scoring,
            "generation": {name: getattr(self.config, name) for name in DEFAULTS},
        }

    def _score(
        self, requests: list[Instance], pairs: list[tuple[str, str]], disable_tqdm: bool
    ) -> list[ScoredContinuation]:
        """Requests about one document have the same masks where they are equally long."""
        groups = [f"{request.task_name} {request.doc!r}" for request in requests]
        with _Bar("loglikelihood", disable_tqdm) as bar:
            return score_continuations(
                self.model,
                self.tokenizer,
                pairs,
                groups=groups,
                batch_size=self.batch_size,
                progress=bar,
                **self.scoring,
            )

    def _remember(self, kind: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)

    def _how_to_write(self, asked: dict[str, Any]) -> tuple[list[str], DiffusionGenerationConfig]:
        """Stop strings and settings, from what a task asks for."""
        asked = {name: value for name, value in asked.items() if value is not None}
        until = asked.pop("until", [])
        new_tokens = [int(asked.pop(name)) for name in _NEW_TOKENS_NAMES if name in asked]
        samples = asked.pop("do_sample", float(asked.get("temperature", 0)) > 0)
        unknown = sorted(set(asked) - set(DEFAULTS))
        if unknown:
            logger.warning("Settings of the task that mean nothing here are left out: %s.", ", ".join(unknown))
        of_task: dict[str, Any] = {name: value for name, value in asked.items() if name in DEFAULTS}
        of_checkpoint = resolve_config(self.model, None, {})
        if not samples:
            of_task.pop("temperature", None)  # 0; a model argument may name another way to sample
            of_task["sampling"] = "greedy"
        elif "top_p" in asked:
            of_task.setdefault("sampling", "nucleus")
        elif "top_k" in asked:
            of_task.setdefault("sampling", "topk")
        elif of_checkpoint.sampling == "greedy":
            of_task.setdefault("sampling", DEFAULTS["sampling"])
        if new_tokens:
            of_task["max_new_tokens"] = new_tokens[0]
        elif of_checkpoint.max_new_tokens is None and not writes_ends(self.model):
            of_task["max_new_tokens"] = _NEW_TOKENS
        config = resolve_config(self.model, None, of_task).updated(batch_size=self.batch_size)
        return [until] if isinstance(until, str) else list(until), config.updated(**self.settings)


class _Bar:
    """A progress bar that is called with what is done and what there is to do."""

    def __init__(self, name: str, disable: bool) -> None:
        self.bar = tqdm(desc=f"Running {name} requests", disable=disable)

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> Callable[[int, int], None]:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def _rows(batch_size: int | str | None) -> int:
    if batch_size is None or str(batch_size).startswith("auto"):
        return _ROWS
    try:
        return int(batch_size)
    except ValueError:
        raise ValueError(f"`batch_size` must be a whole number of at least 1 or auto, not {batch_size!r}.") from None


def _device(device: str | None) -> str:
    if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
