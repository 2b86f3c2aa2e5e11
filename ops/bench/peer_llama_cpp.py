"""One measurement of llama.cpp, in a process of its own, through the wheel `xllamacpp`.

Prints the same JSON lines as `quantd bench --json`: prefill with one session, decode with N sessions at once.  The
wheel is llama.cpp's server without its sockets; a decode figure counts only the time in which all N sessions decode.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from typing import Any

import xllamacpp

KV_TYPES = {"f16": xllamacpp.ggml_type.GGML_TYPE_F16, "q8_0": xllamacpp.ggml_type.GGML_TYPE_Q8_0}


def make_server(arguments: argparse.Namespace, sessions: int) -> Any:
    """A server with one slot for each session, nothing cached between requests."""
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.n_parallel = sessions
    params.n_ctx = sessions * (max(arguments.prompt, arguments.depth) + arguments.generate + 64)
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    # Repacked weights are llama.cpp's default on x86; "no_extra_bufts" is its --no-repack.
    params.no_extra_bufts = not arguments.repack
    params.cache_type_k = params.cache_type_v = KV_TYPES[arguments.kv_type]
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = True
    params.verbosity = -1
    return xllamacpp.Server(params)


def random_prompt(rng: random.Random, length: int, vocab: int) -> list[int]:
    """Token ids that share no prefix with other prompts."""
    return [rng.randrange(300 if vocab > 600 else 3, vocab) for _ in range(length)]


def measure(
    server: Any, prompts: list[list[int]], generate: int
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Runs all prompts at once: llama.cpp's own timings of each, and the arrival times of its tokens in seconds."""
    arrivals: list[list[float]] = [[] for _ in prompts]
    timings: list[dict[str, Any]] = [{} for _ in prompts]

    def one(index: int) -> None:
        def on_chunk(chunk: Any) -> bool:
            event = json.loads(chunk) if isinstance(chunk, str) else chunk
            for part in event if isinstance(event, list) else [event]:
                if isinstance(part, dict) and "choices" in part:
                    arrivals[index].append(time.perf_counter())
                    timings[index] = part.get("timings") or timings[index]
            return False

        request = {
            "prompt": prompts[index], "n_predict": generate, "ignore_eos": True, "stream": True,
            "cache_prompt": False, "temperature": 0, "timings_per_token": True, "return_tokens": True,
        }  # fmt: skip
        server.handle_completions(request, on_chunk)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return timings, arrivals


def main() -> int:
    """Exit status 0 with JSON lines on the standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "--vocab", type=int, required=True, help="tokens of the vocabulary, for random prompts"
    )
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=int, default=16, help="tokens in the cache before decoding is timed")
    parser.add_argument("--kv-type", choices=KV_TYPES, default="f16")
    parser.add_argument("--sessions", default="1,4,8,16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repack", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(7)

    def report(test: str, sessions: int, prompt: int, generated: int, rate: float) -> None:
        record = {
            "test": test, "sessions": sessions, "prompt_tokens": prompt, "generated_tokens": generated,
            "tokens_per_s": round(rate, 3),
        }  # fmt: skip
        print(json.dumps(record), flush=True)

    if arguments.prompt > 1:
        server = make_server(arguments, 1)
        measure(server, [random_prompt(rng, 32, arguments.vocab)], 2)
        timings, _ = measure(server, [random_prompt(rng, arguments.prompt, arguments.vocab)], 2)
        report("prefill", 1, arguments.prompt, 0, timings[0]["prompt_per_second"])
        del server
    counts = [int(word) for word in arguments.sessions.split(",") if word] if arguments.generate else []
    for sessions in counts:
        server = make_server(arguments, sessions)
        prompts = [random_prompt(rng, arguments.depth, arguments.vocab) for _ in range(sessions)]
        _, arrivals = measure(server, prompts, arguments.generate)
        start = max(times[0] for times in arrivals)
        end = min(times[-1] for times in arrivals)
        tokens = sum(1 for times in arrivals for moment in times if start < moment <= end)
        report("decode", sessions, arguments.depth, arguments.generate, tokens / (end - start))
        del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
