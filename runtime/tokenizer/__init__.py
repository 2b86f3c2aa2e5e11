"""Tokenizers built from a GGUF file's own metadata; the native core (runtime/native/tokenizer) does the work."""

from runtime.tokenizer.build import build_tokenizer
from runtime.tokenizer.tokenizer import MAX_TEXT_BYTES, Tokenizer

__all__ = ["MAX_TEXT_BYTES", "Tokenizer", "build_tokenizer"]
