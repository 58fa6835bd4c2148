"""Tokenizers with RoBERTa's special tokens, trained on one's own text, and the encoding of text typed by users.

Two kinds: a byte-level BPE as RoBERTa has it (every text round-trips), and single characters (a small vocabulary, long
rows). Both are ordinary fast tokenizers of transformers: `save_pretrained` writes them, `AutoTokenizer` loads them.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Their places in this tuple are their ids, as in roberta-base; `<mask>` gets the last id of the vocabulary, as there.
LEADING_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
_NUM_SPECIAL_TOKENS = len(LEADING_SPECIAL_TOKENS) + 1
_NUM_BYTES = 256
_SMALLEST_DEFAULT_VOCABULARY, _LARGEST_DEFAULT_VOCABULARY = 512, 32_768

# A tokenizer keeps some 150 bytes per character while it works (measured, roberta-base). So no more characters than
# this go in at once, whatever the number and the length of the texts.
_CHARACTERS_AT_ONCE = 1_000_000
_PIECE_CHARACTERS = 50_000
_BETWEEN_WORDS = re.compile(r"(?<=[a-zA-Z]) (?=[a-zA-Z])")


def train_bpe(
    texts: Iterable[str], vocab_size: int | None = None, model_max_length: int = 512, show_progress: bool = False
) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE: RoBERTa's tokenizer, with merges of your own.

    All 256 bytes are in the vocabulary, so no text is unknown and every text comes back from its ids. `<mask>` takes
    the space before it with it (`lstrip`), as in the published roberta-base.

    Args:
        texts (`Iterable[str]`): what to train on; read once. Equal texts give equal tokenizers.
        vocab_size (`int`, *optional*): entries, special tokens included; at least 261. Little text may give fewer.
            By default what `vocab_size_for` gives the text.
        model_max_length (`int`): tokens in a row, `<s>` and `</s>` included.
        show_progress (`bool`): draws the progress bars of the tokenizers library.

    Returns:
        `RobertaTokenizerFast` with `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3 and `<mask>` last.

    Raises:
        ValueError: `vocab_size` is below 261, `model_max_length` below 3, there is no text, or a text is no string.

    Source: Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019; special tokens: Liu et al. 2019.
    """
    smallest = _NUM_BYTES + _NUM_SPECIAL_TOKENS
    if vocab_size is not None and vocab_size < smallest:
        raise ValueError(
            f"`vocab_size` must be at least {smallest} (256 bytes and {_NUM_SPECIAL_TOKENS} special tokens), got "
            f"{vocab_size}. Pass a larger one, or train a character tokenizer."
        )
    _check_model_max_length(model_max_length)
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizerFast

    trainee = Tokenizer(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=(vocab_size or _LARGEST_DEFAULT_VOCABULARY) - 1,  # <mask> is added afterwards, to stand last
        min_frequency=2,
        special_tokens=list(LEADING_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    num_bytes = 0

    def counted() -> Iterator[str]:
        nonlocal num_bytes
        for text in _checked_texts(texts):
            num_bytes += len(text.encode())
            yield text

    trainee.train_from_iterator(counted(), trainer)
    model = json.loads(trainee.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    vocab: dict[str, int] = model["vocab"]
    if vocab_size is None:  # each merge is chosen without a look ahead: a small vocabulary is the start of a large one
        num_kept = vocab_size_for(num_bytes) - 1
        made = [vocab["".join(pair)] for pair in merges]
        merges = merges[: made.index(num_kept - 1) + 1] if num_kept - 1 in made else merges
        vocab = {token: index for token, index in vocab.items() if index < num_kept}
    vocab = {**vocab, MASK_TOKEN: len(vocab)}
    mask_token: Any = AddedToken(MASK_TOKEN, lstrip=True, special=True)  # the annotations there are too narrow
    return RobertaTokenizerFast(
        vocab=vocab,
        merges=merges,
        mask_token=mask_token,
        model_max_length=model_max_length,
    )


def vocab_size_for(num_bytes: int) -> int:
    """A vocabulary for a byte-level BPE of so much text: the power of two nearest to the square root of its bytes.

    Between 512 and 32,768. The number of different words of a text grows about with that root (Heaps' law), and a
    token that is hardly ever seen is hardly learned: 1 MB gets 1,024 tokens, 100 MB 8,192, 1 GB and more 32,768.
    """
    exponent = round(math.log2(max(num_bytes, 1)) / 2)
    return min(max(2**exponent, _SMALLEST_DEFAULT_VOCABULARY), _LARGEST_DEFAULT_VOCABULARY)


def train_characters(
    texts: Iterable[str], vocab_size: int | None = None, model_max_length: int = 512
) -> "PreTrainedTokenizerFast":
    """Builds a tokenizer with one token per character (Unicode code point) of `texts`, space and newline included.

    Text of seen characters comes back from its ids unchanged; any other character becomes one `<unk>`. Here `<mask>`
    does *not* take the space before it with it: a space is a token of its own, and it would be lost.

    Args:
        texts (`Iterable[str]`): what to collect characters from; read once. Ids follow the code points.
        vocab_size (`int`, *optional*): entries, special tokens included; the most frequent characters are kept (of
            equally frequent ones, the lower code points). All of them by default.
        model_max_length (`int`): tokens in a row, `<s>` and `</s>` included.

    Returns:
        `PreTrainedTokenizerFast` with `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3 and `<mask>` last.

    Raises:
        ValueError: `vocab_size` is below 6, `model_max_length` below 3, there is no text, or a text is no string.
    """
    if vocab_size is not None and vocab_size <= _NUM_SPECIAL_TOKENS:
        raise ValueError(
            f"`vocab_size` must be at least {_NUM_SPECIAL_TOKENS + 1} (a character and {_NUM_SPECIAL_TOKENS} special "
            f"tokens), got {vocab_size}. Leave it out to keep every character."
        )
    _check_model_max_length(model_max_length)
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    counts: Counter[str] = Counter()
    for text in _checked_texts(texts):
        counts.update(text)
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    characters = sorted(by_frequency if vocab_size is None else by_frequency[: vocab_size - _NUM_SPECIAL_TOKENS])
    vocab = {token: index for index, token in enumerate([*LEADING_SPECIAL_TOKENS, *characters, MASK_TOKEN])}

    # A BPE without merges looks every character up on its own, three times faster than a word-level model would.
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=False, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=AddedToken(MASK_TOKEN, lstrip=False, rstrip=False, normalized=False, special=True),
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of `texts`, with nothing added, and with `<mask>` or `</s>` inside a text taken as plain characters.

    Memory stays bounded however long the texts are: a text above 50,000 characters is encoded in pieces that are cut
    between two words, which gives the same tokens (where it has no such place, one word may be cut in two).

    Args:
        tokenizer: any tokenizer of transformers.
        texts (`Sequence[str]`): any characters but lone surrogates, which no tokenizer takes.

    Returns:
        `list[list[int]]`: one list per text, without special tokens except `<unk>` for what is unknown.

    Raises:
        ValueError: a text is no string or holds a lone surrogate.
    """
    pieces: list[str] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        _check_text(text, index)
        for piece in _cut_between_words(text):
            pieces.append(piece)
            owners.append(index)
    encoded: list[list[list[int]]] = [[] for _ in texts]
    for first, last in _groups_of_bounded_size(pieces):
        batch: Any = tokenizer(
            pieces[first:last],
            add_special_tokens=False,
            split_special_tokens=not _searches_for_tokens(tokenizer),  # a special token's string in the text is text
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about length: the caller cuts
        )
        for owner, ids in zip(owners[first:last], batch["input_ids"], strict=True):
            encoded[owner].append(ids)
    reserved = set(special_token_ids(tokenizer, require_mask=False)) - {tokenizer.unk_token_id}
    return [_without_reserved(list(chain.from_iterable(ids)), reserved, tokenizer) for ids in encoded]


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of one text; see `encode_texts`."""
    return encode_texts(tokenizer, [text])[0]


def count_unknown(tokenizer: "PreTrainedTokenizerBase", text: str, ids: Sequence[int]) -> tuple[int, int | None]:
    """How many of the `ids` that `encode_text` gives for `text` are `<unk>`, and how many UTF-8 bytes they stand for.

    The bytes are None where there are unknown tokens and the tokenizer cannot tell what they stand for (it is no fast
    one).
    """
    unknown = tokenizer.unk_token_id
    count = sum(index == unknown for index in ids)
    if not count:
        return 0, 0
    if not tokenizer.is_fast:
        return count, None
    never = set(special_token_ids(tokenizer, require_mask=False))  # as in `encode_texts`, which makes `<unk>` of them
    num_bytes = 0
    for piece in _cut_between_words(text):
        encoded: Any = tokenizer(
            piece,
            add_special_tokens=False,
            split_special_tokens=not _searches_for_tokens(tokenizer),
            return_offsets_mapping=True,
            verbose=False,
        )
        spans = [
            span for index, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if index in never
        ]
        end = 0
        for first, last in spans:  # several tokens may stand for one character
            num_bytes += len(piece[max(first, end) : last].encode())
            end = max(end, last)
    return count, num_bytes


def decode_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of some token ids, as it would be typed.

    Relations: `tokenizer.decode` puts a space between two amino acids, and leaves the `##` of a WordPiece that would
    go on with a word where it comes first.
    """
    if _searches_for_tokens(tokenizer):
        return "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    from tokenizers import decoders

    text: str = tokenizer.decode(list(ids))
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return text.removeprefix("##") if isinstance(decoder, decoders.WordPiece) else text


def _searches_for_tokens(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether this is a tokenizer (ESM's) that finds every token by the search others find special tokens by.

    Without that search a whole protein is one unknown word. With it, `<mask>` in a text is found too;
    `_without_reserved` makes `<unk>` of it.
    """
    return bool(getattr(tokenizer, "unique_no_split_tokens", None))


def special_token_ids(tokenizer: "PreTrainedTokenizerBase", require_mask: bool = True) -> list[int]:
    """The sorted ids of the special tokens: `<unk>` and `<mask>` included, and those that are kept in reserve.

    Raises:
        ValueError: the tokenizer has no mask token (unless `require_mask` is False).
    """
    if require_mask and tokenizer.mask_token_id is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no mask token: take the tokenizer of a masked language "
            f'model such as FacebookAI/roberta-base, or add one with `tokenizer.add_special_tokens({{"mask_token": '
            f'"<mask>"}})` and resize the embeddings of the model.'
        )
    # `all_special_ids` has those with a role only (start, padding, ...).
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(marked | {index for index in tokenizer.all_special_ids if index is not None})


def boundary_token_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """The ids that open and close a row: `<s>` and `</s>`, or what the tokenizer has instead (`[CLS]` and `[SEP]`).

    Raises:
        ValueError: the tokenizer lacks one of them.
    """
    start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if start is None or end is None:
        missing, roles = (
            ("start", "`cls_token` or `bos_token`") if start is None else ("end", "`eos_token` or `sep_token`")
        )
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no token for the {missing} of a row: set its {roles}."
        )
    return start, end


def _check_model_max_length(model_max_length: int) -> None:
    if model_max_length < 3:
        raise ValueError(f"`model_max_length` must be at least 3 (<s>, one token, </s>), got {model_max_length}.")


def _check_text(text: object, index: int) -> None:
    if not isinstance(text, str):
        raise ValueError(f"`texts` must hold strings; number {index} (from 0) is of type {type(text).__name__}.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`texts`: number {index} (from 0) holds a lone surrogate at character {error.start}, which is half a "
                f"character: decode the source with errors='replace'."
            ) from None


def _checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty, each checked; at least one."""
    if isinstance(texts, str):
        raise ValueError("`texts` must be several texts, not one string: pass a list.")
    found = False
    for index, text in enumerate(texts):
        _check_text(text, index)
        if text:
            found = True
            yield text
    if not found:
        raise ValueError("`texts` must hold at least one text that is not empty.")


def _cut_between_words(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > 2 * _PIECE_CHARACTERS:
        # The space opens the next piece: byte-level BPE keeps it as the first character of the word that follows.
        place = _BETWEEN_WORDS.search(text, start + _PIECE_CHARACTERS, start + 2 * _PIECE_CHARACTERS)
        end = start + 2 * _PIECE_CHARACTERS if place is None else place.start()
        yield text[start:end]
        start = end
    yield text[start:]


def _groups_of_bounded_size(pieces: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) that cover `pieces`, each of few enough characters to encode at once."""
    first, size = 0, 0
    for index, piece in enumerate(pieces):
        if index > first and size + len(piece) > _CHARACTERS_AT_ONCE:
            yield first, index
            first, size = index, 0
        size += len(piece)
    if first < len(pieces):
        yield first, len(pieces)


def _without_reserved(ids: list[int], reserved: set[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Special ids become `<unk>`: a word-level vocabulary finds the word `<mask>` although it was typed as text."""
    if reserved.isdisjoint(ids):
        return ids
    if tokenizer.unk_token_id is None:
        found = tokenizer.convert_ids_to_tokens(next(index for index in ids if index in reserved))
        raise ValueError(
            f"The text holds {found!r}, which this tokenizer ({type(tokenizer).__name__}) can only read as a special "
            f"token: remove it from the text, or set the `unk_token` of the tokenizer."
        )
    return [tokenizer.unk_token_id if index in reserved else index for index in ids]
