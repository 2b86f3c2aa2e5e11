"""How prompts that come in at the same time share the rows of a step.

The one with the fewest tokens to go is first: the sum of all waits for a first token is smallest that way.  The one that
was admitted first always gets a quarter, so that a stream of short prompts cannot hold up a long one: it waits at most
four times as long as it would alone.
"""

from __future__ import annotations

from runtime.request import Sequence

_OLDEST_SHARE = 4  # the prompt that was admitted first gets one in so many rows


def share_among_prompts(behind: list[Sequence], n_rows: int, page_tokens: int) -> dict[Sequence, int]:
    """Rows of each of `behind`, prompts in order of admission, of `n_rows` rows in all.

    A prompt whose next page is computed by another one in this step gets none: it takes the page over afterwards.
    """
    rows: dict[Sequence, int] = {}
    oldest = behind[0]
    kept = min(oldest.num_wanted, -(-n_rows // _OLDEST_SHARE))
    computing: set[bytes] = set()  # keys of the pages that somebody computes in this step
    for sequence in sorted(behind, key=lambda sequence: sequence.num_wanted):
        chunk = min(sequence.num_wanted, n_rows if sequence is oldest else n_rows - kept)
        if chunk <= 0:
            continue
        first = sequence.num_computed // page_tokens
        keys = sequence.keys[1 + first : 2 + (sequence.num_computed + chunk - 1) // page_tokens]
        if keys and keys[0] in computing:
            continue
        computing.update(keys)
        rows[sequence] = chunk
        n_rows -= chunk
        if sequence is oldest:
            kept = 0
    return rows
