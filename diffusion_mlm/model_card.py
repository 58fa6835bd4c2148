"""The model card of a repository: what a reader needs to judge and use the model, from what was measured only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .remote_code import ARCHITECTURES, TASK

_RECIPE = {
    "objective": "objective",
    "schedule": "schedule of the mask rate",
    "masking": "masking",
    "prefix_length": "prefix that is never masked",
    "row_length": "tokens per row",
    "generates_end": "writes the end of a text",
}
_UNUSUAL = {
    "rate_distribution": "distribution of the mask rate",
    "rate_parameters": "parameters of that distribution",
    "token_weights": "tokens that are masked more often",
    "random_length_share": "share of rows cut to a random length",
    "ema_decay": "decay of the mean of the weights, which this is",
    "lora_rank": "rank of LoRA, merged into the weights",
}
_RUN = {
    "steps": "optimizer steps",
    "rows_per_step": "rows per step",
    "learning_rate": "peak learning rate",
    "optimizer": "optimizer",
    "seed": "seed",
    "train_tokens": "tokens of the training text",
    "train_seconds": "seconds",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from. What is left out is not in the card; nothing is made up.

    Attributes:
        repo_id (`str`): where the model will be.
        config (`dict`): the contents of `config.json`.
        parameters (`int`, *optional*): of the model.
        summary (`dict`): the contents of `summary.json`, which training writes; it may be of a run that goes on.
        report (`dict`, *optional*): a `report.json` of `evaluate --report`, whose first checkpoint is this one.
        samples (sequence of `(prefix, completion)`), sample_settings (`str`): texts of this model, and how they came.
        plots (sequence of `str`): names of pictures in the repository.
        licence (`str`, *optional*): its identifier on the Hub, such as `apache-2.0`.
        language (`str`, *optional*): its code, such as `en`.
        in_progress (`bool`): training goes on.
        mask_token (`str`): of the tokenizer, for the line to copy.
    """

    repo_id: str
    config: Mapping[str, Any]
    parameters: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None
    samples: Sequence[tuple[str, str]] = ()
    sample_settings: str = ""
    plots: Sequence[str] = ()
    licence: str | None = None
    language: str | None = None
    in_progress: bool = False
    mask_token: str = "<mask>"

    @property
    def source(self) -> Mapping[str, Any]:
        """Where model and text came from, by public names: `base_model`, `dataset`, `text`."""
        return self.summary.get("source") or {}

    @property
    def likelihood(self) -> Mapping[str, Any] | None:
        """Figures of the report, which have intervals, else those of training, else none."""
        if self.report is not None:
            return self.report["checkpoints"][0]["likelihood"]
        nats = self.summary.get("nelbo_nats_per_token")
        if nats is None:
            return None
        return {"nats_per_token": nats, "num_tokens": self.summary.get("eval_tokens")}

    @property
    def loss_by_mask_rate(self) -> Sequence[Sequence[float]]:
        """[upper end of a tenth of the mask rates, nats per masked token]."""
        if self.report is not None:
            return self.report["checkpoints"][0]["loss_by_mask_rate"]
        return self.summary.get("loss_by_mask_rate") or []


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with metadata, `model-index` included where there is a figure for it.

    Raises:
        ValueError: the metadata would not be accepted, such as an impossible licence.
    """
    from huggingface_hub import ModelCard

    parts = [
        f"---\n{_metadata(facts).to_yaml()}\n---",
        f"# {facts.repo_id.split('/')[-1]}",
        _about(facts),
        "> Training goes on: this is the model of step "
        f"{facts.summary.get('steps')}, and its figures are those of then."
        if facts.in_progress
        else "",
        "## How to use it",
        _use(facts),
        "## Data",
        _data(facts),
        "## Training",
        _table(["setting", "value"], _recipe(facts)),
        "## Evaluation",
        _evaluation(facts),
        *(f"![{_title(name)}]({name})" for name in facts.plots),
        *(["## Samples", _samples(facts)] if facts.samples else []),
        "## Limits and risks",
        _limits(facts),
        "## Licence",
        _licence(facts),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    ModelCard(text)  # reads the metadata back: what it refuses, the Hub would refuse too
    return text


def _metadata(facts: CardFacts) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    likelihood, results = facts.likelihood, []
    if likelihood is not None:
        dataset = facts.source.get("dataset")
        of_text: dict[str, Any] = {
            "task_type": "text-generation",
            "task_name": "Masked diffusion",
            "dataset_type": dataset or "text",
            "dataset_name": dataset or facts.source.get("text") or "held-out text",
        }
        if facts.source.get("dataset_config"):
            of_text["dataset_config"] = facts.source["dataset_config"]
        nats, bits = likelihood["nats_per_token"], likelihood.get("bits_per_byte")
        figures = [("perplexity", "Perplexity per token (upper bound)", math.exp(min(nats, 700)))]
        figures += [("bits_per_byte", "Bits per byte (upper bound)", bits)] if bits is not None else []
        results = [
            EvalResult(metric_type=kind, metric_name=name, metric_value=round(value, 4), **of_text)
            for kind, name, value in figures
        ]
    return ModelCardData(
        base_model=facts.source.get("base_model"),
        datasets=[facts.source["dataset"]] if facts.source.get("dataset") else None,
        eval_results=results or None,
        model_name=facts.repo_id.split("/")[-1] if results else None,
        language=facts.language,
        library_name="transformers",
        license=facts.licence,
        pipeline_tag="fill-mask",
        tags=[TASK, "masked-diffusion", "diffusion_mlm", "custom_code"],
    )


def _about(facts: CardFacts) -> str:
    architecture = (facts.config.get("architectures") or ["masked language model"])[0]
    size = f" with {facts.parameters:,} parameters" if facts.parameters else ""
    base = facts.source.get("base_model")
    made = f", made from [{base}](https://huggingface.co/{base})" if base else ""
    return (
        f"A `{architecture}`{size}{made}, trained to fill in any share of blanks. It writes text by masked diffusion: "
        "it starts from a prefix and nothing but masks, and reveals the masks step by step, in any order. It is an "
        f"ordinary `{architecture}` all the same, for `fill-mask` and for fine-tuning."
    )


def _use(facts: CardFacts) -> str:
    trusted = ", trust_remote_code=True" if facts.config.get("model_type") in ARCHITECTURES else ""
    return f"""With transformers alone; the code that generates is in this repository, in one file to read:

```python
from transformers import pipeline

pipe = pipeline("{TASK}", model="{facts.repo_id}", trust_remote_code=True)
print(pipe("Once upon a time", seed=0)[0]["generated_text"])
```

With the package `diffusion_mlm` and no code from here:

```python
from diffusion_mlm import TextDiffusionPipeline

pipe = TextDiffusionPipeline.from_pretrained("{facts.repo_id}")
pipe("Once upon a time", schedule="cosine", sampling="nucleus", top_p=0.9, steps=32, num_return_sequences=4)
```

As a masked language model:

```python
pipeline("fill-mask", model="{facts.repo_id}"{trusted})("Once upon a {facts.mask_token}.")
```"""


def _data(facts: CardFacts) -> str:
    dataset, text = facts.source.get("dataset"), facts.source.get("text")
    if dataset:
        which = ", ".join(
            f"{what} `{facts.source[key]}`"
            for key, what in (("dataset_config", "configuration"), ("dataset_split", "split"))
            if facts.source.get(key)
        )
        named = f"[{dataset}](https://huggingface.co/datasets/{dataset}){f' ({which})' if which else ''}"
    else:
        named = text or "The training text is not recorded."
    amount = facts.summary.get("training_text")
    return f"{named}" + (f"\n\nWhat was read: {amount}." if amount else "")


def _recipe(facts: CardFacts) -> list[tuple[str, str]]:
    diffusion = facts.config.get("diffusion") or {}
    recipe = facts.source.get("recipe") or {}
    run = {**recipe, **{name: value for name, value in facts.summary.items() if name in _RUN}}
    rows = [(label, _shown(diffusion[name])) for name, label in _RECIPE.items() if name in diffusion]
    unusual = diffusion.get("recipe") or {}
    rows += [(label, _shown(unusual[name])) for name, label in _UNUSUAL.items() if name in unusual]
    rows += [(label, _shown(run[name])) for name, label in _RUN.items() if run.get(name) is not None]
    if "version" in diffusion:
        rows.append(("diffusion_mlm", str(diffusion["version"])))
    return rows or [("recipe", "not recorded")]


def _evaluation(facts: CardFacts) -> str:
    found = facts.likelihood
    if found is None:
        return "Not evaluated yet." if facts.in_progress else "Not evaluated."
    nats, interval = found["nats_per_token"], found.get("confidence_interval")
    amount = f" of {found['num_tokens']:,} tokens" if found.get("num_tokens") else ""
    within = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "not measured"
    rows = [("nats per token", f"{nats:.4f}"), ("95 % interval of it", within)]
    rows.append(("perplexity per token of this tokenizer", f"{math.exp(min(nats, 700)):.4g}"))
    if found.get("bits_per_byte") is not None:
        rows.append(("bits per byte", f"{found['bits_per_byte']:.4f}"))
    rows += [("masks drawn per row", str(draws)) for draws in [_draws(facts)] if draws is not None]
    text = (
        f"The likelihood bound (the negative ELBO) on held-out text{amount}: an upper bound on -log p of writing in "
        "random order. It is compared between models of one tokenizer by nats, of several by bits per byte.\n\n"
        + _table(["figure", "value"], rows)
    )
    if facts.loss_by_mask_rate:
        curve = [(f"up to {rate:.0%}", f"{loss:.3f}") for rate, loss in facts.loss_by_mask_rate]
        text += "\n\nNats per masked token, by the share of tokens that are masked:\n\n" + _table(
            ["mask rate", "nats"], curve
        )
    return text


def _draws(facts: CardFacts) -> Any:
    return facts.report["settings"].get("draws") if facts.report is not None else facts.summary.get("draws")


def _samples(facts: CardFacts) -> str:
    texts = [f"{prefix}{completion}".replace("\0", "\ufffd") for prefix, completion in facts.samples]
    longest = max((len(run) for text in texts for run in _backticks(text)), default=0)
    fence = "`" * max(3, longest + 1)
    blocks = "\n\n".join(f"{fence}text\n{text}\n{fence}" for text in texts)
    return f"Not chosen: {facts.sample_settings}.\n\n{blocks}"


def _backticks(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split(" ") if run]


def _limits(facts: CardFacts) -> str:
    row = (facts.config.get("diffusion") or {}).get("row_length")
    length = f"It was trained on rows of {row} tokens; longer text is written window by window. " if row else ""
    return (
        f"The model repeats what its training text says, with its errors and its prejudices, and states falsehoods as "
        f"fluently as facts. {length}Tokens that one step reveals together are drawn independently of one another: "
        "fewer steps are quicker and less coherent. What it writes has not been checked for safety by anybody; do not "
        "let it speak to people or decide about them without a check of your own."
    )


def _licence(facts: CardFacts) -> str:
    base = facts.source.get("base_model")
    if facts.licence:
        text = f"`{facts.licence}`, as its owner states."
    else:
        text = "Its owner has not stated a licence."
    if base:
        text += f" The licence of the base model, [{base}](https://huggingface.co/{base}), holds too."
    return text + " The code in this repository is Apache-2.0."


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows])


def _title(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0].replace("_", " ")
