"""What is wrong with a machine, a model or a data set, and what to do about it, before hours are spent on it."""

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from .canvas import is_gaussian, is_gaussian_checkpoint, training_facts
from .data import DataReport, load_texts
from .embedding_diffusion.loading import load_embedding_diffusion
from .generation import load_tokenizer, saved_generation_config
from .hub_access import require_repository
from .modeling import attention_dropout_name, context_length, end_token_id, load_model, selects_rows
from .tokenization import encode_texts, special_token_ids

OK, NOTE, FAIL = "ok", "note", "fail"
_NUM_TEXTS = 1000  # of a data set that are looked at
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check (`str`): what was looked at.
        status (`str`): `ok`; `note`, it works, but one should know; `fail`, something would fail.
        says (`str`): what was found.
        remedy (`str`): what to do; empty if there is nothing to do.
    """

    check: str
    status: str
    says: str
    remedy: str = ""


def examine_machine(output_dir: str = ".", parameters: int = 0, save_total_limit: int = 2) -> Iterator[Finding]:
    """Versions, accelerator, disk and the login to the Hub.

    Args:
        output_dir (`str`): where a run would write; it need not be there.
        parameters (`int`): of the model that would be trained; 0 is unknown.
        save_total_limit (`int`): checkpoints that would be kept.
    """
    yield _versions()
    yield _accelerator()
    yield _disk(output_dir, parameters, save_total_limit)
    yield _login()


class ModelExamination:
    """Whether a model loads, and fits its tokenizer and this package.

    Attributes:
        model, tokenizer (*optional*): what could be loaded, once `findings` has been read.
    """

    def __init__(self, name: str, argument: str = "--checkpoint", trust_remote_code: bool = False) -> None:
        self.name, self.argument, self.trust_remote_code = name, argument, trust_remote_code
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None

    def findings(self) -> Iterator[Finding]:
        """What is found, as it is found."""
        try:
            require_repository(self.name, "model", self.argument)
        except (ValueError, OSError) as error:
            yield Finding("repository", FAIL, str(error))
            return
        how: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "argument": self.argument}
        for check, load in (("tokenizer", self._load_tokenizer), ("weights", self._load_model)):
            try:
                yield load(how)
            except (ValueError, OSError) as error:
                yield Finding(check, FAIL, str(error))
        if self.model is None or self.tokenizer is None:
            return
        yield self._dtype()
        yield from _of_pair(self.model, self.tokenizer)
        yield self._generation()

    def _load_tokenizer(self, how: dict[str, Any]) -> Finding:
        self.tokenizer = load_tokenizer(self.name, **how)
        mask = f"mask token {self.tokenizer.mask_token}, id {self.tokenizer.mask_token_id}"
        return Finding("tokenizer", OK, f"{len(self.tokenizer):,} tokens; {mask}")

    def _load_model(self, how: dict[str, Any]) -> Finding:
        if is_gaussian_checkpoint(self.name):
            self.model = load_embedding_diffusion(self.name, self.argument).eval()
        else:
            self.model = load_model(self.name, **how).eval()
        kind, parameters = type(self.model).__name__, self.model.num_parameters()
        return Finding("weights", OK, f"{kind}, {parameters:,} parameters, finite")

    def _dtype(self) -> Finding:
        saved = AutoConfig.from_pretrained(self.name, trust_remote_code=self.trust_remote_code).dtype
        kind = str(saved or "float32").removeprefix("torch.")
        return Finding("dtype", OK, f"saved as {kind}, loaded and trained as float32")

    def _generation(self) -> Finding:
        try:
            settings = saved_generation_config(self.name, self.argument)
        except ValueError as error:
            return Finding("generation", FAIL, str(error), "Remove generation_config.json, or mend it.")
        how = f"{settings.sampling} sampling, {settings.schedule} schedule"
        if self.model is not None and is_gaussian(self.model):
            how = f"sampler {settings.sampler or 'ddim'}"
        facts = training_facts(self.model) if self.model is not None else {}
        if not facts:
            remedy = "Train it to write: `diffusion-mlm train --model-name`."
            return Finding("generation", NOTE, f"no generator yet; {how}", remedy)
        return Finding("generation", OK, f"trained by diffusion_mlm {facts.get('version')}; {how}")


def examine_texts(
    tokenizer: PreTrainedTokenizerBase | None = None, max_length: int | None = None, **source: Any
) -> Iterator[Finding]:
    """Whether texts can be read, and how they fit the rows of a model.

    Args:
        tokenizer (*optional*), max_length (`int`, *optional*): of the model; without them nothing is said of tokens.
        **source: of `data.load_texts`: `dataset` or `files`, and so on. Of a data set the first texts are read.
    """
    report = DataReport()
    try:
        streams = source.get("files") is None
        loaded = load_texts(**source, streaming=streams, report=report)
        texts = [row["text"] for row in islice(loaded, _NUM_TEXTS)]
    except (ValueError, OSError) as error:
        yield Finding("data", FAIL, str(error), "Name a column of text by `--text-column`, or other data.")
        return
    if not texts:
        yield Finding("data", FAIL, "there is no text that is not blank", "Name other data.")
        return
    amount = f"the first {len(texts):,} texts" if streams or len(loaded) > len(texts) else f"{len(texts):,} texts"
    counts = ((report.num_null, "null"), (report.num_blank, "blank"))
    left_out = " and ".join(f"{count:,} {what}" for count, what in counts if count)
    remark = f"; {left_out} ones would be left out" if left_out else ""
    yield Finding("data", OK, f"{amount}, {sum(map(len, texts)):,} characters{remark}")
    if tokenizer is None:
        return
    rows = encode_texts(tokenizer, texts)
    lengths = sorted(len(row) for row in rows)
    says = f"median {statistics.median(lengths):.0f} tokens, longest {lengths[-1]:,}"
    if max_length is not None:
        longer = sum(length > max_length - 2 for length in lengths)
        says += f"; {longer / len(lengths):.0%} do not fit one row of {max_length} tokens"
        cut = longer > 0
        remedy = "`--packing packed` cuts them into rows, `one_per_row` cuts off what is too long." if cut else ""
        yield Finding("text lengths", NOTE if cut else OK, says, remedy)
    unknown = tokenizer.unk_token_id
    share = sum(row.count(unknown) for row in rows) / max(sum(lengths), 1) if unknown is not None else 0.0
    if share > 0.01:
        remedy = "Another tokenizer would know them: `--preset` with `--tokenizer bpe`."
        yield Finding("unknown tokens", NOTE, f"{share:.1%} of the tokens are unknown to this tokenizer", remedy)


def _of_pair(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    yield _special_tokens(model, tokenizer)
    vocab_size, known = model.config.vocab_size, len(tokenizer)
    if known > vocab_size:
        yield Finding(
            "vocabulary",
            FAIL,
            f"the tokenizer has {known:,} tokens, the model knows {vocab_size:,}",
            f"Use the model's own tokenizer, or `model.resize_token_embeddings({known})`.",
        )
        return
    spare = f", {vocab_size - known} rows without a token, never generated" if vocab_size > known else ""
    yield Finding("vocabulary", OK, f"{known:,} tokens{spare}")
    yield _positions(model, tokenizer)
    yield _tied_weights(model)
    yield _attention(model)
    separate = selects_rows(model)
    yield Finding(
        "masked rows only",
        OK if separate else NOTE,
        "logits are computed where they are needed only" if separate else "logits are computed at all positions",
        "" if separate else "It works, and takes more memory: use smaller batches.",
    )


def _special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Finding:
    end, padding = end_token_id(tokenizer), tokenizer.pad_token_id
    remedy = "Use the tokenizer that the model was trained with."
    if end < 0:
        return Finding("special tokens", FAIL, "no token ends a text (`eos_token` or `sep_token`)", remedy)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    counted_from = getattr(table, "padding_idx", None)
    if counted_from is not None and padding != counted_from:
        says = f"padding is id {padding} in the tokenizer, but the model counts positions from {counted_from}"
        return Finding("special tokens", FAIL, says, remedy)
    if padding is None:
        return Finding("special tokens", NOTE, "there is no `pad_token`; the mask token stands in for it")
    specials = len(special_token_ids(tokenizer))
    return Finding("special tokens", OK, f"{specials}, never generated; texts end with id {end}")


@torch.no_grad()
def _positions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Finding:
    limit = context_length(model, tokenizer)
    if limit > 100_000:
        return Finding("length", NOTE, "neither model nor tokenizer names a limit", "Pass `--max-length`.")
    ids = torch.full((1, limit), end_token_id(tokenizer))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if is_gaussian(model):  # the row as given, without noise
        inputs |= {"is_noised": torch.zeros_like(ids, dtype=torch.bool), "log_snr": torch.zeros(1)}
        inputs["noise"] = torch.zeros(1, limit, model.config.embedding_dim)
    try:
        finite = bool(torch.isfinite(model(**inputs).logits).all())
    except (RuntimeError, LookupError) as error:
        reason = str(error).splitlines()[0]
        return Finding("length", FAIL, f"a row of {limit} tokens cannot be read ({reason})", "Pass a `--max-length`.")
    if not finite:
        return Finding("length", FAIL, f"logits of a row of {limit} tokens are not finite", "Choose another model.")
    return Finding("length", OK, f"rows of up to {limit:,} tokens, special ones included")


def _tied_weights(model: PreTrainedModel) -> Finding:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs is not None and outputs is not None and inputs.weight.data_ptr() == outputs.weight.data_ptr()
    wanted = bool(getattr(model.config, "tie_word_embeddings", False))
    if wanted and not tied:
        says = "config.json says that input and output embeddings are one, and they are two"
        return Finding("tied weights", NOTE, says, "Harmless, unless the file lacks one of them.")
    return Finding("tied weights", OK, "input and output embeddings are one" if tied else "none, as config.json says")


def _attention(model: PreTrainedModel) -> Finding:
    backend = getattr(model.config, "_attn_implementation", None) or "its own"
    dropout = getattr(model.config.get_text_config(), attention_dropout_name(model.config) or "", None) or 0.0
    if backend == "sdpa" and dropout > 0 and not torch.accelerator.is_available():
        says = f"{backend}, with attention dropout {dropout}, which switches the fused kernel off on CPUs in training"
        return Finding("attention", NOTE, says, "Train with `--attention-dropout 0` to be faster.")
    return Finding("attention", OK, str(backend))


def _versions() -> Finding:
    from packaging.requirements import Requirement

    shown, wrong = [], []
    for text in metadata.requires("diffusion-mlm") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        shown.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Finding("versions", FAIL, "; ".join(wrong), "Install what pyproject.toml asks for: `pip install -U`.")
    return Finding("versions", OK, ", ".join(shown))


def _accelerator() -> Finding:
    if not torch.accelerator.is_available():
        return Finding("accelerator", NOTE, f"none, {torch.get_num_threads()} CPU threads", "Small models only.")
    device = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    if device is not None and device.type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / _GIB
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        return Finding(
            "accelerator", OK, f"{count} × {torch.cuda.get_device_name(0)}, {memory:.0f} GiB, {bf16} bfloat16"
        )
    return Finding("accelerator", OK, f"{count} × {device}")


def _disk(output_dir: str, parameters: int, save_total_limit: int) -> Finding:
    place = Path(output_dir).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = int((save_total_limit + 1) * 12 * parameters * 1.1)  # weights and two moments, float32, and a tenth more
    if free < needed:
        says = f"{free / _GIB:.1f} GiB free, and {save_total_limit + 1} checkpoints take {needed / _GIB:.1f} GiB"
        return Finding("disk", FAIL, says, "Name another `--output-dir`, or lower `--save-total-limit`.")
    return Finding("disk", OK, f"{free / _GIB:.1f} GiB free for `--output-dir`")


def _login() -> Finding:
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", NOTE, "switched off by HF_HUB_OFFLINE", "Only what is in the cache can be loaded.")
    if get_token() is None:
        return Finding("Hub", NOTE, "nobody is logged in", "To push, or to read what is private: `hf auth login`.")
    try:
        return Finding("Hub", OK, f"logged in as {HfApi().whoami()['name']}")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            return Finding("Hub", FAIL, f"the token is refused (status {status})", "Log in again: `hf auth login`.")
        return Finding("Hub", NOTE, f"answers with status {status}", "Try again later.")
    except Exception as error:  # its kinds depend on the client that huggingface_hub uses
        return Finding("Hub", NOTE, f"cannot be reached ({type(error).__name__})", "Only the cache can be loaded.")
