"""Which kind of tokenizer a folder has, and its reader."""

from __future__ import annotations

from pathlib import Path

from quant.convert.byte_level import read_byte_level
from quant.convert.sentencepiece import read_fast, read_model_proto
from quant.convert.vocabulary import TokenizerFiles, Vocabulary
from quant.convert.word_piece import read_word_piece


def read_tokenizer(folder: Path) -> Vocabulary:
    """Read tokenizer.model or tokenizer.json with everything beside it.

    Raises UnsupportedModelError naming a kind or pre-tokenizer that is not known, ModelFormatError, OSError.
    """
    files = TokenizerFiles(folder)
    try:
        return _read(files, folder)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # The files nest deep and in many forms; whatever is not of the expected one ends here.
        raise files.fault(f"a field has another form than is known ({str(error)[:120]})") from error


def _read(files: TokenizerFiles, folder: Path) -> Vocabulary:
    model = files.tokenizer.get("model")
    kind = (model.get("type") or "BPE") if isinstance(model, dict) else ""
    has_bytes = isinstance(model, dict) and bool(model.get("byte_fallback"))
    proto = folder / "tokenizer.model"
    if proto.is_file() and (not kind or has_bytes or kind == "Unigram"):
        return read_model_proto(files, proto)
    if kind == "BPE":
        return read_fast(files) if has_bytes else read_byte_level(files)
    if kind == "WordPiece" or (not kind and (folder / "vocab.txt").is_file()):
        return read_word_piece(files)
    if kind:
        raise files.unsupported(
            f"a {kind} model is not converted; quantd converts BPE, SentencePiece BPE and WordPiece"
        )
    raise files.unsupported("neither tokenizer.json nor tokenizer.model is there")
