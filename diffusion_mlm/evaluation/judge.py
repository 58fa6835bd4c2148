"""An outside judge: how likely a causal language model finds texts that another model wrote."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..errors import NonFiniteLossError
from ..hub_access import require_repository
from ..modeling import context_length
from ..tokenization import encode_texts
from .interval import ratio_estimate
from .text_rows import windows
from .words import require_texts


@dataclass(frozen=True)
class JudgedTexts:
    """What a judge finds, tensors of shape `(num_texts,)`.

    Attributes:
        nats (`torch.Tensor`): -log probability of each text, float64; 0 for one without tokens.
        end_nats (`torch.Tensor`): what its end costs, which is part of `nats`; NaN where no end is scored.
        num_tokens (`torch.Tensor`): tokens of the judge that were scored, an end included.
        num_unknown (`torch.Tensor`): those that are unknown to it, scored as `<unk>`, which is easy to guess.
        num_characters (`torch.Tensor`): of the texts, which do not depend on the judge's tokenizer.
    """

    nats: Tensor
    end_nats: Tensor
    num_tokens: Tensor
    num_unknown: Tensor
    num_characters: Tensor

    def figures(self) -> dict[str, float | None]:
        """Figures of all texts together, as `TextFigures` names them; None where there is nothing to measure."""
        scored = self.num_tokens > 0
        total, characters = int(self.num_tokens.sum()), int(self.num_characters.sum())
        ratio = ratio_estimate(self.nats[scored], self.num_tokens[scored]) if total else None
        ends = self.end_nats[~self.end_nats.isnan()]
        return {
            "judge_nats_per_token": ratio.value if ratio else None,
            "judge_standard_error": ratio.standard_error if ratio else None,
            "judge_perplexity": math.exp(ratio.value) if ratio else None,
            "judge_bits_per_character": float(self.nats.sum()) / math.log(2) / characters if characters else None,
            "judge_end_nats": float(ends.mean()) if len(ends) else None,
            "judge_unknown_share": int(self.num_unknown.sum()) / total if total else None,
        }


class Judge:
    """A causal language model and its tokenizer, used to score texts.

    Args:
        model (`torch.nn.Module`): on whatever device and in whatever precision it is; put into evaluation mode.
        tokenizer: of the model. Special-token strings in a text (`</s>`) are plain text here.
        end_token (`str`, *optional*): what ended texts in the training of the judge, by default its `eos_token`. Some
            judges know another one: those of llama2.c only ever saw `<s>` between two texts.
        batch_size (`int`): rows per call of the model; it changes nothing else.

    Raises:
        ValueError: the tokenizer has neither a start nor an end token, or does not know `end_token`; or what the model
            predicts for a token depends on later ones.

    Every text is read after the start token, or, where the judge has none, after its `eos_token`, which separates
    texts in the training of such models.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_token: str | None = None,
        batch_size: int = 8,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, not {batch_size!r}.")
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        start_id = next((index for index in starts if index is not None), None)
        if start_id is None:
            raise ValueError(
                "`tokenizer` has neither a start nor an end token, so that nothing stands before the first token of a "
                "text: set its `bos_token`."
            )
        end_id = tokenizer.eos_token_id if end_token is None else tokenizer.get_vocab().get(end_token)
        if end_token is not None and end_id is None:
            raise ValueError(f"`end_token` is {end_token!r}, which the judge's tokenizer does not know.")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.start_id, self.end_id = start_id, end_id
        self.context = context_length(model, tokenizer)
        self._require_causal()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        end_token: str | None = None,
        batch_size: int = 8,
        trust_remote_code: bool = False,
        argument: str = "judge",
    ) -> "Judge":
        """Loads a judge from a directory or the Hub, from safetensors only, in float32, onto the accelerator if any.

        Args:
            end_token, batch_size: see the class.
            trust_remote_code (`bool`): whether code in the repository may run.
            argument (`str`): how the user calls the name, for error messages.

        Raises:
            ValueError: there is no such directory, or what is there is no complete causal language model.
            HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
        """
        require_repository(name_or_path, "model", argument)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
            model, info = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except Exception as error:  # the libraries for tokenizers and safetensors raise bare ones
            reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
            raise ValueError(
                f"`{argument}` is {name_or_path!r}, which cannot be loaded as a causal language model: {reason}."
            ) from error
        if info["missing_keys"]:
            raise ValueError(
                f"`{argument}` is {name_or_path!r}, which lacks {', '.join(sorted(info['missing_keys'])[:5])}: it is "
                f"no complete causal language model. Choose another one."
            )
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        try:
            return cls(model.to(device), tokenizer, end_token=end_token, batch_size=batch_size)
        except ValueError as error:
            raise ValueError(f"`{argument}` is {name_or_path!r}, which cannot judge: {error}") from error

    def score(self, texts: Sequence[str], ended: Sequence[bool] | None = None) -> JudgedTexts:
        """Scores each text by itself. One that is longer than the judge reads is scored in windows, each token once.

        Args:
            texts (`Sequence[str]`): up to their first end, without it.
            ended (`Sequence[bool]`, *optional*): of each text whether it ended by itself; the end is one of its tokens
                then. None of them by default, and whatever is said here if the judge has no end token.

        Raises:
            ValueError: a text is no string, or `ended` has another length.
            NonFiniteLossError: the judge answers NaN.

        Source: the windows are those of "Perplexity of fixed-length models" in the documentation of transformers, with
        half a window of new tokens in each.
        """
        texts = list(require_texts(texts, "texts"))
        ended = [False] * len(texts) if ended is None else list(ended)
        if len(ended) != len(texts):
            raise ValueError(
                f"`ended` must say of each of the {len(texts)} texts whether it ended, not of {len(ended)}."
            )
        encoded = encode_texts(self.tokenizer, texts)
        scores_end = [is_ended and self.end_id is not None for is_ended in ended]
        sequences = [
            [self.start_id, *ids, *([self.end_id] if has_end else [])]
            for ids, has_end in zip(encoded, scores_end, strict=True)
        ]
        nats = torch.zeros(len(texts), dtype=torch.float64)
        end_nats = torch.full_like(nats, math.nan)
        jobs = [
            (text, start, first, stop)
            for text, sequence in enumerate(sequences)
            for start, first, stop in windows(len(sequence), 1, self.context)
        ]
        rows = [sequences[text][start:stop] for text, start, _, stop in jobs]
        for number, logits in self._each(rows, self._logits):
            text, start, first, stop = jobs[number]
            new = torch.tensor(sequences[text][first:stop], device=logits.device)
            lost = functional.cross_entropy(logits[first - start - 1 : -1].float(), new, reduction="none").double()
            nats[text] += float(lost.sum())
            if scores_end[text] and stop == len(sequences[text]):
                end_nats[text] = float(lost[-1])
        if not torch.isfinite(nats).all():
            raise NonFiniteLossError("The judge answers NaN or infinity for some of the texts. Take another judge.")
        return JudgedTexts(
            nats=nats,
            end_nats=end_nats,
            num_tokens=torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.int64),
            num_unknown=torch.tensor([ids.count(self.tokenizer.unk_token_id) for ids in encoded], dtype=torch.int64),
            num_characters=torch.tensor([len(text) for text in texts], dtype=torch.int64),
        )

    def features(self, texts: Sequence[str]) -> Tensor:
        """The last hidden state at the last token of each text, `(num_texts, hidden_size)`, float32 on the CPU.

        Of a text that is longer than the judge reads, only the beginning is read.
        """
        rows = [[self.start_id, *ids][: self.context] for ids in encode_texts(self.tokenizer, list(texts))]
        body: Any = self.model.base_model
        found = self._each(rows, lambda inputs: body(**inputs, use_cache=False).last_hidden_state)
        last = {number: states[-1].float().cpu() for number, states in found}
        return torch.stack([last[number] for number in range(len(rows))])

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    @torch.no_grad()
    def _each(
        self, rows: Sequence[list[int]], call: Callable[[dict[str, Tensor]], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """What `call` gives for the tokens of each row, `(L, ...)`, with the number of the row; longest rows first."""
        device = next(self.model.parameters()).device
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            tokens = [torch.tensor(rows[number]) for number in batch]
            # Padding stands behind the text, where a causal model does not see it: any token will do.
            inputs = {
                "input_ids": pad_sequence(tokens, batch_first=True, padding_value=self.start_id).to(device),
                "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True).to(device),
            }
            for number, output, row in zip(batch, call(inputs), tokens, strict=True):
                yield number, output[: len(row)]

    def _require_causal(self) -> None:
        """Refuses a model that sees what comes next, such as a BERT that was loaded as a causal model."""
        ids = [self.start_id, *encode_texts(self.tokenizer, ["It is what it is, and that is all."])[0]][: self.context]
        half = len(ids) // 2 + 1
        found = dict(self._each([ids, ids[:half]], self._logits))
        whole, alone = found[0][:half].float(), found[1].float()
        tolerance = max(1e-3, 16 * torch.finfo(found[1].dtype).eps) * (alone.max() - alone.min())
        if not (whole - alone).abs().max() <= tolerance:  # NaN is refused too
            raise ValueError(
                f"`model` is a {type(self.model).__name__} whose predictions depend on later tokens or on padding, or "
                f"are not finite: a judge reads from left to right. Choose a model such as openai-community/gpt2."
            )
