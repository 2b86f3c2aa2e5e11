"""How the next token is drawn: plain values, checked by the services and carried out by the native core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request.  The defaults are llama.cpp's.

    The draw of the n-th token depends on (seed, n) and the logits alone, so the same seed gives the same text whatever
    else is in the batch.
    """

    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repeat_penalty: float = 1.0  # 1: off
    repeat_last_n: int = 64  # tokens that the penalties look back at; 0: none, -1: all
    presence_penalty: float = 0.0  # 0: off
    frequency_penalty: float = 0.0  # 0: off
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    seed: int = 0  # 64 bits; the services draw one where the caller gives none
    top_logprobs: int | None = (
        None  # alternatives to report with each token, 0 to 20; None: no log-probabilities
    )

    @property
    def has_penalties(self) -> bool:
        """True: earlier tokens matter, so the sampler must be shown the prompt."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )
