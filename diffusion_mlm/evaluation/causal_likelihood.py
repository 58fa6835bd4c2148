"""The exact likelihood of texts under a causal language model, on the rows that a diffusion model is scored on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..modeling import end_token_id, forbidden_token_ids, logits_at, unwrap
from ..objectives import token_negative_log_likelihood
from ..tokenization import special_token_ids
from .likelihood_report import LikelihoodReport
from .row_predictor import PADDING
from .text_likelihood import default_row_length, require_row_length
from .text_rows import make_rows
from .text_sums import CONFIDENCE, TextSums


def evaluate_causal_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    packing: str = "packed",
    max_length: int | None = None,
    separate_texts: bool = True,
    scores_end: bool = False,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> LikelihoodReport:
    """How likely texts are under a model that writes from left to right: -log p, exact, one forward per row.

    Rows, scored tokens and counts are those of `evaluate_texts`: a row begins with a start token that is given, each
    token of the texts is scored once, special tokens are given and have probability 0 elsewhere. So two models with
    one tokenizer are compared token by token, and any two by their bits per byte of the same texts.

    Args:
        model, tokenizer: a causal language model and its tokenizer, which needs no mask token.
        texts (sequence of `str`): not blank.
        packing (`str`): `packed` or `one_per_row`, see `text_rows`.
        max_length (`int`, *optional*): tokens of a row; what the model reads by default, up to 512.
        separate_texts (`bool`): packed: whether the end token stands between two texts.
        scores_end (`bool`): one_per_row: whether the end of a text is one of its tokens. It is predicted once, where a
            diffusion model pays for every `</s>` that fills the row; as a token it counts once in both.
        batch_size (`int`): rows per call of the model; it changes nothing else.
        progress (callable, *optional*): called with the number of batches done and that of all.

    Returns:
        `LikelihoodReport`, whose `bound` is the exact value: there is nothing between it and -log p. It has no loss by
        mask rate.

    Raises:
        ValueError: an argument is impossible, the model looks ahead, or there is nothing to score.
        NonFiniteLossError: the model answers NaN, or gives a token of the texts probability 0.
    """
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be several texts, not the string {texts[:40]!r}: wrap it in a list.")
    if not texts:
        raise ValueError("`texts` is empty: there is nothing to score.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of at least 1, not {batch_size!r}.")
    if scores_end and packing == "packed":
        raise ValueError("`scores_end` is True, but packed rows close anywhere: use `packing='one_per_row'`.")
    length = default_row_length(model, tokenizer) if max_length is None else max_length
    rows = make_rows(
        texts, tokenizer, require_row_length(model, tokenizer, length), packing, scores_end, separate_texts
    )
    end_id = end_token_id(tokenizer) if scores_end else -1
    never_scored = torch.tensor(sorted(set(special_token_ids(tokenizer, require_mask=False)) - {end_id}))
    predictor = CausalPredictor(model, tokenizer, scores_end)
    sums = TextSums(rows, never_scored, end_id, predictor.forbidden_ids.device, batch_size, progress)
    sums.prepare(1)
    was_training = model.training
    model.eval()
    try:
        require_causal(model)
        exact = sums.estimate(sums.add(predictor.nats_of_rows))
    finally:
        model.train(was_training)
    settings = {
        "packing": packing,
        "max_length": length,
        "scores_end": scores_end,
        "confidence": CONFIDENCE,
        "interval_over": "texts" if packing == "one_per_row" else "rows",
    }
    return LikelihoodReport(exact, [], {}, None, rows, int(sums.tokens.sum()), settings)


class CausalPredictor:
    """Scores rows that are padded with -1, each token by those before it.

    Attributes:
        forbidden_ids (`torch.Tensor`): ids that get probability 0, on the model's device: as for a diffusion model,
            all special tokens but the end if it is scored.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, scores_end: bool) -> None:
        device = next(model.parameters()).device
        vocab_size = int(unwrap(model).config.vocab_size)  # type: ignore[union-attr, arg-type]  # a config of any model
        self.model = model
        self.end_id = end_token_id(tokenizer) if scores_end else -1
        self.forbidden_ids = torch.tensor(forbidden_token_ids(tokenizer, scores_end, vocab_size), device=device)
        # Unattended, behind the text; where there is no padding token any other serves.
        self.padding_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    @torch.no_grad()
    def nats_of_rows(self, input_ids: Tensor, maskable: Tensor) -> Tensor:
        """-log p of the maskable tokens of each row, float64 of shape `(B,)`.

        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`): padded with -1 on the right.
            maskable (`torch.BoolTensor` of shape `(B, L)`): what is scored; of a run of ends, the first only.
        """
        ends = input_ids.eq(self.end_id)
        scored = maskable.clone()
        scored[:, 2:] &= ~(ends[:, 2:] & ends[:, 1:-1])  # the first place may follow a start token of the same id
        scored[:, 0] = False  # nothing stands before it
        attended = input_ids.ne(PADDING)
        predicts = torch.cat([scored[:, 1:], torch.zeros_like(scored[:, :1])], dim=1)
        logits = logits_at(
            self.model,
            predicts,
            input_ids=input_ids.masked_fill(~attended, self.padding_id),
            attention_mask=attended.long(),
        )
        nats = torch.zeros(scored.shape, dtype=torch.float64, device=logits.device)
        nats[scored] = token_negative_log_likelihood(logits, input_ids[scored], self.forbidden_ids).double()
        return nats.sum(-1)


@torch.no_grad()
def require_causal(model: nn.Module) -> None:
    """Refuses a model that sees what it predicts, as a masked model loaded as a causal one does.

    Raises:
        ValueError: another token changes what is predicted before it.
    """
    vocab_size = int(unwrap(model).config.vocab_size)  # type: ignore[union-attr, arg-type]  # a config of any model
    parameter = next(model.parameters())
    first = torch.tensor([[5, 6, 7, 8, 9, 10]], device=parameter.device) % vocab_size
    second = first.clone()
    second[0, 3:] = (first[0, 3:] + 1) % vocab_size
    one, other = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in (first, second))
    if (one - other)[:, :3].abs().max() > 1e-4 * one.abs().max():  # not so for NaN, which has an error of its own
        raise ValueError(
            f"The model, a {type(unwrap(model)).__name__}, sees the tokens it is to predict: it is no causal language "
            f"model. Score a masked model by `evaluate_texts`; a RoBERTa is causal with `is_decoder=True` only."
        )
