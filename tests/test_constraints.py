"""Constraints: what they mean is said again here, by searching finished text, and must always hold."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, RobertaTokenizerFast

from diffusion_mlm.character_automaton import CharacterAutomaton, build_automaton
from diffusion_mlm.constraints import Constraints, compile_constraints, completion_text
from diffusion_mlm.randomness import fold_in, make_key, uniform
from diffusion_mlm.tokenization import encode_text, train_bpe, train_characters

ROBERTA = Path(__file__).parents[2] / "shared" / "data" / "roberta-tokenizer"
quietly = settings(deadline=None, derandomize=True, database=None, max_examples=200)


# --- what they mean --------------------------------------------------------------------------------------------------


def holds_a_banned_word(words: Sequence[str], prefix: str, new: str, flags: int = 0) -> bool:
    """Whether a banned word stands in the whole text, not entirely before the new part.

    It may not be a part of a longer word; a sign at its own end is no part of a word, whatever stands next to it.
    """
    text = prefix + new
    wholes = {
        word: (r"(?<!\w)" if re.match(r"\w", word) else "")
        + re.escape(word)
        + (r"(?!\w)" if re.match(r"\w", word[-1]) else "")
        for word in words
    }
    return any(
        found.start() + len(word) > len(prefix)
        for word, whole in wholes.items()
        for found in re.finditer(f"(?={whole})", text, flags)
    )


def holds_a_banned_string(strings: Sequence[str], prefix: str, new: str, flags: int = 0) -> bool:
    return any(
        found.start() + len(string) > len(prefix)
        for string in strings
        for found in re.finditer(f"(?={re.escape(string)})", prefix + new, flags)
    )


def has_only_allowed_words(words: Sequence[str], prefix: str, new: str, flags: int = 0) -> bool:
    found = re.finditer(r"\w+(?:['’]\w+)*", prefix + new)
    new_words = [word[0] for word in found if word.end() > len(prefix)]
    return all(any(re.fullmatch(re.escape(word), new_word, flags) for word in words) for new_word in new_words)


def is_satisfied(constraints: Constraints, prefix: str, new: str) -> bool:
    flags = re.IGNORECASE if constraints.ignore_case else 0
    return (
        (constraints.regex is None or re.fullmatch(constraints.regex, new) is not None)
        and not holds_a_banned_word(constraints.banned_words, prefix, new, flags)
        and not holds_a_banned_string(constraints.banned_strings, prefix, new, flags)
        and (
            constraints.allowed_words is None or has_only_allowed_words(constraints.allowed_words, prefix, new, flags)
        )
    )


ALPHABET = "abA' -_!"
texts = st.text(alphabet=ALPHABET, max_size=7)
strings = st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3)
banned = st.lists(
    st.text(alphabet=ALPHABET, min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=3
)
allowed = st.lists(st.from_regex(r"[abA_]{1,3}('[ab]{1,2})?", fullmatch=True), min_size=1, max_size=3)
news = st.lists(texts, min_size=10, max_size=30)


def automaton_of(constraints: Constraints, prefix: str, alphabet: str = ALPHABET) -> CharacterAutomaton:
    return build_automaton(constraints.languages(prefix), alphabet)


@quietly
@given(banned, st.booleans(), texts, news)
def test_banned_words_are_found_in_new_text_and_over_the_seam_to_the_prefix(words, ignore_case, prefix, news):
    constraints = Constraints(banned_words=words, ignore_case=ignore_case)
    automaton = automaton_of(constraints, prefix)
    for new in [*news, *(f"{new}{word}{other}" for new, other, word in zip(news, news[1:], words * 30, strict=False))]:
        assert automaton.accepts(new) == is_satisfied(constraints, prefix, new)


@quietly
@given(strings, st.booleans(), texts, news)
def test_banned_strings_are_found_in_new_text_and_over_the_seam_to_the_prefix(words, ignore_case, prefix, news):
    constraints = Constraints(banned_strings=words, ignore_case=ignore_case)
    automaton = automaton_of(constraints, prefix)
    for new in news:
        assert automaton.accepts(new) == is_satisfied(constraints, prefix, new)


@quietly
@given(allowed, st.booleans(), texts, news)
def test_allowed_words_are_the_only_ones_in_new_text_and_over_the_seam_to_the_prefix(words, ignore_case, prefix, news):
    constraints = Constraints(allowed_words=words, ignore_case=ignore_case)
    automaton = automaton_of(constraints, prefix)
    for new in [*news, *words, *(f" {word}" for word in words), *(word[1:].lower() for word in words)]:
        assert automaton.accepts(new) == is_satisfied(constraints, prefix, new)


@pytest.mark.parametrize(
    ("prefix", "new", "is_kept"),
    [
        ("", "cat", False),
        ("the ", "cat sat", False),
        ("the", " (cat)", False),
        ("the ", "cats and a bobcat, Cat_cat", True),
        ("the ca", "t on", False),
        ("the ca", "ts on", True),
        ("a bobca", "t on", True),
        ("the cat", " sat", True),  # that one stands in the prefix
        ("the cat", "", True),
        ("the cat", "cat", True),
        ("the cat", " cat", False),
        ("", "thecat sat", True),  # glued to another one it is another word, as for \\b of `re`; see `banned_strings`
        ("the", "cat", True),
        ("", "a cat's cat-like c.a.t", False),
        ("", "a 2cat, cat2 and größecat", True),  # digits and letters of any script go on with a word
        ("", "«cat»", False),
    ],
)
def test_banned_words_at_the_seam(prefix, new, is_kept):
    assert automaton_of(Constraints(banned_words=["cat"]), prefix, prefix + new).accepts(new) == is_kept


@pytest.mark.parametrize(
    ("prefix", "new", "is_kept"),
    [
        ("the ", "cats", False),
        ("", "bobcat", False),
        ("the bobca", "ts", False),
        ("the cat", "s", True),  # that one stands in the prefix
        ("", "Cat c-a-t", True),
        ("", "三毛猫です", False),  # no spaces, so no word on its own
    ],
)
def test_banned_strings_are_found_inside_words_too(prefix, new, is_kept):
    constraints = Constraints(banned_strings=["cat", "猫"])
    assert automaton_of(constraints, prefix, prefix + new).accepts(new) == is_kept


def test_case_counts_unless_it_is_to_be_ignored():
    lists = {"banned_words": ["cat", "UP"], "banned_strings": ["dog"]}
    strict, loose = Constraints(**lists), Constraints(**lists, ignore_case=True)
    for new in ("A Cat", "up", "HotDogs"):
        assert automaton_of(strict, "", new).accepts(new) and not automaton_of(loose, "", new).accepts(new)
    assert not automaton_of(loose, "the C", "at").accepts("at")
    strict, loose = (Constraints(allowed_words=["the", "Cat"], ignore_case=ignored) for ignored in (False, True))
    for prefix, new in (("C", "AT The"), ("c", "at"), ("", "The")):
        automata = (automaton_of(constraints, prefix, prefix + new) for constraints in (loose, strict))
        assert [automaton.accepts(new) for automaton in automata] == [True, False]
    assert not automaton_of(loose, "", "a cat").accepts("a cat")


@pytest.mark.parametrize(
    ("prefix", "new", "is_kept"),
    [
        ("", "cat, don't. - cat", True),
        ("", "cats", False),
        ("", "don", False),
        ("the ", "cat", True),
        ("the ca", "t don't", True),
        ("the ca", "n cat", False),
        ("the ca", " cat", True),  # what is in the prefix need not be allowed
        ("the dog", "", True),
        ("", "catcat", False),  # glued together they are another word
        ("the", "cat", False),
        ("I don", "'t", True),
        ("I don", "'s", False),
        ("I don'", "t", True),
        ("I don'", "'t", False),
        ("I don'", " cat", True),
    ],
)
def test_allowed_words_at_the_seam(prefix, new, is_kept):
    assert automaton_of(Constraints(allowed_words=["cat", "don't"]), prefix, prefix + new).accepts(new) == is_kept


def test_phrases_and_words_with_signs_can_be_banned():
    automaton = automaton_of(Constraints(banned_words=["New York", "C++", "!"]), "in New", "NewYork C+s!")
    assert not automaton.accepts(" York") and automaton.accepts(" Yorks")
    assert not automaton.accepts("e C++ s") and automaton.accepts("e C+ s")
    assert not automaton.accepts("e C++s") and automaton.accepts("e NewC++") and not automaton.accepts("York!")


# --- through tokenizers ----------------------------------------------------------------------------------------------


def words_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """BERT's kind: ## where a token goes on with a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizerFast(vocab={word: index for index, word in enumerate([*special, *words])})


def sentence_piece_tokenizer(*pieces: str) -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's kind: ▁ where a word begins."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in [*special, *pieces]], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


@pytest.fixture(scope="module")
def tokenizers(story_tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = "The cat sat on the mat, and the dog didn't. A cat's hat is 12 cm; naïve café, 日本! " * 3
    return {
        "bpe": train_bpe([text], vocab_size=300),
        "characters": train_characters([text]),
        "stories": story_tokenizer,
        "wordpiece": words_tokenizer("the", "cat", "##s", "##a", "c", "##at", "##t", "dog", ".", ",", "'", "1", "##2"),
        "sentencepiece": sentence_piece_tokenizer(
            "▁", "▁the", "▁cat", "s", "▁ca", "t", "c", "a", "▁dog", ".", ",", "▁the▁cat", "'", "▁1", "2"
        ),
    }


def sample(
    tokenizer: Any,
    constraints: Constraints,
    prefix: str,
    length: int,
    key: int,
    *,
    ends: bool = False,
    together: int = 3,
    greedy: bool = False,
) -> tuple[list[int], str]:
    """Ids and text of a row that a model of random opinions fills in random order."""
    prefix_ids = encode_text(tokenizer, prefix)
    if prefix.endswith(" ") and tokenizer.unk_token_id in prefix_ids[-1:]:  # as `canvas` does
        prefix_ids = encode_text(tokenizer, prefix.rstrip(" "))
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    (automaton,) = compile_constraints(
        constraints,
        tokenizer,
        [(prefix, prefix_ids)],
        vocab_size=len(tokenizer) + 2,  # a model may have more rows than the tokenizer has tokens
        forbidden_ids=[token for token in tokenizer.all_special_ids if not (ends and token == end)],
        end_id=end if ends else None,
    )
    new_ids, is_masked = torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool)
    automaton.require_feasible(new_ids, is_masked)
    keys = fold_in(torch.tensor(make_key("test", key)), torch.arange(length + 2))
    for slots in uniform(keys[-1], length).argsort().split(together):
        u = uniform(keys[slots[0]], len(slots) * (len(tokenizer) + 3)).view(len(slots), -1)
        logits = (6 * u[:, 1:]).float()
        new_ids[slots] = automaton.draw(torch.stack([logits, logits]), slots, new_ids, is_masked, u[:, 0], greedy)
        is_masked[slots] = False
        assert automaton.is_feasible(new_ids, is_masked)
    ids = new_ids.tolist()
    ids = ids[: ids.index(end)] if ends and end in ids else ids
    return ids, completion_text(tokenizer.decode, prefix, prefix_ids, ids)


CASES = {
    "regex": Constraints(r"[^.]*[a-z](?: ?\.)?"),
    "banned": Constraints(banned_words=["cat", "cats", "the", "dog", "A"]),
    "allowed": Constraints(allowed_words=["cat", "the", "The", "on", "a", "A", "dog", "1", "12", "t"]),
    "strings": Constraints(banned_strings=["at", "e ", "D", "the dog"], ignore_case=True),
    "combined": Constraints(r"(?s:.*[a-z].*)", ["cat", "dog"], ["cats", "the", "The", "on", "a", "A", "t", "s"]),
}
PREFIXES = ["", "the ca", "the cat", "the cat ", "The dog,"]


@pytest.mark.parametrize("kind", ("bpe", "characters", "stories", "wordpiece", "sentencepiece"))
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_constraint_holds_in_every_sample_whatever_the_tokenizer(tokenizers, kind, case):
    constraints = CASES[case]
    for number in range(10):
        prefix, length = PREFIXES[number % 5], 3 + number % 7
        _, text = sample(tokenizers[kind], constraints, prefix, length, number, ends=number % 3 == 0)
        assert is_satisfied(constraints, prefix, text), (prefix, text)


def test_a_banned_word_spelt_by_two_tokens_is_never_completed(tokenizers):
    """ "cat" is one token, or "c" and "##at"."""
    tokenizer = tokenizers["wordpiece"]
    c, at, cat, s = tokenizer.convert_tokens_to_ids(["c", "##at", "cat", "##s"])
    (automaton,) = compile_constraints(
        Constraints(banned_words=["cat"]), tokenizer, [("", [])], vocab_size=len(tokenizer), forbidden_ids=range(5)
    )
    is_masked = torch.tensor([False, True])
    allowed = automaton.allowed(torch.tensor([c, 0]), is_masked)[0]
    assert not allowed[at] and not allowed[cat] and allowed[s]
    assert automaton.is_feasible(torch.tensor([c, at, s]), torch.zeros(3, dtype=torch.bool))  # "cats"
    assert not automaton.is_feasible(torch.tensor([cat]), torch.tensor([False]))


def test_a_banned_word_is_impossible_in_every_spelling(tokenizers):
    """All rows of a small vocabulary, one by one: accepted exactly if the decoded text is free of the word, and no
    token holds it as a whole."""
    tokenizer = tokenizers["sentencepiece"]
    left_out = set(tokenizer.convert_tokens_to_ids(["▁cat", "▁the▁cat"]))
    for prefix in ("", "the", "the ca"):
        prefix_ids = encode_text(tokenizer, prefix)
        (automaton,) = compile_constraints(
            Constraints(banned_words=["cat"]),
            tokenizer,
            [(prefix, prefix_ids)],
            vocab_size=len(tokenizer),
            forbidden_ids=range(5),
        )
        none_masked = torch.zeros(3, dtype=torch.bool)
        for ids in torch.cartesian_prod(*[torch.arange(5, len(tokenizer))] * 3):
            text = completion_text(tokenizer.decode, prefix, prefix_ids, ids.tolist())
            expected = not holds_a_banned_word(["cat"], prefix, text) and left_out.isdisjoint(ids.tolist())
            assert automaton.is_feasible(ids, none_masked) == expected, text


def usable(tokenizer: Any, constraints: Constraints) -> set[str]:
    """The tokens that may stand somewhere in a row of four."""
    automaton = compiled(tokenizer, constraints)
    allowed = automaton.allowed(torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)).any(0)
    return set(tokenizer.convert_ids_to_tokens(allowed.nonzero().squeeze(-1).tolist()))


def test_a_token_that_is_a_banned_word_is_not_there_to_glue_something_to(tokenizers):
    """Else a model that expects "the lake" or '"Give' writes "thelake" and "begged Give" without the space."""
    stories = tokenizers["stories"]
    without = usable(stories, Constraints(banned_words=["the", "Give", "I", "mia"]))
    assert usable(stories, Constraints(".*")) - without == {"Ġthe", "Give", "I"}
    without = usable(stories, Constraints(banned_words=["the", "Mia"], ignore_case=True))
    assert usable(stories, Constraints(".*")) - without == {"Ġthe", "ĠThe", "ĠMia"}
    pieces = tokenizers["wordpiece"]
    assert usable(pieces, Constraints(".*")) - usable(pieces, Constraints(banned_words=["cat", "at"])) == {"cat"}
    pieces = tokenizers["sentencepiece"]
    without = usable(pieces, Constraints(banned_words=["cat", "s"]))
    assert usable(pieces, Constraints(".*")) - without == {"▁cat", "▁the▁cat"}


def test_letters_of_a_vocabulary_of_characters_stay(tokenizers):
    assert {"A", "a"} <= usable(tokenizers["characters"], Constraints(banned_words=["A", "a"]))


def test_a_token_that_is_a_banned_word_is_used_where_nothing_can_be_written_without_it():
    tokenizer = words_tokenizer("cat", "dog", "##s")
    for constraints in (Constraints("cats", ["cat"]), Constraints(None, ["cat"], ["cats"])):
        assert sample(tokenizer, constraints, "", 2, 0)[1] == "cats"
    assert sample(tokenizer, Constraints("(?:cat|dog)s", ["cat"]), "", 2, 0)[1] == "dogs"
    prefixes = [("", [])] * 2
    constraints = Constraints("cats|dogss", ["cat"])
    options = {"vocab_size": len(tokenizer), "forbidden_ids": range(5), "num_new": [2, 3]}
    two, three = compile_constraints(constraints, tokenizer, prefixes, **options)
    assert two.can_be_filled(2) and three.can_be_filled(3) and not three.can_be_filled(2)


def test_bytes_that_are_no_whole_character_are_never_generated(tokenizers):
    tokenizer = tokenizers["bpe"]
    (automaton,) = compile_constraints(
        Constraints(r".*"), tokenizer, [("", [])], vocab_size=len(tokenizer), forbidden_ids=range(4)
    )
    allowed = automaton.allowed(torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool))
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert not allowed[:, ["\ufffd" in text for text in texts]].any()
    assert allowed[:, [text.isalpha() for text in texts]].all()


def test_the_text_begins_where_the_prefix_ends(tokenizers, story_tokenizer):
    """Where a decoder drops the first space, or the prefix already has it, the new text has none to match."""
    assert sample(story_tokenizer, Constraints(r"The dog"), "", 2, 0)[1] == "The dog"
    assert sample(story_tokenizer, Constraints(r" dog"), "The", 1, 0)[1] == " dog"
    assert sample(story_tokenizer, Constraints(r"dog"), "The ", 1, 0)[1] == "dog"
    assert sample(tokenizers["wordpiece"], Constraints(r"the cats"), "", 3, 0)[1] == "the cats"
    assert sample(tokenizers["wordpiece"], Constraints(r" cats"), "the", 2, 0)[1] == " cats"
    assert sample(tokenizers["sentencepiece"], Constraints(r"the cat"), "", 2, 0)[1] == "the cat"
    assert sample(tokenizers["sentencepiece"], Constraints(r"thecat"), "", 1, 0)[1] == "thecat"  # it drops all spaces
    assert sample(tokenizers["sentencepiece"], Constraints(r" the cat"), "a", 1, 0)[1] == " the cat"


def test_an_end_token_ends_the_constrained_text(story_tokenizer):
    for key in range(20):
        ids, text = sample(story_tokenizer, Constraints(r"(?: (?:dog|cat))+\."), "The", 6, key, ends=True)
        assert re.fullmatch(r"(?: (?:dog|cat))+\.", text) and len(ids) <= 6


def test_prefixes_that_change_nothing_share_one_automaton(story_tokenizer):
    prefixes = [(text, encode_text(story_tokenizer, text)) for text in ("The dog", "A cat", "The ca", "")]
    options = {"vocab_size": len(story_tokenizer), "forbidden_ids": range(5)}
    one, same, seam, empty = compile_constraints(
        Constraints(banned_words=["cats"]), story_tokenizer, prefixes, **options
    )
    assert one is not same and same is not seam  # "A cat" goes on to "cats", and "The ca" too
    one, same, other, empty = compile_constraints(Constraints(r".*"), story_tokenizer, prefixes, **options)
    assert one is same is other and one is not empty  # at the very start the decoder drops a space


@pytest.mark.skipif(not ROBERTA.is_dir(), reason="the tokenizer of roberta-base is not beside the project")
def test_the_real_roberta_tokenizer_works_with_a_hundred_banned_words():
    mask: Any = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer: Any = RobertaTokenizerFast(str(ROBERTA / "vocab.json"), str(ROBERTA / "merges.txt"), mask_token=mask)
    words = sorted({tokenizer.decode([token]).strip() for token in range(262, 700)} - {""})
    words = [word for word in words if word.isalpha()][:100]
    assert len(words) == 100
    constraints = Constraints(r" [A-Z][a-z]+(?: [a-z]+)*, in \d{4}\.", banned_words=words)
    for greedy in (False, True):
        _, text = sample(tokenizer, constraints, "They say that", 12, 0, greedy=greedy)
        assert is_satisfied(constraints, "They say that", text)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regex": 3}, "`regex` must be a string, not int"),
        ({"regex": "(a"}, r"`regex` is '\(a', but missing \), unterminated subpattern"),
        ({"regex": r"\bcat"}, r"`regex` is .*, but it uses the word boundary \\b, which constraints do not support"),
        ({"banned_words": "cat"}, "`banned_words` must be a list of words, not 'cat'"),
        ({"banned_words": {"cat"}}, "`banned_words` must be a list"),
        ({"banned_words": ["cat", ""]}, r"`banned_words\[1\]` must be a word, not ''"),
        ({"banned_words": [None]}, r"`banned_words\[0\]` must be a word, not None"),
        ({"banned_words": [" cat"]}, "`banned_words` holds ' cat': leave out the space"),
        ({"banned_strings": "cat"}, "`banned_strings` must be a list of strings, not 'cat'"),
        ({"banned_strings": [""]}, r"`banned_strings\[0\]` must be a string that is not empty, not ''"),
        ({"ignore_case": 1}, "`ignore_case` must be True or False, not 1"),
        ({"allowed_words": ["Cat"], "banned_words": ["cat"], "ignore_case": True}, "'Cat' stands in `allowed_words`"),
        ({"allowed_words": "cat"}, "`allowed_words` must be a list of words"),
        ({"allowed_words": []}, "`allowed_words` must hold at least one word; None allows all"),
        ({"allowed_words": ["New York"]}, "`allowed_words` holds 'New York', which is not one word"),
        ({"allowed_words": ["dogs'"]}, '`allowed_words` holds "dogs\'", which is not one word'),
        ({"allowed_words": ["cat"], "banned_words": ["cat"]}, "'cat' stands in `allowed_words` and in `banned_words`"),
    ],
)
def test_impossible_constraints_are_refused_when_they_are_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Constraints(**arguments)


def test_constraints_are_values():
    assert Constraints("a", ["b", "b"]) == Constraints(regex="a", banned_words=("b",))
    assert hash(Constraints(allowed_words=["a"])) == hash(Constraints(allowed_words=("a",)))
    assert not Constraints() and Constraints("") and Constraints(allowed_words=["a"])
    assert Constraints(banned_strings=["\n"]) and not Constraints(ignore_case=True)
    assert str(Constraints(banned_strings=["a"], ignore_case=True)) == "`banned_strings` 'a' in any case"
    assert str(Constraints("a+", list("bcdef"), ["a"])) == (
        "`regex` 'a+' and `banned_words` 'b', 'c', 'd' and 2 more and `allowed_words` 'a'"
    )


def compiled(tokenizer: Any, constraints: Constraints, **changes: Any) -> Any:
    options = {"vocab_size": len(tokenizer), "forbidden_ids": tokenizer.all_special_ids, **changes}
    return compile_constraints(constraints, tokenizer, [("", [])], **options)[0]


def test_constraints_that_no_text_can_keep_to_are_refused(story_tokenizer):
    with pytest.raises(ValueError, match="No text at all keeps to `regex` 'dog' and `banned_words` 'dog'"):
        compiled(story_tokenizer, Constraints("dog", ["dog"]))
    with pytest.raises(ValueError, match="No text at all keeps to `regex` '日本'.*no token holds"):
        compiled(story_tokenizer, Constraints("日本"))
    with pytest.raises(ValueError, match="more than 20,000 states.*use fewer words or lower counts"):
        compiled(story_tokenizer, Constraints("[ae]*a[ae]{20}|.*"))


def test_a_number_of_tokens_that_cannot_keep_to_them_is_refused(story_tokenizer):
    automaton = compiled(story_tokenizer, Constraints("The dog"))
    with pytest.raises(
        ValueError, match=r"No text of 5 new tokens keeps to `regex` 'The dog'\. Pass `max_new_tokens=2"
    ):
        automaton.require_feasible(torch.zeros(5).long(), torch.ones(5).bool())


def test_a_tokenizer_that_takes_spaces_out_is_refused():
    tokenizer = words_tokenizer("the", "cat", ".")
    tokenizer.clean_up_tokenization_spaces = True
    with pytest.raises(ValueError, match="BertTokenizer.*set its `clean_up_tokenization_spaces` to False"):
        compiled(tokenizer, Constraints("the cat"))


def test_text_that_is_not_put_together_from_its_tokens_is_refused():
    tokenizer = words_tokenizer("the", "cat", ".")
    with pytest.raises(ValueError, match="what token by token is"):
        compiled(tokenizer, Constraints("the cat"), decode=lambda ids: tokenizer.decode(sorted(ids)))


def test_a_forbidden_end_does_not_end_the_text(story_tokenizer):
    automaton = compiled(story_tokenizer, Constraints("The dog"), end_id=story_tokenizer.eos_token_id)
    with pytest.raises(ValueError, match="max_new_tokens=2"):
        automaton.require_feasible(torch.zeros(5).long(), torch.ones(5).bool())
