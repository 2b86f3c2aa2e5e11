"""Train the demo model's tokenizer and weights from scratch within a time budget.

The run keeps `tokenizer.json`, `checkpoint.pt` and `log.jsonl` in its work folder; export.py
turns any checkpoint into a GGUF file.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from corpus import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    QWEN2,
    WORDS,
    Message,
    compute,
    documents,
    heldout_text,
    render,
    unseen_sums,
)
from export import load, token_id, write_gguf
from model import Config, Llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

PROMPT_WEIGHT = 0.2  # loss weight of tokens that the model reads but never has to write
SHORT = 512  # sequence length in tokens of the first part of the run
LONG_FROM = 0.7  # share of the run after which sequences have the full context length
ROUND_FROM = 0.6  # share of the run after which every other step sees 4-bit weights
DECAY_FROM = 0.4  # share of the run after which the learning rate falls
WARMUP = 60  # steps

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


def train_tokenizer(vocab: int, seed: int, count: int = 20_000) -> Tokenizer:
    """Train a byte-level BPE on `count` documents; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(documents(seed), count), trainer)
    return tokenizer


class Packer:
    """Packs documents into batches; every row starts with a new document, as a chat does."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.start, self.end = token_id(tokenizer, IM_START), token_id(tokenizer, END_OF_TEXT)
        self.assistant = token_id(tokenizer, "assistant")
        self.texts = documents(seed)
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
        # Each token takes the mark that opened its message.
        last = np.maximum.accumulate(np.where(marks, np.arange(ids.shape[1]), 0), axis=1)
        return np.where(np.take_along_axis(speaks, last, 1), 1.0, PROMPT_WEIGHT).astype(np.float32)

    def batch(self, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and loss weights, each (rows, length)."""
        out = np.empty((rows, length + 1), np.int64)
        for row in out:
            used = 0
            while used < length + 1:
                piece = next(self.encoded)[: length + 1 - used]
                row[used : used + len(piece)] = piece
                used += len(piece)
        weights = self.loss_weights(out)
        ids = torch.from_numpy(out)
        return ids[:, :-1], ids[:, 1:], torch.from_numpy(weights[:, 1:])


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


def sum_accuracy(model: Llama, tokenizer: Tokenizer, op: str) -> float:
    """Return the share of unseen sums whose greedy answer is right to the last token.

    The right answer is fed in: it is the greedy one exactly if it wins at every position.
    """
    right, pairs = 0, unseen_sums(op)
    for a, b in pairs:
        w = WORDS[op]
        ask = render([Message("user", f"What is {a} {w} {b}?")]) + f"{IM_START}assistant\n"
        answer = f"{a} {w} {b} is {compute(a, op, b)}.{IM_END}"
        prompt = len(tokenizer.encode(ask).ids)
        ids = torch.tensor(tokenizer.encode(ask + answer).ids)
        with torch.inference_mode():
            best = model(ids[None, :-1])[0].argmax(-1)
        right += int(torch.equal(best[prompt - 1 :], ids[prompt:]))
    return right / len(pairs)


def report(model: Llama, tokenizer: Tokenizer, heldout: str) -> dict[str, float]:
    """Measure the model with its own weights and with weights rounded to 4 bits."""
    out: dict[str, float] = {}
    for name, rounded in (("", False), (" 4-bit", True)):
        model.round_weights(rounded)
        out["perplexity" + name], out["heldout tokens"] = perplexity(model, tokenizer, heldout)
        out |= {f"unseen {op}{name}": sum_accuracy(model, tokenizer, op) for op in WORDS}
    model.round_weights(False)
    return {k: round(v, 4) for k, v in out.items()}


def train(args: argparse.Namespace) -> None:
    """Train until the time budget is spent; the schedule follows the clock."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.resume:
        model, tokenizer = load(args.work)
    else:
        tokenizer = train_tokenizer(args.vocab, args.seed)
        tokenizer.save(str(args.work / "tokenizer.json"))
        model = Llama(Config(vocab=tokenizer.get_vocab_size()))
    heldout = heldout_text(30_000, seed=2)
    packer = Packer(tokenizer, args.seed + 1 + args.resume)
    matrices = [p for p in model.blk.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1] + [model.token_embd.weight]
    # Muon learns the matrices in about half the steps of AdamW; it is meant for those only.
    muon = torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01)
    run = torch.compile(model, dynamic=False) if args.compile else model
    log = (args.work / "log.jsonl").open("a")
    begin = saved = time.monotonic()
    tokens = 0
    for step in itertools.count():
        done = (time.monotonic() - begin) / (60 * args.minutes)
        if done >= 1:
            break
        rate = min((step + 1) / WARMUP, 1.0, max((1 - done) / (1 - DECAY_FROM), 0.02))
        for optimizer in (muon, adam):
            optimizer.param_groups[0]["lr"] = args.rate * rate
        length = model.c.context if done > LONG_FROM else SHORT
        model.round_weights(done > ROUND_FROM and step % 2 == 1)
        x, y, weight = packer.batch(args.batch // length, length)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = run(x)
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none")
        loss = (losses * weight.flatten()).sum() / weight.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
        tokens += x.numel()
        now = time.monotonic()
        if step % 20 == 0:
            row = {"step": step, "minutes": round((now - begin) / 60, 2), "tokens": tokens}
            print(json.dumps(row | {"loss": round(loss.item(), 4)}), file=log, flush=True)
        if now - saved > 120:
            saved = now
            torch.save(model.state_dict(), args.work / "checkpoint.pt")
    torch.save(model.state_dict(), args.work / "checkpoint.pt")
    if args.gguf:
        write_gguf(args.gguf, model, tokenizer)
    result = {"steps": step, "tokens": tokens, "minutes": args.minutes}
    model.eval()
    print(json.dumps(result | report(model, tokenizer, heldout)), file=log, flush=True)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for checkpoint, tokenizer and log")
    parser.add_argument("--gguf", type=Path, help="file to write at the end")
    parser.add_argument("--minutes", type=float, default=45, help="wall time to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8192, help="tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="compute matrices in bfloat16")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--resume", action="store_true", help="start from the checkpoint")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
