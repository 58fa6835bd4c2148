"""Constraints on generated text: a regular expression, words that may not occur, the only words that may.

They say something about characters, the model writes tokens, and in any order. So they become one finite automaton of
characters, that becomes one of tokens, and generation asks it at every step what a masked position may still take. A
constraint then holds in every sample, however the tokenizer cuts words up.

A word reaches over the seam between prefix and new text: after "the ca", a banned "cat" rules out "t on" but not
"the cat" itself, which stands before the new text. See `banned_words` and `allowed_words`.

What is a word is said of the text, as in `re`, never of tokens. One thing is done with tokens on top: one that *is* a
banned word is left out, although gluing something to it ("thelake") would make another word of it. Otherwise a model
that wants to write "the lake" writes just that.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase

from .character_automaton import DEAD, CharacterAutomaton, RegexError, build_automaton, check_regex
from .randomness import make_key, uniform
from .token_automaton import TokenAutomaton, lift_to_tokens

# An apostrophe between two word characters belongs to the word: "don't" is one. `\w` is a letter, digit or underscore.
_WORD = r"\w+(?:['’]\w+)*"
_GAP = r"(?:[^\w'’]|\W\W+)"  # what separates two words
Decode = Callable[[list[int]], str]  # how ids become text

_REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no whole character


@dataclass(frozen=True)
class Constraints:
    r"""What the new text must be like. Several constraints all hold together.

    Args:
        regex (`str`, *optional*): the new text, from its first character to its last, matches it as in `re.fullmatch`.
            It starts right behind the prefix, so mostly with a space. Any expression of `re` without lookaround, `\b`,
            references to groups, possessive repetition and atomic groups; `^` and `$` mean the very start and end.
        banned_words (sequence of `str`): none of them occurs as a whole: with no `\w` of `re` (letter, digit or
            underscore, of any script) right before or behind it. A banned "cat" rules out "(cat)", "cat's" and
            "cat-like", but neither "cats" nor "Cat". It may be more than one word, or have signs ("New York", "C++",
            "!"); where it ends with a sign, whatever stands next to that is all the same. A token that is a banned
            word is not used for parts of other words either, unless there is no other way.
        allowed_words (sequence of `str`, *optional*): every word of the new text is one of them. A word is a maximal
            run of `\w`, and of apostrophes between them ("don't"). What stands between words (spaces, punctuation) is
            free. A word begun in the prefix counts with its beginning.
        banned_strings (sequence of `str`): none of them occurs anywhere: "cat" rules out "cats" and "bobcat" too. In
            scripts without spaces between words this is the one to use.
        ignore_case (`bool`): whether these words and strings stand for all their spellings in capital and small
            letters, as under `re.IGNORECASE`. By default case counts.

    Raises:
        ValueError: at construction, if a value is impossible.

    >>> bool(Constraints(banned_words=["cat"])), bool(Constraints())
    (True, False)
    """

    regex: str | None = None
    banned_words: Sequence[str] = ()
    allowed_words: Sequence[str] | None = None
    banned_strings: Sequence[str] = ()
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if self.regex is not None:
            if not isinstance(self.regex, str):
                raise ValueError(f"`regex` must be a string, not {type(self.regex).__name__}.")
            try:
                check_regex(self.regex)
            except RegexError as error:
                raise ValueError(f"`regex` is {self.regex!r}, but {error}.") from None
        if not isinstance(self.ignore_case, bool):
            raise ValueError(f"`ignore_case` must be True or False, not {self.ignore_case!r}.")
        object.__setattr__(self, "banned_strings", _checked_words("banned_strings", self.banned_strings, blank=True))
        object.__setattr__(self, "banned_words", _checked_words("banned_words", self.banned_words))
        for word in self.banned_words:
            if word != word.strip():
                raise ValueError(f"`banned_words` holds {word!r}: leave out the space around the word.")
        if self.allowed_words is None:
            return
        object.__setattr__(self, "allowed_words", _checked_words("allowed_words", self.allowed_words))
        if not self.allowed_words:
            raise ValueError("`allowed_words` must hold at least one word; None allows all.")
        for word in self.allowed_words:
            if not re.fullmatch(_WORD, word):
                raise ValueError(f"`allowed_words` holds {word!r}, which is not one word: pass each word on its own.")
        banned = re.compile(_any_of(self.banned_words, self.ignore_case))
        both = [word for word in self.allowed_words if banned.fullmatch(word)]
        if both:
            raise ValueError(
                f"{both[0]!r} stands in `allowed_words` and in `banned_words`: take it out of one of them."
            )

    def __bool__(self) -> bool:
        """Whether there is any constraint."""
        banned = bool(self.banned_words) or bool(self.banned_strings)
        return self.regex is not None or banned or self.allowed_words is not None

    def __str__(self) -> str:
        parts = [] if self.regex is None else [f"`regex` {self.regex!r}"]
        lists = {
            "banned_words": self.banned_words,
            "allowed_words": self.allowed_words or (),
            "banned_strings": self.banned_strings,
        }
        for name, words in lists.items():
            if words:
                more = f" and {len(words) - 3} more" if len(words) > 3 else ""
                case = " in any case" if self.ignore_case else ""
                parts.append(f"`{name}` {', '.join(map(repr, words[:3]))}{more}{case}")
        return " and ".join(parts) or "no constraint"

    def languages(self, prefix: str) -> tuple[tuple[str, bool], ...]:
        """The constraints on the text behind `prefix`, as regular expressions that it must, or must not, match."""
        found = [] if self.regex is None else [(self.regex, True)]
        if self.banned_words:
            found.append((_that_hold(self.banned_words, prefix, self.ignore_case, as_a_whole=True), False))
        if self.banned_strings:
            found.append((_that_hold(self.banned_strings, prefix, self.ignore_case, as_a_whole=False), False))
        if self.allowed_words is not None:
            found.append((_of_allowed_words(self.allowed_words, prefix, self.ignore_case), True))
        return tuple(found)


def _checked_words(argument: str, words: Sequence[str], blank: bool = False) -> tuple[str, ...]:
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise ValueError(f"`{argument}` must be a list of {'strings' if blank else 'words'}, not {words!r}.")
    for place, word in enumerate(words):
        if not isinstance(word, str) or not (word if blank else word.strip()):
            kind = "string that is not empty" if blank else "word"
            raise ValueError(f"`{argument}[{place}]` must be a {kind}, not {word!r}.")
    return tuple(dict.fromkeys(words))


def _is_same(text: str, other: str, ignore_case: bool) -> bool:
    """Whether two texts are the same, as `re` sees it."""
    if not ignore_case:
        return text == other
    return len(text) == len(other) and all(map(_is_same_letter, text, other))


@lru_cache(maxsize=10_000)
def _is_same_letter(letter: str, other: str) -> bool:
    return re.fullmatch(re.escape(other), letter, re.IGNORECASE) is not None


def _any_of(words: Iterable[str], ignore_case: bool) -> str:
    """One of `words`, the empty one included; what nothing matches, if there are none."""
    escaped = list(map(re.escape, words))
    return f"(?{'i' if ignore_case else ''}:{'|'.join(escaped)})" if escaped else r"[^\s\S]"


def _is_inside_a_word(character: str) -> bool:
    return re.fullmatch(r"\w", character) is not None


def _that_hold(words: Sequence[str], prefix: str, ignore_case: bool, as_a_whole: bool) -> str:
    """The texts that hold, behind `prefix`, one of `words` or the rest of one that `prefix` begins."""
    groups: dict[tuple[bool, bool], list[str]] = {}  # by the sides on which a word must not go on
    for word in words:
        borders = as_a_whole and _is_inside_a_word(word[0]), as_a_whole and _is_inside_a_word(word[-1])
        groups.setdefault(borders, []).append(word)
    found = []
    for (left, right), group in groups.items():
        rests = [
            word[cut:]
            for word in group
            for cut in range(1, min(len(word), len(prefix) + 1))
            if _is_same(prefix[-cut:], word[:cut], ignore_case)
            and not (left and _is_inside_a_word(prefix[:-cut][-1:]))
        ]
        anything = "(?s:.*)"
        border = r"(?s:.*\W)" if _is_inside_a_word(prefix[-1:]) else r"(?s:.*\W)?"
        whole = (border if left else anything) + _any_of(group, ignore_case)
        after = r"(?:\W(?s:.*))?" if right else anything
        found.append(f"(?:{whole}|{_any_of(rests, ignore_case)}){after}")
    return "|".join(found)


def _of_allowed_words(words: Sequence[str], prefix: str, ignore_case: bool) -> str:
    """The texts behind `prefix` whose words are all allowed."""
    word = _any_of(words, ignore_case)
    tail = prefix[-max(map(len, words)) - 2 :]  # a longer beginning of a word is as bad as this much of it
    begun = re.search(rf"({_WORD})(['’]?)\Z", tail)
    first = [rf"\W*{word}"]
    if begun:
        # A word has begun. It may go on to be an allowed one, or be over: then a gap comes before the next word.
        length = len(begun[0])
        rests = [other[length:] for other in words if _is_same(begun[0], other[:length], ignore_case)]
        first = [_any_of(rests, ignore_case), rf"\W+{word}" if begun[2] else rf"{_GAP}{word}"]
    return rf"(?:{'|'.join(first)})?(?:{_GAP}{word})*\W*"


def compile_constraints(
    constraints: Constraints,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[tuple[str, Sequence[int]]],
    *,
    vocab_size: int,
    forbidden_ids: Sequence[int],
    end_id: int | None = None,
    decode: Decode | None = None,
    num_new: Sequence[int] | None = None,
) -> list[TokenAutomaton]:
    """One automaton for each prefix, for its new tokens. Equal ones are made once.

    Tokens that hold no whole characters (single bytes of a byte-level BPE) are never generated under constraints, so
    characters that the tokenizer spells with several tokens, such as rare emoji, cannot be written. Tokens that
    hold a whole banned word are left out too, unless nothing can be written without them.

    Args:
        constraints (`Constraints`): what the new text, as `completion_text` gives it, must be like.
        tokenizer: of the model.
        prefixes: each prefix as text, byte for byte as it stands before the new text, and as token ids, without the
            start token.
        vocab_size (`int`): columns of the logits.
        forbidden_ids (sequence of `int`): ids never generated.
        end_id (`int`, *optional*): `</s>`, if the model writes it to end a text. The text before it is constrained.
        decode (`Callable`, *optional*): how the ids become the text that users see; by default `tokenizer.decode`.
        num_new (sequence of `int`, *optional*): how many tokens are to follow each prefix; by default any number.

    Raises:
        ValueError: no text at all keeps to the constraints, they need too large an automaton, or the tokenizer joins
            tokens in a way that depends on their neighbours.
    """
    decode = tokenizer.decode if decode is None else decode
    pieces, first_pieces = _pieces_of_tokens(tokenizer, decode, vocab_size)
    end_id = None if end_id in forbidden_ids else end_id
    for token in [*forbidden_ids, *([] if end_id is None else [end_id])]:
        if 0 <= token < vocab_size:
            pieces[token] = first_pieces[token] = None
    alphabet = set().union(*filter(None, pieces), *filter(None, first_pieces))
    banned = _tokens_of_banned_words(constraints, tokenizer, pieces)
    without = [None if token in banned else piece for token, piece in enumerate(pieces)]
    characters: dict[tuple[tuple[str, bool], ...], CharacterAutomaton] = {}
    automata: dict[object, TokenAutomaton] = {}
    found = []
    for place, (prefix, prefix_ids) in enumerate(prefixes):
        languages = constraints.languages(prefix)
        ids, space_is_dropped = list(prefix_ids), _drops_a_space(decode, prefix, prefix_ids)
        first = pieces if ids else first_pieces
        if space_is_dropped:
            first = [piece and piece.removeprefix(" ") for piece in first]
        _check_pieces(tokenizer, decode, prefix, ids, pieces, first)
        if languages not in characters:
            characters[languages] = _checked_automaton(constraints, languages, alphabet)
        key = languages, bool(ids), space_is_dropped
        for inside in [without, pieces] if banned else [pieces]:
            if (key, inside is pieces) not in automata:
                beginning = [piece and first[token] for token, piece in enumerate(inside)]
                lifted = lift_to_tokens(characters[languages], inside, beginning, end_id, str(constraints))
                automata[key, inside is pieces] = lifted
            automaton = automata[key, inside is pieces]
            if automaton.can_be_filled(None if num_new is None else num_new[place]):
                break
        found.append(automaton)
    return found


def completion_text(decode: Decode, prefix: str, prefix_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text of `new_ids` as it stands behind `prefix`, whose ids are `prefix_ids`, without the start token.

    Decoded together with the prefix, so that spaces come out right. The space that a prefix ends with, where the
    tokenizer leaves it to the next word, is not repeated.
    """
    before, whole = decode(list(prefix_ids)), decode([*prefix_ids, *new_ids])
    completion = whole[len(before) :] if whole.startswith(before) else decode(list(new_ids))
    return completion.removeprefix(" ") if _drops_a_space(decode, prefix, prefix_ids) else completion


def _drops_a_space(decode: Decode, prefix: str, prefix_ids: Sequence[int]) -> bool:
    return prefix.endswith(" ") and not decode(list(prefix_ids)).endswith(" ")


def _checked_automaton(
    constraints: Constraints, languages: tuple[tuple[str, bool], ...], alphabet: set[str]
) -> CharacterAutomaton:
    try:
        automaton = build_automaton(languages, alphabet)
    except RegexError as error:
        raise ValueError(f"The constraints are {constraints}, but {error}: use fewer words or lower counts.") from None
    if automaton.start == DEAD:
        raise ValueError(
            f"No text at all keeps to {constraints}. Loosen the constraints: they contradict one another, or need "
            f"characters that no token holds."
        )
    return automaton


def _pieces_of_tokens(
    tokenizer: PreTrainedTokenizerBase, decode: Decode, vocab_size: int
) -> tuple[list[str | None], list[str | None]]:
    """What each token adds to a text behind others, and at its very start; None for what is no whole text.

    Found by decoding, since vocabularies write the space in three ways (Ġ, ▁ and the lack of ##).
    """
    known = min(len(tokenizer), vocab_size)
    alone = [decode([token]) for token in range(known)]
    special = set(tokenizer.all_special_ids)
    candidates = (token for token in range(known) if token not in special and alone[token].strip().isalnum())
    anchor = next(candidates, None)
    if anchor is None:
        raise ValueError(f"The tokenizer ({type(tokenizer).__name__}) has no token with a letter to constrain.")
    pairs = [decode([anchor, token]) for token in range(known)]
    beyond: list[str | None] = [None] * (vocab_size - known)
    pieces = [pair.removeprefix(alone[anchor]) if pair.startswith(alone[anchor]) else "" for pair in pairs]
    inside = [piece if piece and _REPLACEMENT not in piece else None for piece in pieces]
    first = [text if piece and _REPLACEMENT not in text else None for piece, text in zip(inside, alone, strict=True)]
    return inside + beyond, first + beyond


def _tokens_of_banned_words(
    constraints: Constraints, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str | None]
) -> set[int]:
    """Tokens that hold a banned word as a whole: they could stand in the text only with something glued to it.

    A token that begins with the word, without a space, is what other words are made of ("in" of "rain") and stays,
    unless all tokens of the vocabulary are whole words, or it has a capital, as "Give" behind a quotation mark.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    of_words = type(model).__name__ == "WordLevel" and any(len(piece) > 2 for piece in pieces if piece)
    banned = re.compile(rf"(?<!\w){_any_of(constraints.banned_words, constraints.ignore_case)}(?!\w)")

    def is_a_word(found: re.Match[str]) -> bool:
        return found.start() > 0 or of_words or (len(found[0]) > 1 and found[0][0].isupper())

    return {token for token, piece in enumerate(pieces) if piece and any(map(is_a_word, banned.finditer(piece)))}


def _check_pieces(
    tokenizer: PreTrainedTokenizerBase,
    decode: Decode,
    prefix: str,
    prefix_ids: list[int],
    pieces: Sequence[str | None],
    first_pieces: Sequence[str | None],
) -> None:
    """Raises `ValueError` unless texts of a few random tokens are what their pieces say."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) and type(model).__name__ != "BPE":  # there it is moot
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) takes spaces out of decoded text, which constraints cannot "
            f"follow: set its `clean_up_tokenization_spaces` to False."
        )
    usable = [token for token, piece in enumerate(pieces) if piece is not None and first_pieces[token] is not None]
    if not usable:
        return
    samples = (uniform(torch.tensor(make_key("constraints")), 32 * 6).view(32, 6) * len(usable)).long()
    for sample in samples.tolist():
        first, *others = [usable[place] for place in sample]
        expected = "".join([first_pieces[first] or "", *(pieces[token] or "" for token in others)])
        text = completion_text(decode, prefix, prefix_ids, [first, *others])
        if text != expected:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}) decodes to {text!r} what token by token is {expected!r}: "
                f"constraints need tokens that read the same whatever stands beside them."
            )
