"""Names of prefixes: one key for each full page of a sequence, which stands for every token up to the page's end.

    key of page 0 = H(root, tokens of page 0)        key of page i = H(key of page i - 1, tokens of page i)

Equal keys mean equal prefixes of the same model, KV type, page size and scope.  H is BLAKE2b with 256 bits, keyed with a
secret that every engine draws for itself: nobody can make two prefixes meet, and so read what another one computed.
The root holds the scope, which the services set from the caller's API key: callers with different keys share nothing,
not even the time by which a shared prefix would tell that somebody else has sent it.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import numpy.typing as npt

_KEY_BYTES = 32


class PrefixKeys:
    """Makes keys for one engine.  Any thread may call it."""

    def __init__(self, *, model: str, kv_type: str, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._secret = secrets.token_bytes(_KEY_BYTES)
        self._made_by = (model, kv_type, page_tokens)

    def root(self, scope: str) -> bytes:
        """The key before the first page of any sequence of `scope`."""
        return self._hash(repr((*self._made_by, scope)).encode("utf-8", "surrogatepass"))

    def extend(self, keys: list[bytes], tokens: npt.NDArray[np.int32]) -> None:
        """Append the keys of all full pages of `tokens` (n,) that `keys`, the root first, does not have yet."""
        for page in range(len(keys) - 1, len(tokens) // self.page_tokens):
            content = tokens[page * self.page_tokens : (page + 1) * self.page_tokens].tobytes()
            keys.append(self._hash(keys[-1] + content))

    def _hash(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=self._secret).digest()
