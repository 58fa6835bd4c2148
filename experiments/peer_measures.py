"""What `compare_autoregressive.py` measures of two trained models: likelihood, texts side by side, and the table."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_mlm import evaluate_texts, generate
from diffusion_mlm.causal_peer import continue_causally
from diffusion_mlm.evaluation.causal_likelihood import evaluate_causal_texts
from diffusion_mlm.evaluation.diversity import diversity_figures
from diffusion_mlm.evaluation.interval import ratio_estimate
from diffusion_mlm.evaluation.likelihood_report import Estimate, LikelihoodReport
from diffusion_mlm.evaluation.text_likelihood import default_row_length
from diffusion_mlm.evaluation.words import split_words
from diffusion_mlm.tokenization import boundary_token_ids, decode_text, encode_text

sys.path.insert(0, str(Path(__file__).parent))


@dataclass
class Peers:
    """A masked diffusion model and an autoregressive one, each with its tokenizer."""

    diffusion: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: PreTrainedModel
    causal_tokenizer: PreTrainedTokenizerBase

    @property
    def same_tokens(self) -> bool:
        """Whether a text is the same tokens to both, so that they can be compared row by row."""
        return self.tokenizer.get_vocab() == self.causal_tokenizer.get_vocab()

    def key(self, *more: Any) -> str:
        """Changes with the weights, and with whatever else is named."""
        found = hashlib.sha256(json.dumps(more, sort_keys=True).encode())
        for model in (self.diffusion, self.causal):
            for parameter in model.parameters():
                found.update(parameter.detach().cpu().numpy().tobytes())
        return found.hexdigest()


# Likelihood


def likelihoods(peers: Peers, text: str, args: Any) -> dict[str, Any]:
    """Bits per byte of both on the same text, and their ratio; kept in the output directory, for it takes minutes."""
    settings = {name: getattr(args, name) for name in ("draws", "orders", "chain", "few_characters", "seed")}
    key, kept = peers.key(settings, text), Path(args.output_dir) / "likelihood.json"
    if kept.is_file() and (found := json.loads(kept.read_text(encoding="utf-8"))).pop("key") == key:
        return found
    found = {"held_out_text": compare_likelihoods(peers, text, args, [])}
    estimators = ["chain"] * args.chain + ["importance"] * (args.orders > 0)
    if estimators:
        found["few_characters"] = compare_likelihoods(peers, text[: args.few_characters], args, estimators)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"key": key, **found}, allow_nan=False) + "\n", encoding="utf-8")
    return found


def compare_likelihoods(peers: Peers, text: str, args: Any, estimators: list[str]) -> dict[str, Any]:
    """Bound (and other estimates) and exact value of one text, cut into rows of the diffusion model's length."""
    common: dict[str, Any] = {"packing": "packed", "separate_texts": False}
    length = default_row_length(peers.diffusion, peers.tokenizer)
    causal_length = min(length, default_row_length(peers.causal, peers.causal_tokenizer))
    start = time.perf_counter()
    exact = evaluate_causal_texts(peers.causal, peers.causal_tokenizer, [text], max_length=causal_length, **common)
    middle = time.perf_counter()
    bound = evaluate_texts(
        peers.diffusion,
        peers.tokenizer,
        [text],
        max_length=length,
        estimators=estimators,
        draws=args.draws,
        orders=max(args.orders, 1),
        seed=args.seed,
        **common,
    )
    return {
        "autoregressive": {**figures_of_estimate(exact.bound, exact), "seconds": middle - start},
        "diffusion": {
            **figures_of_estimate(bound.bound, bound),
            "draws": args.draws,
            "seconds": time.perf_counter() - middle,
            "loss_by_mask_rate": bound.loss_by_mask_rate,
        },
        "ratio": ratio(peers, bound.bound, exact.bound),
        **{
            name: {**figures_of_estimate(estimate, bound), "ratio": ratio(peers, estimate, exact.bound)}
            for name, estimate in bound.others.items()
        },
        "num_bytes": bound.rows.num_bytes,
        "num_rows": len(bound.rows.rows),
        "max_length": length,
        "unknown_tokens": bound.rows.num_unknown,
    }


def figures_of_estimate(estimate: Estimate, report: LikelihoodReport) -> dict[str, Any]:
    """Bits per byte and nats per token with 95 % intervals over rows."""
    found = {**estimate.to_dict(), "num_tokens": report.num_tokens}
    interval, num_bytes = estimate.confidence_interval, report.rows.num_bytes
    if interval and num_bytes:
        found["bits_per_byte_interval"] = [x * report.num_tokens / math.log(2) / num_bytes for x in interval]
    return found


def ratio(peers: Peers, diffusion: Estimate, autoregressive: Estimate) -> dict[str, Any]:
    """Bits per byte of the first over the second; in pairs over rows, with an interval, where tokens are the same."""
    if diffusion.bits_per_byte is None or autoregressive.bits_per_byte is None:
        return {"value": None, "interval": None}
    first, second = diffusion.nats, autoregressive.nats
    if peers.same_tokens and first is not None and second is not None and len(first) == len(second):
        paired = ratio_estimate(first, second)
        return {"value": paired.value, "interval": paired.interval}
    return {"value": diffusion.bits_per_byte / autoregressive.bits_per_byte, "interval": None}


# Texts


def side_by_side(peers: Peers, text: str, args: Any) -> dict[str, Any]:
    """Texts of both after the same prefixes, one at a time, with the time and the forwards of each.

    A forward of the autoregressive model reads one new token and a cache; one of the diffusion model reads the row.
    """
    length = default_row_length(peers.diffusion, peers.tokenizer)
    num_new = args.new_tokens or length - 2 - args.prefix_tokens
    prefixes = prefixes_of(text, peers.tokenizer, args.num_samples, args.prefix_tokens, num_new)
    found: dict[str, Any] = {"prefixes": [prefix for prefix, _ in prefixes], "new_tokens": num_new}
    methods: dict[str, Callable[[str, int], tuple[str, int]]] = {
        "autoregressive": lambda prefix, seed: write_causally(peers, prefix, seed, num_new, args)
    }
    for steps in dict.fromkeys([num_new, *args.denoising_steps]):
        methods[f"diffusion, {steps} steps"] = lambda prefix, seed, steps=steps: write_by_diffusion(  # type: ignore[misc]
            peers, prefix, seed, num_new, steps, args
        )
    found["methods"] = {"held-out text": figures_of_texts([after for _, after in prefixes])}
    for name, write in methods.items():
        write(prefixes[0][0], args.seed)  # the first call of a model also prepares its kernels
        texts, seconds, forwards = [], [], []
        for place, (prefix, _) in enumerate(prefixes):
            start = time.perf_counter()
            written, count = write(prefix, args.seed + place)
            seconds.append(time.perf_counter() - start)
            texts.append(written)
            forwards.append(count)
        found["methods"][name] = {
            **figures_of_texts(texts),
            "seconds_per_text": sum(seconds) / len(seconds),
            "forwards_per_text": sum(forwards) / len(forwards),
            "seconds": seconds,
        }
    return found


def figures_of_texts(texts: list[str]) -> dict[str, Any]:
    """The place for measures of what was written; low likelihood bounds alone do not make good text."""
    return {**diversity_figures([split_words(text) for text in texts]), "texts": texts}


def prefixes_of(
    text: str, tokenizer: PreTrainedTokenizerBase, number: int, num_prefix: int, num_after: int
) -> list[tuple[str, str]]:
    """Beginnings from evenly spread places of a text, each at the start of a word, with what follows them there."""
    found = []
    for place in range(number):
        begin = len(text) * place // number
        begin += next((i + 1 for i, char in enumerate(text[begin:]) if char.isspace()), 0)
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        ids = encode_text(tokenizer, text[begin : begin + 20 * (num_prefix + num_after)])[: num_prefix + num_after]
        prefix = decode_text(tokenizer, ids[:num_prefix]).rstrip("\ufffd")  # a character may be several tokens
        found.append((prefix, decode_text(tokenizer, ids).removeprefix(prefix)))
    return found


def write_by_diffusion(peers: Peers, prefix: str, seed: int, num_new: int, steps: int, args: Any) -> tuple[str, int]:
    """What the diffusion model writes after a prefix, and its forwards."""
    sampling = {"sampling": "nucleus", "top_p": args.top_p, "temperature": args.temperature, "order": args.order}
    output = generate(
        peers.diffusion, peers.tokenizer, prefix, seed=seed, max_new_tokens=num_new, steps=steps, **sampling
    )
    return output.samples[0].completion, output.samples[0].num_forwards


def write_causally(peers: Peers, prefix: str, seed: int, num_new: int, args: Any) -> tuple[str, int]:
    """What the autoregressive model writes after a prefix, as many tokens, and its forwards: one for each."""
    model, tokenizer = peers.causal, peers.causal_tokenizer
    start_id, _ = boundary_token_ids(tokenizer)
    ids = torch.tensor([[start_id, *encode_text(tokenizer, prefix)]], device=model.device)
    how = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    written = continue_causally(model, tokenizer, ids, num_new, may_end=False, seed=seed, **how)
    return decode_text(tokenizer, written[0].tolist()), num_new


# The table


def summary_table(figures: dict[str, Any]) -> str:
    """Markdown: likelihood of both, then the figures of their texts, then the texts themselves."""
    whole = figures["likelihood"]["held_out_text"]
    rows = [
        ["", "autoregressive", "diffusion", "ratio"],
        ["---", "---:", "---:", "---:"],
        ["parameters", *(f"{figures['parameters'][name]:,}" for name in ("autoregressive", "diffusion")), ""],
    ]
    trained = [figures["training"][name] for name in ("autoregressive", "diffusion")]
    if all(trained):
        rows += [
            ["training tokens", *(f"{part['tokens']:,}" for part in trained), ""],
            ["training, minutes of CPU", *map(_minutes, trained), ""],
        ]
    names = ("autoregressive", "diffusion")
    rows += [
        ["bits per byte, held out", *(_with_interval(whole[name]) for name in names), _ratio(whole["ratio"])],
        ["nats per token, held out", *(f"{whole[name]['nats_per_token']:.3f}" for name in names), ""],
    ]
    few = figures["likelihood"].get("few_characters")
    if few:
        labels = {"importance": "importance-weighted bound", "chain": "left-to-right chain, exact"}
        first = _with_interval(few["autoregressive"])
        for name, label in {"diffusion": "bound", **labels}.items():
            if name in few:
                of_few = few["ratio"] if name == "diffusion" else few[name]["ratio"]
                title = f"first {few['num_bytes']:,} bytes: {label}"
                rows.append([title, first, _with_interval(few[name]), _ratio(of_few)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    samples = figures["samples"]
    lines += ["", "| texts | forwards | seconds | distinct 1-grams | 2-grams | 3-grams |", "|---" + "|---:" * 5 + "|"]
    for name, of_method in samples["methods"].items():
        spent = [f"{of_method[key]:.{digits}f}" if key in of_method else "" for key, digits in _SPENT]
        cells = [name, *spent, *(f"{of_method[f'distinct_{n}'] or 0:.2f}" for n in (1, 2, 3))]
        lines.append("| " + " | ".join(cells) + " |")
    for place, prefix in enumerate(samples["prefixes"]):
        lines += ["", f"**{_one_line(prefix)}**", ""]
        lines += [f"* {name}: {_one_line(of['texts'][place])}" for name, of in samples["methods"].items()]
    return "\n".join(lines)


_SPENT = (("forwards_per_text", 0), ("seconds_per_text", 3))


def _minutes(training: dict[str, Any]) -> str:
    return f"{training['cpu_seconds'] / 60:.1f}" + (" (since resuming)" if training["resumed"] else "")


def _with_interval(of_model: dict[str, Any]) -> str:
    interval = of_model.get("bits_per_byte_interval")
    if of_model["bits_per_byte"] is None:
        return "-"
    return f"{of_model['bits_per_byte']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _ratio(of_both: dict[str, Any]) -> str:
    if of_both["value"] is None:
        return "-"
    interval = of_both["interval"]
    return f"{of_both['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _one_line(text: str) -> str:
    """As code, with line breaks shown, so that no Markdown in it comes alive."""
    shown = text.replace("`", "'").replace("\n", " ⏎ ")
    return f"`{shown}`" if shown.strip() else "(nothing)"
