"""From a file's metadata to a tokenizer: which native form each kind of vocabulary takes."""

from __future__ import annotations

import logging

from runtime._native import Tokenizer as NativeTokenizer
from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from runtime.tokenizer.tokenizer import Normalizer, Tokenizer
from runtime.tokenizer.vocabulary import Head, read_head, read_vocabulary

_LOG = logging.getLogger(__name__)


def build_tokenizer(file: ModelFile) -> Tokenizer:
    """The tokenizer that `file`'s metadata describes; needs no tensors.

    A pre-tokenizer that is not known is replaced by the default one, with a warning here and in `Tokenizer.warnings`.
    Raises ModelFormatError that names the key, UnsupportedModelError for a kind that is not served.
    """
    head = read_head(file)
    warnings: list[str] = []
    pre = _pre_tokenizer(head, warnings) if head.kind in ("gpt2", "gemma4") else None
    native = _build_native(file, head, pre)
    vocabulary = read_vocabulary(file, head, native)
    if pre is not None and native.num_byte_tokens < 256 and head.unk_id is None:
        warnings.append(
            f"the vocabulary has tokens for {native.num_byte_tokens} of the 256 bytes and no unknown token: characters that "
            "need the others are left out of prompts"
        )
    for warning in warnings:
        _LOG.warning("%s: %s", file.path, warning)
    add_bos, add_eos = vocabulary.add_bos, vocabulary.add_eos
    defaults = (pre.add_bos, pre.add_sep) if pre is not None else _ADDED_TOKENS[head.kind]
    return Tokenizer(
        vocabulary,
        native,
        add_bos=(defaults[0] if add_bos is None else add_bos) or (pre is not None and pre.forces_bos),
        add_eos=defaults[1] if add_eos is None else add_eos,
        warnings=tuple(warnings),
        normalizer=_read_normalizer(file) if head.kind == "bert" else None,
    )


# Whether a text begins and ends with a token of its own where the file does not say; the separator is bert's end.
_ADDED_TOKENS = {"llama": (True, False), "t5": (False, True), "bert": (True, True)}


def _pre_tokenizer(head: Head, warnings: list[str]) -> PreTokenizer:
    pre = PRE_TOKENIZERS.get(head.pre)
    if pre is not None:
        return pre
    warnings.append(
        f"tokenizer.ggml.pre is {head.pre[:64]!r}, which is not known: text is cut as by 'default', and answers may be "
        "worse than the model's; convert the model again, or use one that names a known pre-tokenizer"
    )
    return PRE_TOKENIZERS["default"]


def _build_native(file: ModelFile, head: Head, pre: PreTokenizer | None) -> NativeTokenizer:
    metadata = file.shards[0]
    unk_id = -1 if head.unk_id is None else head.unk_id
    try:
        if pre is not None:
            return NativeTokenizer(
                metadata,
                kind="bpe",
                byte_level=pre.byte_level,
                ignore_merges=pre.ignore_merges,
                space_prefix=head.add_space_prefix and not pre.byte_level,
                unk_id=unk_id,
                patterns=list(pre.regexes),
            )
        if head.kind == "t5":
            return NativeTokenizer(
                metadata,
                kind="unigram",
                space_prefix=head.add_space_prefix,
                squeeze_spaces=file.boolean("tokenizer.ggml.remove_extra_whitespaces", False),
                unk_id=unk_id,
            )
        if head.kind == "llama":
            return NativeTokenizer(
                metadata, kind="sentencepiece", space_prefix=head.add_space_prefix, unk_id=unk_id
            )
        return NativeTokenizer(metadata, kind="word_piece", unk_id=unk_id)
    except ModelFormatError as error:
        raise ModelFormatError(
            error.code, error.where, error.offset, f"{file.path}: {error.message}"
        ) from None


def _read_normalizer(file: ModelFile) -> Normalizer:
    lowercase = file.boolean("tokenizer.ggml.normalizer.lowercase", True)
    return Normalizer(
        lowercase=lowercase,
        strip_accents=file.boolean("tokenizer.ggml.normalizer.strip_accents", lowercase),
    )
