"""WordPiece (tokenizer.json or vocab.txt) to GGUF's "bert", which marks the beginnings of words and not their rest."""

from __future__ import annotations

from quant.convert.vocabulary import MAX_TOKENS, TokenizerFiles, Vocabulary
from runtime.tokenizer.vocabulary import TokenType

_SPACE = "\u2581"
_SPECIAL_NAMES = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})


def read_word_piece(files: TokenizerFiles) -> Vocabulary:
    """Read a WordPiece vocabulary; UnsupportedModelError where it keeps capitals or accents."""
    model = files.tokenizer.get("model") or {}
    vocab = model.get("vocab")
    if vocab is None:
        lines = (files.folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        vocab = {line: i for i, line in enumerate(lines)}
    if not isinstance(vocab, dict) or any(
        type(i) is not int or not 0 <= i < MAX_TOKENS for i in vocab.values()
    ):
        raise files.fault("model.vocab must map tokens to ids")
    normalizer = files.tokenizer.get("normalizer") or {}
    lowercase = normalizer.get("lowercase", files.config.get("do_lower_case", True))
    if lowercase is False or normalizer.get("strip_accents") is False:
        raise files.unsupported("a WordPiece vocabulary that keeps capitals or accents is not served")
    n_tokens = max(vocab.values(), default=-1) + 1
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    types = [int(TokenType.UNUSED)] * n_tokens
    added = {text for _, text, special in files.added_tokens() if special} | _SPECIAL_NAMES
    for text, i in vocab.items():
        if text in added:
            tokens[i], types[i] = text, int(TokenType.CONTROL)
        else:
            tokens[i] = text.removeprefix("##") if text.startswith("##") else _SPACE + text
            types[i] = int(TokenType.NORMAL)
    vocabulary = Vocabulary("bert", "default", tokens, types)
    files.set_special(vocabulary)
    _name_ends(vocabulary)
    return vocabulary


def _name_ends(vocabulary: Vocabulary) -> None:
    """GGUF's readers take the class token for BOS and the separator for EOS."""
    names = {text: i for i, text in enumerate(vocabulary.tokens) if text in _SPECIAL_NAMES}
    ids = vocabulary.special_ids
    for key, name in (
        ("cls_token_id", "[CLS]"),
        ("seperator_token_id", "[SEP]"),
        ("unknown_token_id", "[UNK]"),
        ("padding_token_id", "[PAD]"),
        ("mask_token_id", "[MASK]"),
    ):
        if key not in ids and name in names:
            ids[key] = names[name]
    if "cls_token_id" in ids:
        ids["bos_token_id"] = ids["cls_token_id"]
    if "seperator_token_id" in ids:
        ids["eos_token_id"] = ids["seperator_token_id"]
    vocabulary.flags = {}
