"""Tokenizers trained on one's own text, and the literal reading of what users type."""

import os
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaTokenizerFast

from diffusion_mlm import story_language, tokenization
from diffusion_mlm.tokenization import (
    boundary_token_ids,
    encode_text,
    encode_texts,
    special_token_ids,
    train_bpe,
    train_characters,
    vocab_size_for,
)

TEXTS = [
    "The cat sat on the mat.\nThe dog sat on the log.",
    "A cat and a dog <mask> the <unk> </s> house, said the cat.",
    "ünïcödé 漢字 \U0001f600 and\ttabs  and   spaces ",
] * 3
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LITERAL = "a <mask> b</s> <s>c<pad><unk>"
properties = settings(deadline=None, derandomize=True, database=None, max_examples=200)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    return train_characters(TEXTS)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary holds the special tokens as words, as that of the story language."""
    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "<mask>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def real_roberta_tokenizer() -> RobertaTokenizerFast:
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DIFFUSION_MLM_TEST_DATA", root)) / "roberta-tokenizer"
    if not folder.is_dir():
        pytest.skip(
            "the published roberta-base tokenizer is not here: set DIFFUSION_MLM_TEST_DATA to its parent folder"
        )
    return RobertaTokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=512,
    )


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_special_tokens_have_the_ids_of_roberta_and_mask_is_last(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == tokenizer.vocab_size - 1
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, tokenizer.mask_token_id]
    assert boundary_token_ids(tokenizer) == (0, 2)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_row_opens_with_s_and_closes_with_end(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    assert tokenizer("cat").input_ids == [0, *encode_text(tokenizer, "cat"), 2]
    assert sorted(tokenizer("cat").keys()) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_saved_tokenizer_is_loaded_with_identical_encodings(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    RobertaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)  # a model beside it must change nothing
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, LITERAL, " \n\n", "unseen: \u0416"]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
        assert encode_text(loaded, text) == encode_text(tokenizer, text)
        assert loaded.decode(loaded(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert loaded.model_max_length == tokenizer.model_max_length == 512
    assert special_token_ids(loaded) == special_token_ids(tokenizer)
    assert len(loaded) == len(tokenizer)


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train_bpe(TEXTS, 300).backend_tokenizer.to_str() == train_bpe(iter(TEXTS), 300).backend_tokenizer.to_str()
    ours, reversed_order = train_characters(TEXTS), train_characters(TEXTS[::-1])
    assert ours.backend_tokenizer.to_str() == reversed_order.backend_tokenizer.to_str()


@properties
@given(text=ANY_TEXT)
def test_every_text_round_trips_through_the_bpe(bpe: PreTrainedTokenizerFast, text: str) -> None:
    ids = encode_text(bpe, text)
    assert bpe.decode(ids) == text
    assert set(special_token_ids(bpe)).isdisjoint(ids)


@properties
@given(text=st.text(st.sampled_from(sorted(set("".join(TEXTS))))))
def test_text_of_seen_characters_round_trips_through_the_character_tokenizer(
    characters: PreTrainedTokenizerFast, text: str
) -> None:
    ids = encode_text(characters, text)
    assert len(ids) == len(text)
    assert characters.decode(ids) == text


def test_every_unseen_character_is_one_unknown_token(characters: PreTrainedTokenizerFast) -> None:
    ids = encode_text(characters, "c\u0416\u0416t")
    assert ids[1:3] == [3, 3] and len(ids) == 4


def test_mask_keeps_the_space_before_it_in_characters_and_takes_it_in_bpe(
    bpe: PreTrainedTokenizerFast, characters: PreTrainedTokenizerFast
) -> None:
    space, mask = encode_text(characters, " ")[0], characters.mask_token_id
    assert characters("a <mask>", add_special_tokens=False).input_ids == [*encode_text(characters, "a"), space, mask]
    assert bpe("a <mask>", add_special_tokens=False).input_ids == [*encode_text(bpe, "a"), bpe.mask_token_id]


def test_special_tokens_in_user_text_stay_literal(
    bpe: PreTrainedTokenizerFast, characters: PreTrainedTokenizerFast
) -> None:
    assert bpe.mask_token_id in bpe(LITERAL).input_ids, "control: without care they are read as special tokens"
    for tokenizer in (bpe, characters):
        ids = encode_text(tokenizer, "a <mask> b</s> <s>c")
        assert set(special_token_ids(tokenizer)).isdisjoint(ids)
        assert tokenizer.decode(ids) == "a <mask> b</s> <s>c"


def test_special_tokens_in_user_text_are_unknown_words_to_a_word_level_tokenizer(
    words: PreTrainedTokenizerFast,
) -> None:
    assert words.mask_token_id in words("a <mask> b", split_special_tokens=True).input_ids, "control"
    assert encode_text(words, "a <mask> b </s>") == [4, 3, 5, 3]


def test_merges_never_make_a_special_token() -> None:
    tokenizer = train_bpe(["<mask></s><s><pad><unk>" * 50, "x<mask> <mask>" * 50], 400)
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, len(tokenizer) - 1]
    assert tokenizer.decode(encode_text(tokenizer, LITERAL)) == LITERAL


def test_the_published_tokenizer_reads_user_text_literally() -> None:
    tokenizer = real_roberta_tokenizer()
    assert encode_text(tokenizer, "Hello world") == [31414, 232]
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, 50264]
    ids = encode_text(tokenizer, LITERAL)
    assert set(special_token_ids(tokenizer)).isdisjoint(ids)
    assert tokenizer.decode(ids) == LITERAL


def test_our_bpe_has_the_pipeline_of_the_published_one(bpe: PreTrainedTokenizerFast) -> None:
    ours, published = bpe.backend_tokenizer, real_roberta_tokenizer().backend_tokenizer
    assert str(ours.pre_tokenizer) == str(published.pre_tokenizer)
    assert str(ours.decoder) == str(published.decoder)
    assert str(ours.post_processor) == str(published.post_processor)
    flags = [
        [
            (token.content, token.lstrip, token.rstrip, token.special)
            for token in backend.get_added_tokens_decoder().values()
        ]
        for backend in (ours, published)
    ]
    assert flags[0] == flags[1]


def test_long_text_is_cut_only_between_words(monkeypatch: pytest.MonkeyPatch, bpe: PreTrainedTokenizerFast) -> None:
    text = " ".join(["cat's", "dog", "12", "(the", "house)", "a\n\nb"] * 500)
    whole = bpe(text, add_special_tokens=False, verbose=False).input_ids
    monkeypatch.setattr(tokenization, "_PIECE_CHARACTERS", 50)
    monkeypatch.setattr(tokenization, "_CHARACTERS_AT_ONCE", 400)
    pieces = list(tokenization._cut_between_words(text))
    assert len(pieces) > 100 and max(map(len, pieces)) <= 100 and "".join(pieces) == text
    assert encode_text(bpe, text) == whole
    assert encode_texts(bpe, ["cat", text, "", text, "dog"])[1::2] == [whole, whole]


def test_text_without_a_space_is_cut_and_still_round_trips(
    monkeypatch: pytest.MonkeyPatch, bpe: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(tokenization, "_PIECE_CHARACTERS", 50)
    text = string.ascii_letters * 50
    assert bpe.decode(encode_text(bpe, text)) == text


def test_encoding_nothing_gives_nothing(bpe: PreTrainedTokenizerFast) -> None:
    assert encode_texts(bpe, []) == []
    assert encode_texts(bpe, ["", "a", ""]) == [[], encode_text(bpe, "a"), []]


def test_character_vocabulary_keeps_the_most_frequent() -> None:
    tokenizer = train_characters(["aaabbc", "d"], vocab_size=7)
    assert len(tokenizer) == 7
    assert encode_text(tokenizer, "abcd") == [4, 5, 3, 3]
    ties = train_characters(["zyx"], vocab_size=6)
    assert Counter(encode_text(ties, "xyz")) == Counter({4: 1, 3: 2}) and encode_text(ties, "x") == [4]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: train_bpe(TEXTS, vocab_size=260), "`vocab_size` must be at least 261"),
        (lambda: train_characters(TEXTS, vocab_size=5), "`vocab_size` must be at least 6"),
        (lambda: train_bpe([]), "at least one text"),
        (lambda: train_characters(["", ""]), "at least one text"),
        (lambda: train_bpe("abc"), "not one string"),
        (lambda: train_bpe(["a", None]), "number 1 .* NoneType"),
        (lambda: train_characters([b"a"]), "number 0 .* bytes"),
        (lambda: train_bpe(["a\ud800"]), "lone surrogate at character 1"),
        (lambda: train_bpe(TEXTS, model_max_length=2), "`model_max_length` must be at least 3"),
    ],
)
def test_wrong_arguments_are_one_sentence(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("text, message", [("\udfff", "lone surrogate"), (3, "int"), (None, "NoneType")])
def test_what_no_tokenizer_takes_is_refused(bpe: PreTrainedTokenizerFast, text: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_texts(bpe, ["a", text])  # type: ignore[list-item]


def test_tokenizer_without_mask_or_boundaries_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ValueError, match=r"no mask token: .*add_special_tokens\(\{\"mask_token\""):
        special_token_ids(tokenizer)
    with pytest.raises(ValueError, match="start of a row"):
        boundary_token_ids(tokenizer)
    with pytest.raises(ValueError, match="'</s>', which this tokenizer"):
        encode_text(tokenizer, "</s>")


@pytest.mark.parametrize(
    "num_bytes, size",
    [
        (0, 512),
        (10_000, 512),
        (262_144, 512),
        (1_115_394, 1024),
        (100_000_000, 8192),
        (10**9, 32_768),
        (10**12, 32_768),
    ],
)
def test_a_vocabulary_is_the_power_of_two_nearest_to_the_root_of_the_bytes(num_bytes: int, size: int) -> None:
    assert vocab_size_for(num_bytes) == size


def test_the_vocabulary_of_a_text_is_by_default_that_of_its_size() -> None:
    texts = story_language.sample(400, seed=0)
    assert vocab_size_for(sum(len(text.encode()) for text in texts)) == 512
    by_default, asked_for = train_bpe(texts), train_bpe(texts, vocab_size=512)
    assert len(by_default) == 512 < len(train_bpe(texts, vocab_size=600))
    assert by_default.backend_tokenizer.to_str() == asked_for.backend_tokenizer.to_str()
