"""What `compare_recipes.py` trains and measures on: the built-in stories, whose quality is exact, or files of text."""

import sys
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_mlm import story_language
from diffusion_mlm.data import tokenize_and_pack
from diffusion_mlm.evaluation.likelihood import bound_of_rows
from diffusion_mlm.evaluation.row_predictor import make_predictor

sys.path.insert(0, str(Path(__file__).parent))
from story_quality import story_bound, story_samples  # a neighbour, not a package

TRAIN_SEED = 1  # of the stories, as in `diffusion-mlm train`


class Corpus(Protocol):
    """Rows to train on, and the figures of a trained model."""

    settings: ClassVar[dict[str, Any]]  # training arguments that no arm changes
    tokenizer: PreTrainedTokenizerBase
    row_length: int

    def rows(self, count: int) -> Any:
        """A data set of at least as many rows as an epoch of `count` rows needs."""

    def figures(self, model: PreTrainedModel, num_rows: int, draws: int, num_samples: int) -> dict[str, Any]:
        """The bound in nats per token with its standard error over held-out rows, and what else can be told."""


class Stories:
    """The built-in stories: a new one for every row, and a grammar that says which of the written ones are right."""

    settings: ClassVar[dict[str, Any]] = {"mask_end_token": True, "no_prefix_share": 0.65}
    row_length = story_language.BLOCK_LENGTH

    def __init__(self) -> None:
        self.tokenizer = story_language.tokenizer()

    def rows(self, count: int) -> Any:
        return [{"input_ids": ids} for ids in story_language.sample_ids(count, TRAIN_SEED).tolist()]

    def figures(self, model: PreTrainedModel, num_rows: int, draws: int, num_samples: int) -> dict[str, Any]:
        model.config.diffusion = {"generates_end": True, "row_length": self.row_length}
        samples = story_samples(model, self.tokenizer, num_samples, seed=0)
        samples["samples"] = samples["samples"][:2]
        return {**story_bound(model, self.tokenizer, num_rows, draws), **samples}


class Texts:
    """Files of text, joined and cut into full rows; another pass over them when they are used up."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train: list[str], held_out: list[str], row_length: int):
        self.tokenizer, self.row_length = tokenizer, row_length
        self.train, self.held_out = self._rows(train), self._rows(held_out)

    def _rows(self, files: list[str]) -> Any:
        text = "".join(Path(name).read_bytes().decode("utf-8") for name in files)
        texts = Dataset.from_dict({"text": [text]})
        return tokenize_and_pack(texts, self.tokenizer, self.row_length, "packed", separate_texts=False)

    def rows(self, count: int) -> Any:
        return self.train

    def figures(self, model: PreTrainedModel, num_rows: int, draws: int, num_samples: int) -> dict[str, Any]:
        predictor = make_predictor(model, self.tokenizer, scores_end=False)
        count = min(num_rows, len(self.held_out))
        chosen = [index * len(self.held_out) // count for index in range(count)]  # from all over the text
        ids = torch.tensor([list(row) for row in self.held_out.select(chosen)["input_ids"]])
        nats, tokens = [], []
        for rows in ids.split(64):
            bounds = bound_of_rows(
                predictor,
                rows.to(predictor.device),
                torch.isin(rows, predictor.never_scored, invert=True).to(predictor.device),
                mask_id=predictor.mask_id,
                end_id=predictor.end_id,
                forbidden_ids=predictor.forbidden_ids,
                draws=draws,
            )
            nats.append(bounds.nats.cpu())
            tokens.append(bounds.num_tokens.cpu())
        of_rows, lengths = torch.cat(nats), torch.cat(tokens).double()
        per_token = float(of_rows.sum() / lengths.sum())
        error = float((of_rows - per_token * lengths).std() / count**0.5 / lengths.mean())
        return {"nelbo_nats_per_token": per_token, "nelbo_standard_error": error}
