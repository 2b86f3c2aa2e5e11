"""A byte tokenizer with a few longer tokens and control tokens, as a grammar compiler needs one."""

import re
from types import SimpleNamespace

WORDS = [b'{"', b'": "', b'", "', b"name", b"hello", b"true", b"<tool_call>", b"</think>\n\n{"]
CONTROL = ["<|end|>", "<|tool_call|>", "<think>"]


class ByteTokenizer:
    """Tokens 0 to 255 are bytes, then WORDS, then CONTROL; "<|end|>" ends an answer."""

    def __init__(self):
        self._bytes = [bytes((i,)) for i in range(256)] + WORDS + [b""] * len(CONTROL)
        self.n_vocab = len(self._bytes)
        self.end_id = 256 + len(WORDS)
        self.tool_id, self.think_id = self.end_id + 1, self.end_id + 2
        self.eog_ids = frozenset((self.end_id,))
        self.bos_id = None
        names = [chr(i) for i in range(256)] + [w.decode() for w in WORDS] + CONTROL
        self.vocabulary = SimpleNamespace(tokens=names)
        self._ids = {w.decode(): 256 + i for i, w in enumerate(WORDS)}
        self._words = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    def token_bytes(self, token_id):
        return self._bytes[token_id] if 0 <= token_id < self.n_vocab else b""

    def all_token_bytes(self):
        return list(self._bytes)

    def encode_continuation(self, text):
        ids, done = [], 0
        for word in self._words.finditer(text):
            ids += [*text[done : word.start()].encode(), self._ids[word.group()]]
            done = word.end()
        return [*ids, *text[done:].encode()]

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode()


def allowed(constraint):
    """Ids that the mask allows; None: all."""
    mask = constraint.mask()
    return None if mask is None else [i for i in range(32 * len(mask)) if mask[i // 32] >> (i % 32) & 1]


def walk(constraint, choose, end_id, limit=2000):
    """An answer: `choose(ids)` picks a token wherever the constraint leaves a choice.  Returns tokens and draws."""
    tokens, draws = [], 0
    while len(tokens) < limit:
        token = choose(allowed(constraint))
        draws += 1
        if token == end_id:
            break
        tokens.append(token)
        advance = constraint.accept(token, want_forced=True)
        tokens += advance.forced
        if advance.done:
            break
    return tokens, draws
