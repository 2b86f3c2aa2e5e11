"""Prints llama.cpp's perplexity of a model on token ids, through the wheel `xllamacpp`: MODEL ID ID ID ...

A process of its own: a model that llama.cpp does not like ends it.  The cache is F32; each token's log-probability is asked
for with the tokens before it as the prompt.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import xllamacpp


def main() -> None:
    ids = [int(word) for word in sys.argv[2:]]
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel = 1
    params.n_ctx = 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 0
    params.warmup = False
    params.verbosity = -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    total = 0.0
    for at in range(1, len(ids)):
        answers: list[Any] = []
        request = {
            "prompt": ids[:at], "n_predict": 1, "n_probs": 400, "temperature": 0, "return_tokens": True,
            # Whatever it draws must be a whole character; the log-probabilities are those before any bias.
            "cache_prompt": False, "logit_bias": [[300, 1000.0]],
        }  # fmt: skip
        server.handle_completions(request, lambda chunk, answers=answers: bool(answers.append(chunk)))
        answer = answers[0]
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        answer = answer[0] if isinstance(answer, list) else answer
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        total -= next(entry["logprob"] for entry in top if entry["id"] == ids[at])
    print(math.exp(total / (len(ids) - 1)))


if __name__ == "__main__":
    main()
