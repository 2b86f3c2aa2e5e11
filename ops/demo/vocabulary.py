"""The tokenizer: trained from scratch, read back from a GGUF file, or given more words without changing the old ones."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import gguf
from chat import CALL, CALL_END, END_OF_TEXT, IM_END, IM_START, QWEN2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = (END_OF_TEXT, IM_START, IM_END)
MARKS = (CALL, CALL_END)  # read as one token wherever they stand, and written as text
RARE = 40  # a word that the new texts have less often earns no token

Pair = tuple[str, str]


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make(tokens: Sequence[str], merges: Sequence[Pair]) -> Tokenizer:
    """Return the tokenizer of these tokens (by id) and merges (by rank)."""
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in MARKS if t in tokens])
    return tokenizer


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of `size` tokens; control tokens and marks come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*CONTROL, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return make(*parts(tokenizer))


def parts(tokenizer: Tokenizer) -> tuple[list[str], list[Pair]]:
    """Return the tokens by id and the merges by rank."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [t for t, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    return tokens, [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]  # type: ignore[misc]


def of_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describes."""
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    return make(metadata["tokenizer.ggml.tokens"], merges)


def token_types(tokens: Sequence[str]) -> list[gguf.TokenType]:
    """Return GGUF's type of each token."""
    special = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL) | dict.fromkeys(
        MARKS, gguf.TokenType.USER_DEFINED
    )
    return [special.get(t, gguf.TokenType.NORMAL) for t in tokens]


def extend(tokenizer: Tokenizer, new: Iterable[str], old: Iterable[str], size: int) -> Tokenizer:
    """Return a tokenizer of `size` tokens with the marks and with merges learned from `new`.

    The merges come after all others and join no pair that `old` has, so the old texts keep their tokens.
    """
    tokens, merges = parts(tokenizer)
    tokens += [t for t in MARKS if t not in tokens]
    base = make(tokens, merges)
    marks = re.compile("|".join(map(re.escape, (*CONTROL, *MARKS))))

    def words(texts: Iterable[str]) -> Counter[tuple[str, ...]]:
        counted: Counter[str] = Counter()
        for text in texts:
            for part in marks.split(text):
                counted.update(word for word, _ in base.pre_tokenizer.pre_tokenize_str(part))
        model = base.model
        return Counter({tuple(t.value for t in model.tokenize(word)): n for word, n in counted.items()})

    kept = {pair for word in words(old) for pair in itertools.pairwise(word)}
    counts = {word: n for word, n in words(new).items() if n >= RARE}
    while len(tokens) < size:
        pairs: Counter[Pair] = Counter()
        for word, n in counts.items():
            for pair in itertools.pairwise(word):
                if pair not in kept and "".join(pair) not in tokens:
                    pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        counts = {_joined(word, best): n for word, n in counts.items()}
    return make(tokens, merges)


def _joined(word: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)
