"""A word-level tokenizer for the stories, with RoBERTa's special tokens and one token per word or mark."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .automaton import BOS_ID, EOS_ID, SPECIAL_TOKENS
from .language import AUTOMATON


def tokenizer() -> PreTrainedTokenizerFast:
    """The story tokenizer: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` 4, then the words, sorted.

    Decoding with `skip_special_tokens=True` gives back a story byte for byte; other words become `<unk>`.
    """
    bos, pad, eos, unk, mask = SPECIAL_TOKENS
    vocabulary = {token.replace(" ", "Ġ"): index for index, token in enumerate(AUTOMATON.vocabulary)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B:0 {eos}:0",
        special_tokens=[(bos, BOS_ID), (eos, EOS_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        pad_token=pad,
        cls_token=bos,
        sep_token=eos,
        mask_token=AddedToken(mask, lstrip=True, special=True, normalized=False),
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
