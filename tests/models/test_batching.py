"""A row's result does not depend on the batch, on how the prompt was cut, or on the threads: bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from runtime._native import Sampler, kernel_levels
from tests.models.support import N_VOCAB, Runner, Tiny, greedy, write_tiny

MODELS = {
    "llama F32": Tiny(head_dim=32),
    "llama Q8_0": Tiny(quant="Q8_0", n_embd=256, head_dim=64, n_ff=288),
    "llama Q4_0": Tiny(quant="Q4_0", n_embd=256, head_dim=64, n_ff=288),
    "qwen2 F16": Tiny(arch="qwen2", head_dim=32, quant="F16"),
    "qwen3 BF16": Tiny(arch="qwen3", head_dim=64, quant="BF16"),
    "qwen3moe Q8_0": Tiny(arch="qwen3moe", quant="Q8_0", n_embd=256, head_dim=64, n_ff=288, n_experts=5),
    "gemma2 F32": Tiny(arch="gemma2", head_dim=32, keys={"attention.sliding_window": 19}),
}


def some_tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "m.gguf", MODELS[request.param])


@pytest.mark.parametrize("level", kernel_levels())
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_batched_equals_alone(model, level, kv_type):
    lengths = [1, 37, 5, 20]
    prompts = [some_tokens(n, seed=n) for n in lengths]
    runner = Runner(model, level=level, kv_type=kv_type, threads=2, max_rows=80)
    alone = []
    for seq, prompt in enumerate(prompts):
        single = Runner(model, level=level, kv_type=kv_type)
        steps = [single.step([(seq, 0, prompt)], [len(prompt) - 1], [greedy()])]
        for i in range(4):
            token = [int(steps[-1].token_ids[0])]
            steps.append(single.step([(seq, len(prompt) + i, token)], [0], [greedy()]))
        alone.append(steps)

    parts = [(seq, 0, prompt) for seq, prompt in enumerate(prompts)]
    ends = (np.cumsum(lengths) - 1).tolist()
    together = [runner.step(parts, ends, [greedy() for _ in prompts])]
    for i in range(4):
        parts = [(seq, len(p) + i, [int(together[-1].token_ids[seq])]) for seq, p in enumerate(prompts)]
        together.append(runner.step(parts, range(4), [greedy() for _ in prompts]))

    for step, result in enumerate(together):
        for seq in range(4):
            one = alone[seq][step]
            assert result.token_ids[seq] == one.token_ids[0]
            assert result.top_logprobs[seq].tobytes() == one.top_logprobs[0].tobytes()


@pytest.mark.parametrize("level", kernel_levels())
def test_chunks_and_threads(model, level):
    tokens = some_tokens(70, seed=1)
    expected = Runner(model, level=level, max_rows=80).logprobs(tokens, chunk=80)
    for threads, chunk in [(1, 1), (1, 7), (1, 33), (2, 80), (3, 16)]:
        runner = Runner(model, level=level, threads=threads, max_rows=80)
        found = runner.logprobs(tokens, chunk=chunk)
        assert found.tobytes() == expected.tobytes(), (threads, chunk)


def test_page_size_only_changes_rounding(tmp_path):
    model = write_tiny(tmp_path / "m.gguf", Tiny())
    tokens = some_tokens(70, seed=2)
    expected = Runner(model).logprobs(tokens)
    found = Runner(model, page_tokens=16, pages_each=8).logprobs(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_output_rows_in_any_order_and_number(model):
    tokens = some_tokens(64, seed=3)
    runner = Runner(model)
    everything = runner.step([(0, 0, tokens)], range(64), [greedy() for _ in tokens])
    some = [63, 0, 17, 17]
    result = runner.step([(0, 0, tokens)], some, [greedy() for _ in some])
    assert result.top_logprobs.tobytes() == everything.top_logprobs[some].tobytes()
    assert runner.step([(0, 0, tokens)], []).token_ids == []


def test_same_seed_same_text_whatever_else_is_in_the_batch(model):
    def generate(companions: int) -> list[int]:
        runner = Runner(model, threads=2)
        samplers = [Sampler(temperature=1.5, top_k=0, seed=7 + seq) for seq in range(1 + companions)]
        held = [3 + seq for seq in range(1 + companions)]
        parts = [(seq, 0, some_tokens(held[seq], seed=seq)) for seq in range(1 + companions)]
        drawn = []
        for _ in range(20):
            ends = np.cumsum([len(tokens) for _, _, tokens in parts]) - 1
            result = runner.step(parts, ends.tolist(), samplers)
            drawn.append(int(result.token_ids[0]))
            parts = [(seq, held[seq], [int(token)]) for seq, token in enumerate(result.token_ids)]
            held = [n + 1 for n in held]
        return drawn

    alone = generate(0)
    assert generate(3) == alone
    assert len(set(alone)) > 3


@pytest.mark.parametrize("level", kernel_levels())
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_long_contexts(tmp_path, level, kv_type, n_kv_heads):
    """Several ranges of positions: in one piece, in chunks, row by row, with ranges apart on several threads."""
    model = write_tiny(tmp_path / "m.gguf", Tiny(head_dim=32, n_kv_heads=n_kv_heads, context=1024))
    tokens = some_tokens(520, seed=4)

    def last_rows(threads: int, cuts: list[int]) -> bytes:
        runner = Runner(
            model, level=level, kv_type=kv_type, threads=threads, max_rows=520, n_seqs=1, pages_each=20
        )
        found, first = [], 0
        for end in [*cuts, 520]:
            wanted = [row for row in range(end - first) if first + row >= 508]
            result = runner.step([(0, first, tokens[first:end])], wanted, [greedy() for _ in wanted])
            found += [row.tobytes() for row in result.top_logprobs]
            first = end
        return b"".join(found)

    expected = last_rows(1, [])
    for threads, cuts in [
        (1, [100, 256, 300]),
        (2, []),
        (2, [509, 510, 511, 512, 513]),
        (3, [7, 508, 510, 511, 513]),
        (8, [257, 511, 519]),
    ]:
        assert last_rows(threads, cuts) == expected, (threads, cuts)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("threads", [1, 3])
def test_sessions_that_share_a_prefix(tmp_path, kv_type, threads):
    """Pages in several sequences' lists are read once for all of them, and each gets what it gets alone."""
    model = write_tiny(tmp_path / "m.gguf", Tiny(head_dim=32, context=1024))
    prefix = some_tokens(560, seed=5)
    tails = [some_tokens(n, seed=n) for n in (1, 5, 2, 40, 1)]
    runner = Runner(model, kv_type=kv_type, threads=threads, max_rows=600, n_seqs=1, pages_each=80)
    runner.step([(0, 0, prefix)], [])
    runner.step([(0, 0, some_tokens(300, seed=6))], [], page_lists=[range(60, 70)])
    # The first three go on behind 544 tokens of the prefix, the fourth behind 256 of them, the last behind another text.
    firsts = [544, 544, 544, 256, 288]
    page_lists = [
        [*range(17), 20], [*range(17), 21], [*range(17), 22], [*range(8), 23, 24], [*range(60, 69), 25],
    ]  # fmt: skip
    parts = [(0, first, tail) for first, tail in zip(firsts, tails, strict=True)]
    ends = (np.cumsum([len(tail) for tail in tails]) - 1).tolist()
    together = runner.step(parts, ends, [greedy() for _ in ends], page_lists=page_lists)
    for i, part in enumerate(parts):
        alone = runner.step([part], [len(part[2]) - 1], [greedy()], page_lists=[page_lists[i]])
        assert alone.top_logprobs[0].tobytes() == together.top_logprobs[i].tobytes(), i
    # Of a step that wants few rows, also the last layer shares.
    some = runner.step(parts, [ends[0], ends[3]], [greedy(), greedy()], page_lists=page_lists)
    assert some.top_logprobs.tobytes() == together.top_logprobs[[0, 3]].tobytes()


def test_rows_that_are_not_wanted_leave_their_keys(model):
    """The last layer stores keys and values of all rows, whichever go on to the logits."""
    tokens = some_tokens(60, seed=7)
    runner = Runner(model, threads=2)
    expected = runner.logprobs(tokens)
    for wanted in ([], [3], [0, 39], list(range(0, 40, 3))):
        runner = Runner(model, threads=2)
        result = runner.step([(0, 0, tokens[:40])], wanted, [greedy() for _ in wanted])
        for row, found in zip(wanted, result.top_logprobs, strict=True):
            assert np.sort(found).tobytes() == np.sort(expected[row]).tobytes()
        result = runner.step([(0, 40, tokens[40:])], [19], [greedy()])
        assert np.sort(result.top_logprobs[0]).tobytes() == np.sort(expected[59]).tobytes()
