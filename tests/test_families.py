"""Families of masked models: each is built small, saved, loaded, generated with and trained for a step."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    ElectraConfig,
    ElectraForPreTraining,
    EsmConfig,
    EsmTokenizer,
    EuroBertConfig,
    FNetConfig,
    GPT2Config,
    GPT2LMHeadModel,
    IBertConfig,
    LogitsProcessorList,
    ModernBertConfig,
    PerceiverConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from diffusion_mlm import (
    DataCollatorForMaskedDiffusion,
    DiffusionTrainer,
    DiffusionTrainingArguments,
    evaluate_texts,
    score,
    story_language,
)
from diffusion_mlm.generation import generate, load_generator
from diffusion_mlm.modeling import (
    build_model,
    context_length,
    end_token_id,
    forbidden_token_ids,
    load_model,
    logits_at,
    selects_rows,
)
from diffusion_mlm.tokenization import boundary_token_ids, decode_text, encode_text, special_token_ids, train_bpe

CONTEXT = 32  # tokens that every model here reads, special ones included
STORIES = story_language.sample(40, seed=5)
WORDS = sorted({word for story in STORIES for word in story.split()})
CHARACTERS = sorted({character for story in STORIES for character in story if character != " "})
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
# Short and long ones, so that every batch has padding.
TEXTS = ("", "One day", "One day a fox", "One day a fox was in a")
PROTEINS = ("", "MK", "MKTAYI", "MKTAYIAKQRQ")
RESERVED = "<|r0|>"


# Tokenizers: each of its family's own kind and class


def roberta_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    return train_bpe(STORIES, vocab_size=300)


def byte_level(special_tokens: list[str], row: str) -> Tokenizer:
    """A byte-level BPE with other special tokens than RoBERTa's; `row` is what is put around a text."""
    trained = json.loads(train_bpe(STORIES, vocab_size=300).backend_tokenizer.to_str())["model"]
    pieces = [piece for piece in trained["vocab"] if not piece.startswith("<") or len(piece) == 1]
    vocabulary = {piece: index for index, piece in enumerate([*special_tokens, *pieces])}
    backend = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in trained["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens)
    around = [(token, vocabulary[token]) for token in row.split() if token in vocabulary]
    backend.post_processor = processors.TemplateProcessing(single=row, special_tokens=around)
    return backend


def modernbert_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[CLS] $A [SEP]"),
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def eurobert_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    """Neither start of class nor separator nor unknown, padding that is the end token, and tokens in reserve."""
    start, end = "<|begin_of_text|>", "<|end_of_text|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level([start, end, "<|mask|>", RESERVED], f"{start} $A {end}"),
        bos_token=start,
        eos_token=end,
        pad_token=end,
        mask_token="<|mask|>",
    )


def unigram(special_tokens: list[str]) -> list[tuple[str, float]]:
    """Whole words are likelier than their characters, as SentencePiece finds; `▁` stands for the space."""
    pieces = {f"▁{word}": -4.0 for word in WORDS} | {"▁": -6.0}
    pieces |= dict.fromkeys(sorted({character.lower() for character in CHARACTERS} | set(CHARACTERS)), -8.0)
    pieces |= {f"▁{word.lower()}": -4.0 for word in WORDS}  # ALBERT reads lower case
    return [*((token, 0.0) for token in special_tokens), *pieces.items()]


def xlm_roberta_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    vocabulary = [*unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary)


def albert_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    return AlbertTokenizer(vocab=unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]))


def deberta_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    vocabulary = [*unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"]), ("[MASK]", 0.0)]
    return DebertaV2Tokenizer(vocab=vocabulary, unk_id=3)


def bert_tokenizer(_directory: Path) -> PreTrainedTokenizerBase:
    words = sorted({word.strip(".,").lower() for word in WORDS})
    characters = sorted({character.lower() for character in CHARACTERS})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters), *words]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))})


def esm_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    directory.mkdir(exist_ok=True)
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *AMINO_ACIDS, "<null_1>", "<mask>"]
    (directory / "vocab.txt").write_text("\n".join(tokens))
    return EsmTokenizer(str(directory / "vocab.txt"))


# Models

LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPREAD: dict[str, Any] = {"initializer_range": 0.3}  # logits that differ: with 0.02 every token would be as likely
COUNTED_FROM_PADDING: dict[str, Any] = {"max_position_embeddings": CONTEXT + 2, "pad_token_id": 1}
SMALL: dict[str, Any] = {**LAYERS, **SPREAD, "max_position_embeddings": CONTEXT}


def distilbert_config(size: int) -> PreTrainedConfig:
    return DistilBertConfig(
        vocab_size=size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=CONTEXT, **SPREAD
    )


def deberta_config(size: int) -> PreTrainedConfig:
    """The published settings but for the sizes: relative positions only, and no types of tokens."""
    return DebertaV2Config(
        vocab_size=size + 3,  # rows of the table without a token, as DeBERTa-v3 and ModernBERT have
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
        **SMALL,
    )


def modernbert_config(size: int) -> PreTrainedConfig:
    """The second layer sees 2 tokens to each side only, so that the window matters in rows of this length."""
    special = {"pad_token_id": 3, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    return ModernBertConfig(vocab_size=size + 3, local_attention=4, **special, **SMALL)


def eurobert_config(size: int) -> PreTrainedConfig:
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, "mask_token_id": 2}
    return EuroBertConfig(vocab_size=size, **special, **SMALL)


def esm_config(size: int, position_embedding_type: str) -> PreTrainedConfig:
    return EsmConfig(
        vocab_size=size,
        mask_token_id=size - 1,
        position_embedding_type=position_embedding_type,
        **{**SMALL, **COUNTED_FROM_PADDING},
    )


@dataclass(frozen=True)
class Family:
    """What to build, and the facts to find: tokens that open and close a row, and whether positions are in a table."""

    tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    config: Callable[[int], PreTrainedConfig]  # of the number of tokens
    model_class: str
    tokenizer_class: str
    around: tuple[str, str]
    has_position_table: bool = True
    texts: tuple[str, ...] = TEXTS


FAMILIES = {
    "roberta": Family(
        roberta_tokenizer,
        lambda size: RobertaConfig(vocab_size=size, type_vocab_size=1, **{**SMALL, **COUNTED_FROM_PADDING}),
        "RobertaForMaskedLM",
        "RobertaTokenizer",
        ("<s>", "</s>"),
    ),
    "xlm-roberta": Family(
        xlm_roberta_tokenizer,
        lambda size: XLMRobertaConfig(vocab_size=size, type_vocab_size=1, **{**SMALL, **COUNTED_FROM_PADDING}),
        "XLMRobertaForMaskedLM",
        "XLMRobertaTokenizer",
        ("<s>", "</s>"),
    ),
    "bert": Family(
        bert_tokenizer,
        lambda size: BertConfig(vocab_size=size, **SMALL),
        "BertForMaskedLM",
        "BertTokenizer",
        ("[CLS]", "[SEP]"),
    ),
    "distilbert": Family(
        bert_tokenizer, distilbert_config, "DistilBertForMaskedLM", "BertTokenizer", ("[CLS]", "[SEP]")
    ),
    "albert": Family(
        albert_tokenizer,
        lambda size: AlbertConfig(vocab_size=size, embedding_size=8, **SMALL),
        "AlbertForMaskedLM",
        "AlbertTokenizer",
        ("[CLS]", "[SEP]"),
    ),
    "electra": Family(
        bert_tokenizer,
        lambda size: ElectraConfig(vocab_size=size, embedding_size=8, **SMALL),
        "ElectraForMaskedLM",
        "BertTokenizer",
        ("[CLS]", "[SEP]"),
    ),
    "deberta-v2": Family(
        deberta_tokenizer, deberta_config, "DebertaV2ForMaskedLM", "DebertaV2Tokenizer", ("[CLS]", "[SEP]"), False
    ),
    "modernbert": Family(
        modernbert_tokenizer,
        modernbert_config,
        "ModernBertForMaskedLM",
        "TokenizersBackend",
        ("[CLS]", "[SEP]"),
        False,
    ),
    "eurobert": Family(
        eurobert_tokenizer,
        eurobert_config,
        "EuroBertForMaskedLM",
        "TokenizersBackend",
        ("<|begin_of_text|>", "<|end_of_text|>"),
        False,
    ),
    "esm-1": Family(
        esm_tokenizer,
        lambda size: esm_config(size, "absolute"),
        "EsmForMaskedLM",
        "EsmTokenizer",
        ("<cls>", "<eos>"),
        texts=PROTEINS,
    ),
    "esm-2": Family(
        esm_tokenizer,
        lambda size: esm_config(size, "rotary"),
        "EsmForMaskedLM",
        "EsmTokenizer",
        ("<cls>", "<eos>"),
        False,
        texts=PROTEINS,
    ),
}


@dataclass(frozen=True)
class Loaded:
    """A family's model and tokenizer as they come back from a directory. Do not change them."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    directory: Path
    facts: Family

    def generate(self, prefixes: Any, **settings: Any) -> Any:
        return generate(self.model, self.tokenizer, prefixes, **{"seed": 3, "max_new_tokens": 6, **settings})


def saved(directory: Path, family: Family) -> Path:
    tokenizer = family.tokenizer(directory)
    build_model(family.config(len(tokenizer)), seed=1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = saved(tmp_path_factory.mktemp(request.param), FAMILIES[request.param])
    model, tokenizer = load_generator(str(directory))
    return Loaded(request.param, model, tokenizer, directory, FAMILIES[request.param])


def as_tensors(rows: list[list[int]], padding: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with their attention mask."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    attended = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": attended}


# What a row is


def test_a_family_comes_back_from_its_directory_as_its_own_classes(loaded: Loaded) -> None:
    assert type(loaded.model).__name__ == loaded.facts.model_class
    assert type(loaded.tokenizer).__name__ == loaded.facts.tokenizer_class


def test_start_and_end_token_are_those_of_the_family(loaded: Loaded) -> None:
    start, end = loaded.tokenizer.convert_tokens_to_ids(list(loaded.facts.around))
    assert boundary_token_ids(loaded.tokenizer) == (start, end)
    assert end_token_id(loaded.tokenizer) == end


def test_a_canvas_is_the_row_that_the_tokenizer_makes_of_the_text(loaded: Loaded) -> None:
    output = loaded.generate(loaded.facts.texts)
    for text, sample, canvas in zip(loaded.facts.texts, output.samples, output.sequences.tolist(), strict=True):
        *before, end = loaded.tokenizer(text)["input_ids"]
        row = [*before, *sample.token_ids, end]
        assert canvas[: len(row)] == row
        assert set(canvas[len(row) :]) <= {loaded.tokenizer.pad_token_id}
        assert loaded.tokenizer.unk_token_id not in before


def test_types_of_tokens_are_by_default_those_of_the_tokenizer(loaded: Loaded) -> None:
    theirs = loaded.tokenizer(list(loaded.facts.texts), padding=True, return_tensors="pt")
    ours = {name: theirs[name] for name in ("input_ids", "attention_mask")}
    attended = theirs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.equal(loaded.model(**theirs).logits[attended], loaded.model(**ours).logits[attended])


# Generation


@pytest.mark.parametrize("steps, num_forwards", [(None, 6), (4, 4), (9, 6), (1, 1)])
def test_a_text_takes_the_planned_forwards_and_keeps_its_prefix(
    loaded: Loaded, steps: int | None, num_forwards: int
) -> None:
    rows: list[int] = []
    selects_rows(loaded.model)  # finds out by two forwards of its own, once
    handle = loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        output = loaded.generate(loaded.facts.texts, steps=steps)
    finally:
        handle.remove()
    assert rows == [len(loaded.facts.texts)] * num_forwards
    for prefix, sample in zip(loaded.facts.texts, output.samples, strict=True):
        assert sample.num_forwards == num_forwards
        assert (sample.prefix, sample.text) == (prefix, prefix + sample.completion)
        assert len(sample.token_ids) == 6


@pytest.mark.parametrize("prefix", [" a\r\n naïve 😀\t ", "<mask> </s><eos>", "[MASK] [SEP]", f"<|mask|>{RESERVED}"])
def test_an_awkward_prefix_stays_byte_for_byte_and_opens_no_special_token(loaded: Loaded, prefix: str) -> None:
    (sample,) = (output := loaded.generate(prefix)).samples
    assert sample.text == prefix + sample.completion
    given = output.sequences[0, 1 : -len(sample.token_ids) - 1].tolist()
    assert set(given) & set(special_token_ids(loaded.tokenizer)) <= {loaded.tokenizer.unk_token_id}


def prefer(token_ids: list[int]) -> LogitsProcessorList:
    def processor(_input_ids: Any, scores: Any) -> Any:
        return scores.index_add(-1, torch.tensor(token_ids), torch.full((len(scores), len(token_ids)), 100.0))

    return LogitsProcessorList([processor])


def test_no_special_token_and_no_id_without_a_token_is_generated_though_the_model_prefers_it(loaded: Loaded) -> None:
    tokenizer, vocab_size = loaded.tokenizer, loaded.model.config.vocab_size
    marked = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    unwanted = sorted({*marked, *tokenizer.all_special_ids, *range(len(tokenizer), vocab_size)})
    assert forbidden_token_ids(tokenizer, generates_end=False, vocab_size=vocab_size) == unwanted
    output = loaded.generate(loaded.facts.texts, logits_processor=prefer(unwanted), temperature=5.0, top_p=1.0)
    for sample in output.samples:
        assert set(sample.token_ids).isdisjoint(unwanted)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_prompt_alone_gives_what_it_gives_between_longer_and_shorter_ones(loaded: Loaded, order: str) -> None:
    together = loaded.generate(loaded.facts.texts, order=order, steps=3).samples
    alone = [loaded.generate(text, order=order, steps=3).samples[0] for text in loaded.facts.texts]
    assert alone == together
    assert len({sample.completion for sample in together}) > 1  # they could differ


def test_padding_moves_no_logit_of_a_row(loaded: Loaded) -> None:
    tokenizer = loaded.tokenizer
    rows = [tokenizer(text)["input_ids"] for text in loaded.facts.texts]
    rows[0][1:1] = [tokenizer.mask_token_id] * 5
    with torch.no_grad():
        together = loaded.model(**as_tensors(rows, tokenizer.pad_token_id)).logits
        for row, logits in zip(rows, together, strict=True):
            alone = loaded.model(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(logits[: len(row)], alone, rtol=1e-5, atol=1e-5)


# Lengths


def test_context_length_is_what_the_model_reads(loaded: Loaded, tmp_path: Path) -> None:
    assert context_length(loaded.model) == context_length(loaded.model, loaded.tokenizer) == CONTEXT
    row = loaded.generate(loaded.facts.texts[1], max_new_tokens=None, steps=2).sequences
    assert row.shape == (1, CONTEXT)  # by default as many as there is room for
    if loaded.facts.has_position_table:
        with pytest.raises((IndexError, RuntimeError)):
            loaded.model(input_ids=torch.full((1, CONTEXT + 1), 7))
    shorter = copy.deepcopy(loaded.tokenizer)
    shorter.model_max_length = 20
    assert context_length(loaded.model, shorter) == 20


def test_a_prefix_that_is_too_long_is_refused_in_one_sentence(loaded: Loaded) -> None:
    long = " ".join(["One day a fox"] * 12) if loaded.facts.texts is TEXTS else "MKTAYIAKQR" * 5
    count = 1 + len(encode_text(loaded.tokenizer, long))
    with pytest.raises(ValueError, match=f"prefix takes {count} tokens .* reads {CONTEXT - 1}.*Shorten") as raised:
        loaded.generate(long)
    assert "\n" not in str(raised.value)


# Logits and training


def test_the_head_runs_on_chosen_positions_and_gives_the_full_logits(loaded: Loaded) -> None:
    inputs = as_tensors([loaded.tokenizer(text)["input_ids"] for text in loaded.facts.texts], 1)
    rows = inputs["attention_mask"].bool() & (torch.arange(inputs["input_ids"].shape[1]) % 2 == 1)
    assert selects_rows(loaded.model)
    with torch.no_grad():
        torch.testing.assert_close(
            logits_at(loaded.model, rows, **inputs), loaded.model(**inputs).logits[rows], rtol=1e-5, atol=1e-5
        )


def test_texts_have_one_likelihood_whatever_their_batch_and_every_byte_of_it_counts(loaded: Loaded) -> None:
    texts = [text for text in loaded.facts.texts if text]
    options: dict[str, Any] = {"packing": "one_per_row", "draws": 2, "estimators": ["chain"]}
    together, alone = (
        evaluate_texts(loaded.model, loaded.tokenizer, texts, batch_size=size, **options) for size in (8, 1)
    )
    assert together.bound.nats_per_token == pytest.approx(alone.bound.nats_per_token, rel=1e-4)
    assert together.others["chain"].nats_per_token == pytest.approx(alone.others["chain"].nats_per_token, rel=1e-4)
    assert together.num_tokens == sum(len(encode_text(loaded.tokenizer, text)) for text in texts)
    assert together.rows.num_bytes == sum(len(text.encode()) for text in texts)
    scored = score(loaded.model, loaded.tokenizer, texts, estimator="chain")
    assert sum(text.nats for text in scored) / together.num_tokens == pytest.approx(
        together.others["chain"].nats_per_token, rel=1e-4
    )


def test_nothing_but_masks_gives_finite_logits(loaded: Loaded) -> None:
    with torch.no_grad():
        assert torch.isfinite(loaded.model(torch.full((2, CONTEXT), loaded.tokenizer.mask_token_id)).logits).all()


def test_two_training_steps_move_the_weights_and_have_the_loss_of_full_logits(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = DiffusionTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        warmup_steps=0,
        per_device_train_batch_size=3,
        eval_draws=1,
    )
    rows = [{"input_ids": loaded.tokenizer(text)["input_ids"]} for text in loaded.facts.texts[1:]]
    num_logits: list[list[int]] = []

    def train() -> tuple[PreTrainedModel, list[float]]:
        model = copy.deepcopy(loaded.model)
        for module in model.modules():  # dropout would meet other numbers where the head runs on fewer rows
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = DiffusionTrainer(
            model, arguments, processing_class=loaded.tokenizer, train_dataset=rows, eval_dataset=rows
        )
        num_logits.append([])
        model.register_forward_hook(lambda _model, _args, output: num_logits[-1].append(output.logits.shape[1]))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return model, [*losses, trainer.evaluate()["eval_loss"]]

    model, losses = train()
    monkeypatch.setattr("diffusion_mlm.modeling.selects_rows", lambda _model: False)
    _, of_full_logits = train()
    width = max(len(row["input_ids"]) for row in rows)
    assert num_logits[1] == [width] * 3 != num_logits[0]
    assert losses == pytest.approx(of_full_logits, rel=1e-5)
    assert all(0 < loss < 1000 for loss in losses)
    moved = [
        not torch.equal(before, after)
        for before, after in zip(loaded.model.parameters(), model.parameters(), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)


# What is peculiar to one


@pytest.fixture
def esm(tmp_path: Path) -> Path:
    return saved(tmp_path / "esm", FAMILIES["esm-2"])


def test_amino_acids_are_tokens_and_a_typed_mask_is_none(tmp_path: Path) -> None:
    tokenizer = esm_tokenizer(tmp_path)
    assert encode_text(tokenizer, "MKTAYI") == tokenizer("MKTAYI", add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    m, k = tokenizer.convert_tokens_to_ids(["M", "K"])
    assert encode_text(tokenizer, "M<mask>K<eos>") == [m, unknown, k, unknown]
    long = "MKTAYIAKQR" * 11_000  # above the size at which texts are cut in pieces
    assert encode_text(tokenizer, long) == encode_text(tokenizer, "MKTAYIAKQR") * 11_000


@pytest.mark.parametrize("name", FAMILIES)
def test_text_comes_back_from_its_tokens_as_it_was_typed(name: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES[name].tokenizer(tmp_path)
    for text in ("MK", "MKTAYI") if name.startswith("esm") else ("one day", "one day a fox"):
        assert decode_text(tokenizer, encode_text(tokenizer, text)) == text


def test_a_piece_of_a_word_that_comes_first_is_written_without_its_mark(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(["##a", "##y", "fox"])
    assert (tokenizer.decode(ids), decode_text(tokenizer, ids)) == ("##ay fox", "ay fox")
    assert decode_text(tokenizer, []) == ""


def test_a_protein_goes_on_without_spaces(esm: Path) -> None:
    model, tokenizer = load_generator(str(esm))
    for prefix in PROTEINS:
        (sample,) = generate(model, tokenizer, prefix, seed=0, max_new_tokens=9).samples
        assert sample.text == prefix + "".join(tokenizer.convert_ids_to_tokens(sample.token_ids))


def test_token_dropout_of_esm_is_switched_off_and_masks_stay_zero(esm: Path) -> None:
    config = json.loads((esm / "config.json").read_text())
    (esm / "config.json").write_text(json.dumps({**config, "token_dropout": True}))
    model = load_model(str(esm)).eval()
    mask = model.config.mask_token_id
    only_masks = model(input_ids=torch.full((1, 5), mask)).logits
    assert torch.isfinite(only_masks).all()  # with token dropout: NaN
    assert not model.config.token_dropout
    seen = model.esm.embeddings(torch.tensor([[0, mask, mask, 5, 2]]))
    assert torch.equal(seen[0, 1], torch.zeros(16))
    assert torch.equal(seen[0, 3], model.esm.embeddings.word_embeddings.weight[5])

    model.save_pretrained(esm)  # what is saved reads the same without this package
    assert not json.loads((esm / "config.json").read_text())["token_dropout"]
    assert not load_file(esm / "model.safetensors")["esm.embeddings.word_embeddings.weight"][mask].any()


def test_the_other_head_of_deberta_v3_is_found_though_its_configuration_hides_it(tmp_path: Path) -> None:
    config: Any = deberta_config(60)
    config.legacy = False
    model = build_model(config, seed=2).eval()
    model.save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    del published["legacy"]
    (tmp_path / "config.json").write_text(json.dumps(published))
    again = load_model(str(tmp_path)).eval()
    ids = torch.tensor([[1, 9, 8, 7, 2]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.config.legacy is False and selects_rows(again)


def test_tokens_held_in_reserve_are_special(tmp_path: Path) -> None:
    tokenizer = eurobert_tokenizer(tmp_path)
    reserved = tokenizer.convert_tokens_to_ids(RESERVED)
    assert reserved not in tokenizer.all_special_ids
    assert special_token_ids(tokenizer) == [0, 1, 2, reserved]


def test_a_token_held_in_reserve_is_never_masked(tmp_path: Path) -> None:
    """It has probability 0 in the loss, as all that is never generated: as a target it would make that infinite."""
    tokenizer = eurobert_tokenizer(tmp_path)
    row = [0, 40, tokenizer.convert_tokens_to_ids(RESERVED), 41, 1]
    batch = DataCollatorForMaskedDiffusion(tokenizer, mask=False)([{"input_ids": row}])
    assert batch["labels"].tolist() == [[-100, 40, -100, 41, -100]]


@pytest.mark.parametrize("model_class", [RobertaConfig, IBertConfig])
def test_positions_counted_from_the_padding_take_room_in_any_kind_of_table(model_class: Any) -> None:
    model = build_model(model_class(vocab_size=60, **{**SMALL, **COUNTED_FROM_PADDING})).eval()
    assert context_length(model) == CONTEXT
    assert model(input_ids=torch.full((1, CONTEXT), 7)).logits.shape == (1, CONTEXT, 60)


# What is not supported


def gpt2(directory: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)).save_pretrained(directory)


def electra_discriminator(directory: Path) -> None:
    ElectraForPreTraining(ElectraConfig(vocab_size=60, embedding_size=8, **SMALL)).save_pretrained(directory)


def perceiver(directory: Path) -> None:
    """It predicts as many positions as its table has, whatever it reads."""
    config = PerceiverConfig(
        vocab_size=60,
        d_model=16,
        d_latents=16,
        num_latents=4,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        max_position_embeddings=CONTEXT,
    )
    build_model(config).save_pretrained(directory)


def fnet(directory: Path) -> None:
    """Its Fourier transform runs over padding too."""
    build_model(FNetConfig(vocab_size=60, **SMALL)).save_pretrained(directory)


@pytest.mark.parametrize(
    "save, says",
    [
        (gpt2, "no masked-language-model class"),
        (electra_discriminator, "lacks generator_lm_head.bias, generator_predictions.LayerNorm.bias"),
        (perceiver, "a PerceiverForMaskedLM, which is not supported: it cannot be called with token ids"),
        (fnet, "a FNetForMaskedLM, which is not supported: padding changes what it predicts"),
    ],
)
def test_a_model_that_cannot_fill_masks_row_by_row_is_refused_in_one_sentence(
    save: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    save(tmp_path)
    bert_tokenizer(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as raised:
        load_generator(str(tmp_path))
    message = str(raised.value)
    assert message.startswith(f"`--checkpoint` is {str(tmp_path)!r}") and says in message
    assert "\n" not in message and "Choose" in message
