"""Ask a GGUF file of the demo model questions and measure it, in numpy alone.

It shares no code with the trainer's model and reads every tensor type that the gguf package
can, so it also checks quantized files.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import vocabulary
from chat import IM_END, Chat, Message, compile_template, render, written
from facts import RELATIONS
from questions import upper
from sums import WORDS, compute, unseen_sums
from tool_talk import Topic, held_cases, no_call, one_call, several_calls

Array = npt.NDArray[np.float32]
Score = tuple[int, int]  # right, of how many
SEED = 1000  # of the measured conversations; training's report uses others
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is 12 plus 7?",
    "What is 45 minus 18?",
    "What is the capital of France?",
    "What colour is the sky?",
    "Tell me a story about a fox.",
)
DIALOGUE = (
    "Hello, my name is Anna.",
    "What is 3 plus 4?",
    "What is my name?",
    "Tell me a story about a dragon and a mouse.",
    "Who was the friend?",
)


class Model:
    """A GGUF file in memory: float32 weights, shape and tokenizer."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.meta: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.w: dict[str, Array] = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors
        }
        self.heads = int(self.meta["llama.attention.head_count"])
        self.kv_heads = int(self.meta["llama.attention.head_count_kv"])
        self.eps = float(self.meta["llama.attention.layer_norm_rms_epsilon"])
        self.tokenizer = vocabulary.of_gguf(self.meta)
        self.template = compile_template(self.meta["tokenizer.chat_template"])

    def norm(self, x: Array, name: str) -> Array:
        """RMS norm of x (time, width)."""
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        out: Array = (x / scale * self.w[name]).astype(np.float32)
        return out

    def rotate(self, x: Array) -> Array:
        """Rotary embedding of x (time, heads, head_width), pairs of neighbours."""
        time, _, width = x.shape
        base = float(self.meta["llama.rope.freq_base"])
        angle = np.outer(np.arange(time), base ** -(np.arange(0, width, 2) / width))[:, None]
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
        return np.stack((turned.real, turned.imag), -1).reshape(x.shape).astype(np.float32)

    def logits(self, ids: list[int]) -> Array:
        """Return the logits (time, vocab) of one sequence."""
        w, time = self.w, len(ids)
        x = w["token_embd.weight"][ids]
        mask = np.triu(np.full((time, time), -np.inf, np.float32), 1)
        for i in range(int(self.meta["llama.block_count"])):
            b = f"blk.{i}."
            h = self.norm(x, b + "attn_norm.weight")
            q, k, v = (
                (h @ w[f"{b}attn_{n}.weight"].T).reshape(time, heads, -1)
                for n, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
            )
            q, k = self.rotate(q), self.rotate(k)
            heads = []
            for j in range(self.heads):
                g = j * self.kv_heads // self.heads
                score = q[:, j] @ k[:, g].T / math.sqrt(q.shape[-1]) + mask
                weight = np.exp(score - score.max(-1, keepdims=True))
                heads.append(weight / weight.sum(-1, keepdims=True) @ v[:, g])
            x = x + np.concatenate(heads, -1).astype(np.float32) @ w[b + "attn_output.weight"].T
            h = self.norm(x, b + "ffn_norm.weight")
            gate = h @ w[b + "ffn_gate.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
        out: Array = self.norm(x, "output_norm.weight") @ w["token_embd.weight"].T
        return out

    def answer(self, chat: Chat, temperature: float, rng: np.random.Generator) -> str:
        """Write the assistant's next message; temperature 0 is greedy."""
        prompt = self.tokenizer.encode(render(chat, ask=True, template=self.template)).ids
        end, out = self.tokenizer.token_to_id(IM_END), list[int]()
        while len(prompt) + len(out) < self.meta["llama.context_length"]:
            last = self.logits(prompt + out)[-1]
            # Gumbel noise of the size of the temperature makes the largest value a fair sample.
            token = int((last + temperature * rng.gumbel(size=last.shape)).argmax())
            if token == end:
                return str(self.tokenizer.decode(out))
            out.append(token)
        return f"{self.tokenizer.decode(out)} [no end of turn]"

    def writes(self, chat: Chat, wanted: str) -> bool:
        """Tell whether the greedy next message is `wanted`: fed in, it must win at every step."""
        ask = render(chat, ask=True, template=self.template)
        prompt, ids = len(self.tokenizer.encode(ask).ids), self.tokenizer.encode(ask + wanted + IM_END).ids
        return bool(self.logits(ids[:-1])[prompt - 1 :].argmax(-1).tolist() == ids[prompt:])

    def perplexity(self, text: str, length: int = 512) -> tuple[float, int]:
        """Return the perplexity per token in pieces of `length`, and the tokens counted."""
        ids = self.tokenizer.encode(text).ids
        total, count = 0.0, 0
        for at in range(0, len(ids) - 1, length):
            piece = ids[at : at + length]
            z = self.logits(piece[:-1]).astype(np.float64)
            top = z.max(-1)
            norm = np.log(np.exp(z - top[:, None]).sum(-1)) + top
            total += float((norm - z[np.arange(len(z)), piece[1:]]).sum())
            count += len(z)
        return math.exp(total / count), count

    def sums(self, op: str) -> Score:
        """Count the sums kept out of training that are answered right, and all of them."""
        w = WORDS[op]
        return self._score(
            (asked(f"What is {a} {w} {b}?"), [f"{a} {w} {b} is {compute(a, op, b)}."])
            for a, b in unseen_sums(op)
        )

    def facts(self, *, capitals: bool) -> Score:
        """Count the facts, in the first words that the corpus has for each, that are answered right, and all of them."""
        return self._score(
            (
                asked(upper(r.questions[0].format(x=x, y=y))),
                [upper(form.format(x=x, y=y)) for form in r.answers],
            )
            for name, r in RELATIONS.items()
            if (name == "capital") == capitals
            for x, y in r.pairs
        )

    def turns(self, topic: Topic, count: int, *, calls: bool) -> Score:
        """Count the turns of conversations with tools, about values kept out of training, that are as wanted, and all.

        `calls`: turns that call tools, which must have the right names and arguments; otherwise turns in words.
        """
        return self._score(
            (case.chat, [written(case.wanted.calls) if calls else case.wanted.content])
            for case in held_cases(topic, count, SEED)
            if bool(case.wanted.calls) == calls
        )

    def _score(self, questions: Iterable[tuple[Chat, list[str]]]) -> Score:
        results = [any(self.writes(chat, one) for one in wanted) for chat, wanted in questions]
        return sum(results), len(results)


def asked(question: str) -> Chat:
    """Return a conversation of one question."""
    return Chat([Message("user", question)])


def main() -> None:
    """Print answers and measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, metavar="TEXT", help="also measure, on this held-out text")
    parser.add_argument("--cases", type=int, default=400, help="conversations with tools, of each kind")
    args = parser.parse_args()
    model, rng = Model(args.gguf), np.random.default_rng(args.seed)
    for question in QUESTIONS:
        print(f"> {question}\n{model.answer(asked(question), args.temperature, rng)}\n")
    history = [Message("system", "You are a helpful assistant.")]
    for question in DIALOGUE:
        history.append(Message("user", question))
        history.append(Message("assistant", model.answer(Chat(history), args.temperature, rng)))
        print(f">> {question}\n{history[-1].content}\n")
    if args.measure:
        value, count = model.perplexity(args.measure.read_text(encoding="utf-8"))
        print(f"perplexity {value:.3f} over {count} tokens")
        for op, word in WORDS.items():
            show(f"unseen {word}", model.sums(op))
        show("capitals", model.facts(capitals=True))
        show("other facts", model.facts(capitals=False))
        show("one call", model.turns(one_call, args.cases, calls=True))
        show("answer to its result", model.turns(one_call, args.cases, calls=False))
        show("several calls", model.turns(several_calls, args.cases, calls=True))
        show("answer to their results", model.turns(several_calls, args.cases, calls=False))
        show("no call beside tools", model.turns(no_call, args.cases, calls=False))


def show(name: str, score: Score) -> None:
    """Print one measure."""
    print(f"{name}: {score[0]} of {score[1]}", flush=True)


if __name__ == "__main__":
    main()
