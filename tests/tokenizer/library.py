"""The `tokenizers` library set up from a file's metadata: an independent opinion of what a text's tokens are.

Only what the library can say: nothing of special tokens, and SentencePiece's merges only where no two tokens of one score
compete.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS
from runtime.tokenizer.vocabulary import TokenType

SPACE = "\u2581"


def word_cutter(pre) -> pre_tokenizers.PreTokenizer:
    """Cut into words by the same regexes."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(regex), "isolated") for regex in pre.regexes]
    )


def cut_words(cutter, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


class LibraryTokenizer:
    """encode(text) as build_tokenizer(file).encode(text, add_special=False) should be."""

    def __init__(self, file) -> None:
        self.kind = file.string("tokenizer.ggml.model")
        self.tokens = file.strings("tokenizer.ggml.tokens")
        types = (
            file.integers("tokenizer.ggml.token_type")
            if "tokenizer.ggml.token_type" in file
            else [TokenType.NORMAL] * len(self.tokens)
        )
        self.types = types
        self.user_defined = {
            text for text, kind in zip(self.tokens, types, strict=True) if kind == TokenType.USER_DEFINED
        }
        texts = {
            text: i
            for i, (text, kind) in enumerate(zip(self.tokens, types, strict=True))
            if kind != TokenType.CONTROL and text
        }
        self.merger = getattr(self, f"_{self.kind}")(file, texts)

    def encode(self, text: str) -> list[int]:
        if self.kind == "llama" and text:
            text = SPACE + text.replace(" ", SPACE)
        return self.merger.encode(text, add_special_tokens=False).ids

    def _gpt2(self, file, texts) -> tokenizers.Tokenizer:
        pre = PRE_TOKENIZERS[file.string("tokenizer.ggml.pre", "default")]
        pairs: Any = [tuple(merge.split(" ", 1)) for merge in file.strings("tokenizer.ggml.merges")]
        merger = tokenizers.Tokenizer(models.BPE(vocab=texts, merges=pairs, ignore_merges=pre.ignore_merges))
        merger.pre_tokenizer = pre_tokenizers.Sequence(
            [word_cutter(pre), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        return merger

    def _llama(self, file, texts) -> tokenizers.Tokenizer:
        scores = file.numbers("tokenizer.ggml.scores")
        ranked = sorted(
            (-scores[i], texts[text[:cut]], texts[text[cut:]], text[:cut], text[cut:])
            for text, i in texts.items()
            if self.types[i] != TokenType.BYTE
            for cut in range(1, len(text))
            if text[:cut] in texts and text[cut:] in texts
        )
        merges: Any = [(left, right) for *_, left, right in ranked]
        return tokenizers.Tokenizer(models.BPE(vocab=texts, merges=merges, byte_fallback=True))

    def _t5(self, file, texts) -> tokenizers.Tokenizer:
        del texts
        scores = file.numbers("tokenizer.ggml.scores")
        usable = (TokenType.NORMAL, TokenType.USER_DEFINED)
        # Ids are places in the list: what text never gives stays in it under a text that no input has.
        pieces: Any = [
            (text if kind in usable and text else f"\0{i}", score)
            for i, (text, kind, score) in enumerate(zip(self.tokens, self.types, scores, strict=True))
        ]
        merger = tokenizers.Tokenizer(
            models.Unigram(pieces, self.types.index(TokenType.UNKNOWN), byte_fallback=False)
        )
        merger.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
        return merger

    def _bert(self, file, texts) -> tokenizers.Tokenizer:
        unk_id = file.integer("tokenizer.ggml.unknown_token_id")
        vocab = {
            text[1:] if text.startswith(SPACE) else "##" + text: i
            for text, i in texts.items()
            if text != SPACE
        }
        vocab[self.tokens[unk_id]] = unk_id
        merger = tokenizers.Tokenizer(
            models.WordPiece(vocab=vocab, unk_token=self.tokens[unk_id], max_input_chars_per_word=1 << 20)
        )
        merger.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
        merger.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return merger
