"""`TextDiffusionPipeline`: generation in one line, as transformers does it. A repository carries it as remote code."""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoModelForMaskedLM, Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY

from .generation import generate, load_generator, saved_generation_config
from .generation_config import DiffusionGenerationConfig
from .hub_access import HubSource
from .modeling import require_mask_token
from .remote_code import CODE_FILE, CUSTOM_PIPELINES, TASK

_PER_CALL = ("seed", "generator", "logits_processor", "constraints", "guidance", "streamer", "on_step")


class TextDiffusionPipeline(Pipeline):
    """Continues prefixes by unmasking, with the texts that `generate` writes for the same seed and settings.

    >>> from diffusion_mlm.checkpoints import STORIES_GENERATOR
    >>> pipe = TextDiffusionPipeline.from_pretrained(STORIES_GENERATOR, device="cpu")
    >>> sample, = pipe("Once upon a time", steps=8, max_new_tokens=8, seed=0)
    >>> sample["generated_text"].startswith("Once upon a time"), sample["num_forwards"]
    (True, 8)

    Args:
        model (`PreTrainedModel`): a masked language model. Settings that a call leaves out are those of its
            `generation_config.json`, which is read here if the model comes without.
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        **kwargs: of `Pipeline`, such as `device`; and settings of `DiffusionGenerationConfig` for all calls.

    Raises:
        ValueError: the tokenizer has no mask token, or a setting is unknown or impossible.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        require_mask_token(tokenizer, "tokenizer")
        if not isinstance(getattr(model, "generation_config", None), DiffusionGenerationConfig):
            name, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
            source: HubSource = {"revision": commit} if commit else {}
            model.generation_config = (
                saved_generation_config(name, "model", source) if name else DiffusionGenerationConfig()
            )
        # Of our settings, two mean something else to the base class, which would keep them from us.
        own = {name: kwargs.pop(name) for name in ("batch_size",) if name in kwargs}
        kwargs.setdefault("task", TASK)
        super().__init__(model, tokenizer, **kwargs)
        self._forward_params |= self._sanitize_parameters(**own)[1]

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> "TextDiffusionPipeline":
        """The pipeline of a directory or a Hub id, for which no code of the repository is needed.

        Args:
            name_or_path (`str`): a directory or a Hub id.
            revision (`str`, *optional*): of a Hub id: a branch, a tag or a commit; the newest by default.
            token (`str` or `bool`, *optional*): for the Hub; that of HF_TOKEN or `hf auth login` by default.
            cache_dir (`str`, *optional*): where files of the Hub are kept.
            trust_remote_code (`bool`): whether the architecture of the model may be code of its repository.
            **kwargs: of the constructor, such as `device`.

        Raises:
            ValueError, HubUnavailableError, NotAllowedError: see `load_generator`.
        """
        given: HubSource = {"revision": revision, "token": token, "cache_dir": cache_dir}
        model, tokenizer = load_generator(
            str(name_or_path),
            trust_remote_code=trust_remote_code,
            argument="name_or_path",
            source={name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type,misc]
        )
        return cls(model, tokenizer, **kwargs)

    def __call__(self, inputs: Any = "", **options: Any) -> Any:
        """Continues one prefix or several.

        Args:
            inputs (`str`, sequence of them, generator or data set of them): the prefixes; an empty one generates from
                nothing. A generator or data set is answered prefix by prefix while it is read, each with the same
                `seed`; all else by one call of `generate`.
            **options: `seed`, `generator`, `logits_processor`, `constraints`, `guidance`, `streamer` and `on_step` of
                `generate`, and settings of `DiffusionGenerationConfig`, such as `schedule`, `sampling` and
                `num_return_sequences`.

        Returns:
            One `dict` per sample in a list; for several prefixes a list of such lists; for a generator or a data set
            an iterator over them. Keys: `generated_text`, and all that `GeneratedText` has.

        Raises:
            ValueError: see `generate`.
        """
        if isinstance(inputs, (Dataset, GeneratorType)):
            return self._answers(inputs, options)
        options = {**self._forward_params, **self._sanitize_parameters(**options)[1]}
        return self.run_single(inputs, {}, options, {})

    def _answers(self, prefixes: Any, options: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        for prefix in prefixes:
            yield self(prefix, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Writes model, tokenizer, generation settings and the code that a repository needs; see `Pipeline`."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.model.config.custom_pipelines = CUSTOM_PIPELINES
        self.model.generation_config.save_pretrained(directory)
        (directory / CODE_FILE).write_text(repository_code(), encoding="utf-8")
        self.tokenizer.save_pretrained(directory)
        self.model.save_pretrained(directory, **kwargs)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        settings = {name: value for name, value in options.items() if name not in _PER_CALL}
        self.model.generation_config.updated(**settings)  # refuses what is unknown or impossible
        return {}, options, {}

    def preprocess(self, inputs: str | Sequence[str]) -> dict[str, Any]:
        return {"prefixes": inputs if isinstance(inputs, str) else list(inputs)}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        output = generate(self.model, self.tokenizer, inputs["prefixes"], **options)
        return {"samples": output.samples, "prefixes": inputs["prefixes"]}

    def postprocess(self, outputs: dict[str, Any]) -> list[Any]:
        samples = [{"generated_text": sample.text, **vars(sample)} for sample in outputs["samples"]]
        if isinstance(outputs["prefixes"], str):
            return samples
        each = len(samples) // max(len(outputs["prefixes"]), 1)
        return [samples[start : start + each] for start in range(0, len(samples), max(each, 1))]


def repository_code() -> str:
    """The text of `text_diffusion.py`: made from the package or, asked of such a file, its own."""
    if __package__ == "diffusion_mlm":
        return str(importlib.import_module("diffusion_mlm.remote_code").remote_source())
    return Path(__file__).read_text(encoding="utf-8")


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=TextDiffusionPipeline, pt_model=AutoModelForMaskedLM, type="text"
)
