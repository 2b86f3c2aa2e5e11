"""Byte-level BPE (tokenizer.json) to GGUF's "gpt2": tokens, merges, and the name of the pre-tokenizer."""

from __future__ import annotations

from typing import Any

from quant.convert.vocabulary import MAX_TOKENS, TokenizerFiles, Vocabulary, looks_special
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS
from runtime.tokenizer.vocabulary import TokenType

_GPT2_REGEX = PRE_TOKENIZERS["gpt-2"].regexes[0]
# The name that the best-known model of a family carries; others of the family read the same.
_PREFERRED = (
    *("llama-bpe", "qwen2", "gpt-2", "smollm", "dbrx", "tekken", "gpt-4o"),
    *("deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon"),
)
# Other ways to write the same choice.
_SPELLINGS = (
    ("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("[\\r\\n/]", "[\\r\\n\\/]"),
    (r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"\p{L}(?:[\p{L}\p{M}]| \p{L})*+"),
)


def read_byte_level(files: TokenizerFiles) -> Vocabulary:
    """Read a byte-level BPE vocabulary.

    Raises UnsupportedModelError for a pre-tokenizer or normalizer that is not known, ModelFormatError.
    """
    model = files.tokenizer["model"]
    _check_normalizer(files)
    tokens, types = _read_tokens(files, model.get("vocab"))
    vocabulary = Vocabulary(
        "gpt2",
        identify_pre_tokenizer(files, ignore_merges=bool(model.get("ignore_merges"))),
        tokens,
        types,
        merges=_read_merges(files, model.get("merges")),
    )
    files.set_special(vocabulary)
    return vocabulary


def _check_normalizer(files: TokenizerFiles) -> None:
    normalizer = files.tokenizer.get("normalizer") or {}
    for step in normalizer.get("normalizers") or [normalizer]:
        # NFC changes nothing in text that is composed already, as nearly all is; every reader of GGUF leaves it out.
        if step and step.get("type") != "NFC":
            raise files.unsupported(f"the normalizer {step.get('type')} has no counterpart in GGUF")


def _read_tokens(files: TokenizerFiles, vocab: Any) -> tuple[list[str], list[int]]:
    """Return the tokens by id and their types; ids that no token has are UNUSED."""
    if not isinstance(vocab, dict) or not vocab:
        raise files.fault("model.vocab must map tokens to ids")
    added = files.added_tokens()
    if any(type(i) is not int or not 0 <= i < MAX_TOKENS for i in vocab.values()):
        raise files.fault(f"an id of model.vocab is no integer from 0 to {MAX_TOKENS - 1}")
    n_tokens = max(*vocab.values(), added[-1][0] if added else 0) + 1
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    types = [int(TokenType.UNUSED)] * n_tokens
    for text, i in vocab.items():
        tokens[i], types[i] = text, int(TokenType.NORMAL)
    for i, text, special in added:
        control = special or looks_special(text)
        tokens[i], types[i] = text, int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    return tokens, types


def _read_merges(files: TokenizerFiles, merges: Any) -> list[str]:
    """Return merges as two tokens with a space between; newer files have pairs."""
    if not isinstance(merges, list):
        raise files.fault("model.merges must be a list")
    lines = [" ".join(merge) if isinstance(merge, list) and len(merge) == 2 else merge for merge in merges]
    # A token of this kind holds no space: it is written U+0120.
    if not all(isinstance(line, str) and line.count(" ") == 1 for line in lines):
        raise files.fault("an entry of model.merges is not a pair of tokens")
    return lines


def identify_pre_tokenizer(files: TokenizerFiles, *, ignore_merges: bool) -> str:
    """Return GGUF's name of how the text is cut into words, by comparing the regular expressions.

    Raises UnsupportedModelError that shows them for a pre-tokenizer that is not known.
    """
    regexes = tuple(map(_spelled, _regexes(files, files.tokenizer.get("pre_tokenizer"))))
    names = [
        name
        for name, pre in PRE_TOKENIZERS.items()
        if pre.byte_level and tuple(map(_spelled, pre.regexes)) == regexes
    ]
    names.sort(key=lambda name: (PRE_TOKENIZERS[name].ignore_merges != ignore_merges, _rank(name)))
    if not names:
        shown = " then ".join(regexes) or "none"
        raise files.unsupported(
            f"the pre-tokenizer is not known; it cuts by {shown[:400]!r}; quantd knows {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return names[0]


def _rank(name: str) -> int:
    return _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)


def _spelled(regex: str) -> str:
    for other, ours in _SPELLINGS:
        if other in regex:
            regex = regex.replace(other, ours)
            break
    # gpt-2's last alternatives differ only in what is left for the end of a text.
    return regex.replace(r"[\r\n\/]", "[\\r\\n/]").removesuffix(r"|\s+(?!\S)|\s+").removesuffix(r"|\s+(?!\S)")


def _regexes(files: TokenizerFiles, step: Any) -> list[str]:
    """Return the regular expressions of a pre-tokenizer, one for each cut."""
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        return [regex for part in step.get("pretokenizers") or [] for regex in _regexes(files, part)]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise files.unsupported(
                "the pre-tokenizer puts a space before each text, which GGUF's gpt2 cannot say"
            )
        return [_GPT2_REGEX] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "Split":
        pattern, behavior = step.get("pattern") or {}, step.get("behavior")
        whole = behavior == "Isolated" or (behavior == "Removed" and step.get("invert"))
        if isinstance(pattern.get("Regex"), str) and whole:
            return [pattern["Regex"]]
        raise files.unsupported(
            f"the pre-tokenizer splits by {str(pattern)[:200]} with {behavior}, which is not known"
        )
    raise files.unsupported(f"the pre-tokenizer {kind} is not known")
