"""A tiny encoder with random weights, for real daemons and real clients."""

from pathlib import Path

from tests.models.support import Tiny, write_tiny

WORDS = ["a", "fox", "and", "dog", "ran", "far", "##s", "home", "the", "sun", "red", "sea", "saw", "now"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def write_encoder(path: Path) -> Path:
    """A bert of two layers and 20 words that takes texts of 32 tokens."""
    tokens = [
        text[2:] if text.startswith("##") else text if text[0] == "[" else f"\u2581{text}" for text in TOKENS
    ]
    # Tiny's keys are those of the architecture; the tokenizer's are written as they are.
    return write_tiny(path, Tiny(arch="bert", context=32, n_vocab=len(tokens), tokenizer=vocabulary(tokens)))


def vocabulary(tokens):
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * len(WORDS),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }
