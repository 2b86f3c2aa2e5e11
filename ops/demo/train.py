"""Train the demo model's tokenizer and weights, from scratch or from a GGUF file.

The run keeps `tokenizer.json`, `checkpoint.pt` and `log.jsonl` in its work folder; export.py
turns any checkpoint into a GGUF file.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import vocabulary
from chat import CALL, END_OF_TEXT, IM_END, IM_START, Chat, Message, render, written
from corpus import TOOL_SHARE, documents, heldout_text, training_documents
from export import load, read_gguf, token_id, write_gguf
from model import Config, Llama
from muon import Muon
from sums import WORDS, compute, unseen_sums
from tokenizers import Tokenizer
from tool_talk import Case, held_cases, no_call, one_call, several_calls, tool_chat
from torch import Tensor
from torch.nn import functional

HELDOUT = Path(__file__).parent / "heldout.txt"
PROMPT_WEIGHT = (
    0.2  # loss weight of tokens that the model reads but never has to write; 0 beside tools: names are noise
)
GROUPED = 600  # documents that are sorted by length at a time
SHORT = 512  # tokens of a sequence before the last part of the run
WARMUP = 60  # steps
SAVE_EVERY_S = 240
TOPICS = (one_call, several_calls, no_call)

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


def new_tokenizer(vocab: int, seed: int, count: int = 20_000) -> Tokenizer:
    """Train the tokenizer on `count` documents."""
    return vocabulary.train(itertools.islice(training_documents(seed), count), vocab)


def extended(model: Llama, tokenizer: Tokenizer, vocab: int, count: int = 6000) -> tuple[Llama, Tokenizer]:
    """Return a larger vocabulary for conversations with tools, and the model with rows for it.

    A new row begins as the mean of the rows of the tokens that spelled its text before.
    """
    rng = random.Random(0)
    tools = [render(tool_chat(rng)) for _ in range(count)]
    plain = [*itertools.islice(documents(7), count), HELDOUT.read_text(encoding="utf-8")]
    larger = vocabulary.extend(tokenizer, tools, plain, vocab)
    old = model.state_dict()
    rows = old["token_embd.weight"]
    texts = [larger.decode([i], skip_special_tokens=False) for i in range(len(rows), larger.get_vocab_size())]
    added = [rows[tokenizer.encode(text).ids].mean(0) for text in texts]
    grown = Llama(replace(model.c, vocab=larger.get_vocab_size()))
    grown.load_state_dict(old | {"token_embd.weight": torch.stack([*rows, *added])})
    return grown, larger


class Packer:
    """Packs documents into batches; every row starts with a new document, as a chat does."""

    def __init__(self, tokenizer: Tokenizer, seed: int, tool_share: float) -> None:
        self.tokenizer = tokenizer
        self.start, self.end = token_id(tokenizer, IM_START), token_id(tokenizer, END_OF_TEXT)
        self.assistant, self.call = token_id(tokenizer, "assistant"), token_id(tokenizer, CALL)
        self.texts = training_documents(seed, tool_share)
        self.rng, self.groups = random.Random(seed), list[list[list[int]]]()
        self.encoded = self._encode()

    def _encode(self) -> Iterator[list[int]]:
        while True:
            batch = list(itertools.islice(self.texts, 2000))
            for e in self.tokenizer.encode_batch(batch):
                yield [*e.ids, self.end]

    def loss_weights(self, ids: Ids) -> Weights:
        """Return the weight of each token (batch, time): 1 where the model speaks."""
        marks = (ids == self.start) | (ids == self.end)
        speaks = ids == self.end
        speaks[:, :-1] |= (ids[:, :-1] == self.start) & (ids[:, 1:] == self.assistant)
        speaks[:, 0] |= ids[:, 0] != self.start
        marks[:, 0] = True
        speaks = _from_last(marks, speaks)
        # The separator of documents belongs to the one in front of it.
        begins = np.zeros_like(marks)
        begins[:, 0], begins[:, 1:] = True, ids[:, :-1] == self.end
        numbers = np.cumsum(begins, axis=1)
        has_tools = np.stack([np.isin(n, n[row == self.call]) for n, row in zip(numbers, ids, strict=True)])
        return np.where(speaks, 1.0, np.where(has_tools, 0.0, PROMPT_WEIGHT)).astype(np.float32)

    def packed(self, tokens: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and loss weights, each (rows, length), every row full of documents."""
        out = np.empty((tokens // length, length + 1), np.int64)
        for row in out:
            used = 0
            while used < length + 1:
                piece = next(self.encoded)[: length + 1 - used]
                row[used : used + len(piece)] = piece
                used += len(piece)
        return self._tensors(out, self.loss_weights(out))

    def apart(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same (rows, time), one document a row, of about one length and at most `tokens` in all.

        Nothing but a document's own words is in sight there, so that it takes fewer steps to learn to copy them.
        """
        if not self.groups:
            documents = sorted(itertools.islice(self.encoded, GROUPED), key=len)
            group: list[list[int]] = []
            for one in documents:
                if group and (len(group) + 1) * len(one) > tokens:
                    self.groups.append(group)
                    group = []
                group.append(one)
            self.rng.shuffle(self.groups)
        group = self.groups.pop()
        out = np.full((len(group), max(map(len, group))), self.end, np.int64)
        for row, one in zip(out, group, strict=True):
            row[: len(one)] = one
        weights = self.loss_weights(out)
        for row, one in zip(weights, group, strict=True):
            row[len(one) :] = 0
        return self._tensors(out, weights)

    @staticmethod
    def _tensors(ids: Ids, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        tokens = torch.from_numpy(ids)
        return tokens[:, :-1], tokens[:, 1:], torch.from_numpy(weights[:, 1:])


def _from_last(marks: npt.NDArray[np.bool_], values: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return for each position (batch, time) the value at the last mark."""
    last = np.maximum.accumulate(np.where(marks, np.arange(marks.shape[1]), 0), axis=1)
    return np.take_along_axis(values, last, 1)


def perplexity(model: Llama, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Return the perplexity per token of the text in context-sized pieces, and the tokens."""
    ids = torch.tensor(tokenizer.encode(text).ids)
    total, count = 0.0, 0
    with torch.inference_mode():
        for piece in torch.split(ids, model.c.context):
            if len(piece) > 1:
                logits = model(piece[None, :-1])[0]
                total += float(functional.cross_entropy(logits, piece[1:], reduction="sum"))
                count += len(piece) - 1
    return math.exp(total / count), count


def is_greedy(model: Llama, tokenizer: Tokenizer, ask: str, answer: str) -> bool:
    """Tell whether greedy decoding writes the answer: fed in, it must win at every position."""
    prompt, ids = len(tokenizer.encode(ask).ids), torch.tensor(tokenizer.encode(ask + answer).ids)
    with torch.inference_mode():
        best = model(ids[None, :-1])[0].argmax(-1)
    return torch.equal(best[prompt - 1 :], ids[prompt:])


def sum_accuracy(model: Llama, tokenizer: Tokenizer, op: str) -> float:
    """Return the share of unseen sums whose greedy answer is right to the last token."""
    pairs, w = unseen_sums(op), WORDS[op]
    right = 0
    for a, b in pairs:
        ask = render(Chat([Message("user", f"What is {a} {w} {b}?")]), ask=True)
        right += is_greedy(model, tokenizer, ask, f"{a} {w} {b} is {compute(a, op, b)}.{IM_END}")
    return right / len(pairs)


def case_accuracy(model: Llama, tokenizer: Tokenizer, cases: Sequence[Case]) -> float:
    """Return the share of held-out conversations with tools in which the greedy turn is the wanted one."""
    right = 0
    for case in cases:
        answer = (written(case.wanted.calls) if case.wanted.calls else case.wanted.content) + IM_END
        right += is_greedy(model, tokenizer, render(case.chat, ask=True), answer)
    return right / len(cases)


def report(model: Llama, tokenizer: Tokenizer, heldout: str) -> dict[str, float]:
    """Measure the model with its own weights and with weights rounded to 4 bits."""
    out: dict[str, float] = {}
    for name, rounded in (("", False), (" 4-bit", True)):
        model.round_weights(rounded)
        out["perplexity" + name], out["heldout tokens"] = perplexity(model, tokenizer, heldout)
        out |= {f"unseen {op}{name}": sum_accuracy(model, tokenizer, op) for op in WORDS}
        for topic in TOPICS:
            cases = held_cases(topic, 100)
            out[f"{topic.__name__}{name}"] = case_accuracy(model, tokenizer, cases)
    model.round_weights(False)
    return {k: round(v, 4) for k, v in out.items()}


def train(args: argparse.Namespace) -> None:
    """Train; the learning rate and the form of the batches follow the share of the steps that is done."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.resume:
        model, tokenizer = load(args.work)
    elif args.start:
        model, tokenizer = extended(*read_gguf(args.start), args.vocab)
    else:
        tokenizer = new_tokenizer(args.vocab, args.seed)
        model = Llama(Config(vocab=tokenizer.get_vocab_size()))
    tokenizer.save(str(args.work / "tokenizer.json"))
    heldout = heldout_text(30_000, seed=2)
    seed = args.seed + 1 + args.resume
    first, then = Packer(tokenizer, seed, args.tool_share), Packer(tokenizer, seed + 1000, TOOL_SHARE)
    matrices = [p for p in model.blk.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1] + [model.token_embd.weight]
    # Muon learns the matrices in about half the steps of AdamW; it is meant for those only.
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01)
    run = torch.compile(model.hidden, dynamic=False) if args.compile else model.hidden
    log = (args.work / "log.jsonl").open("a")
    begin = saved = time.monotonic()
    tokens = 0
    for step in range(args.steps):
        done = step / args.steps
        rate = min((step + 1) / WARMUP, 1.0, max((1 - done) / (1 - args.decay), 0.02))
        adam.param_groups[0]["lr"] = (args.adam_rate or args.rate) * rate
        model.round_weights(done > args.round and step % 2 == 1)
        if done > args.apart:
            x, y, weight = then.packed(args.batch, model.c.context if done > args.long else SHORT)
        else:
            x, y, weight = first.apart(args.batch)
        counted = weight.flatten().nonzero()[:, 0]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = model.logits(run(x).flatten(0, 1)[counted])
        losses = functional.cross_entropy(logits.float(), y.flatten()[counted], reduction="none")
        loss = (losses * weight.flatten()[counted]).sum() / weight.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(args.rate * rate)
        adam.step()  # type: ignore[no-untyped-call]
        model.zero_grad()
        tokens += x.numel()
        now = time.monotonic()
        if step % 20 == 0:
            row = {"step": step, "minutes": round((now - begin) / 60, 2), "tokens": tokens}
            print(json.dumps(row | {"loss": round(loss.item(), 4)}), file=log, flush=True)
        if now - saved > SAVE_EVERY_S:
            saved = now
            torch.save(model.state_dict(), args.work / "checkpoint.new")
            (args.work / "checkpoint.new").replace(args.work / "checkpoint.pt")
            model.eval()
            right = {t.__name__: case_accuracy(model, tokenizer, held_cases(t, 24)) for t in TOPICS}
            model.train()
            plain, _ = perplexity(model, tokenizer, heldout[:6000])
            print(
                json.dumps({"step": step, "perplexity": round(plain, 4), "greedy": right}),
                file=log,
                flush=True,
            )
    torch.save(model.state_dict(), args.work / "checkpoint.pt")
    if args.gguf:
        write_gguf(args.gguf, model, tokenizer)
    result = {"steps": args.steps, "tokens": tokens, "minutes": round((time.monotonic() - begin) / 60, 1)}
    model.eval()
    print(json.dumps(result | report(model, tokenizer, heldout)), file=log, flush=True)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for checkpoint, tokenizer and log")
    parser.add_argument("--gguf", type=Path, help="file to write at the end")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--apart", type=float, default=0.5, help="share of the steps with one document a sequence"
    )
    parser.add_argument(
        "--long", type=float, default=0.8, help="share after which sequences fill the context"
    )
    parser.add_argument(
        "--round", type=float, default=0.6, help="share after which every other step has 4-bit weights"
    )
    parser.add_argument("--decay", type=float, default=0.4, help="share after which the learning rate falls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=2304)
    parser.add_argument("--batch", type=int, default=8192, help="tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--adam-rate", type=float, help="that of embeddings and norms, where it differs")
    parser.add_argument(
        "--tool-share",
        type=float,
        default=TOOL_SHARE,
        help="of the documents with tools while each has a sequence of its own",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="compute matrices in bfloat16")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument(
        "--start", type=Path, metavar="GGUF", help="start from the weights and tokens of this file"
    )
    parser.add_argument("--resume", action="store_true", help="start from the checkpoint")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
