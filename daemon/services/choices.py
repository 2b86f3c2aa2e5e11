"""Several answers to one request: their events as one stream, and the best of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from daemon.services.answer import Answer
from quantd.v1 import generate_pb2 as pb

_Pulled = tuple[int, pb.Delta | pb.Done | None, Exception | None]
_MAX_WAITING = 64  # events that a slow reader leaves lying; then the answers wait too


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[pb.Delta | pb.Done, None]:
    """The events of all answers as they come: Deltas with their choice, the last of each with its reason, then one Done."""
    if len(answers) == 1:
        async with aclosing(answers[0].events()) as events:
            async for event in events:
                yield event
        return
    waiting: asyncio.Queue[_Pulled] = asyncio.Queue(_MAX_WAITING)
    tasks = [asyncio.create_task(_pull(answer, waiting)) for answer in answers]
    done: dict[int, pb.Done] = {}
    try:
        while len(done) < len(answers):
            choice, pulled, failure = await waiting.get()
            if failure is not None:
                raise failure
            if isinstance(pulled, pb.Done):
                done[choice] = pulled
                yield pb.Delta(choice=choice, finish_reason=pulled.finish_reason)
            elif pulled is not None:
                yield pulled
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    yield _joined([done[answer.choice] for answer in answers])


async def best(
    answers: Sequence[Answer], num: int, *, with_logprobs: bool
) -> AsyncGenerator[pb.Delta | pb.Done, None]:
    """The `num` likeliest of all answers, whole, likeliest first: by the mean log-probability of their tokens."""
    deltas: dict[int, list[pb.Delta]] = {answer.choice: [] for answer in answers}
    total: pb.Done | None = None
    async with aclosing(merged(answers)) as events:
        async for event in events:
            if isinstance(event, pb.Done):
                total = event
            else:
                deltas[event.choice].append(event)
    assert total is not None
    ranked = sorted(answers, key=lambda one: (-one.logprob_sum / max(1, one.completion_tokens), one.choice))
    for place, answer in enumerate(ranked[:num]):
        for delta in deltas[answer.choice]:
            delta.choice = place
            if not with_logprobs:
                delta.ClearField("logprobs")
            if (
                delta.text
                or delta.logprobs
                or delta.prompt_logprobs
                or delta.reasoning
                or delta.tool_calls
                or delta.finish_reason
            ):
                yield delta
    yield total


async def _pull(answer: Answer, waiting: asyncio.Queue[_Pulled]) -> None:
    try:
        async with aclosing(answer.events()) as events:
            async for event in events:
                await waiting.put((answer.choice, event, None))
    except Exception as failure:  # noqa: BLE001  handed to whoever reads
        await waiting.put((answer.choice, None, failure))


def _joined(ends: Sequence[pb.Done]) -> pb.Done:
    """One end for all: the first one's, with the tokens of all; the prompt counts once."""
    joined = pb.Done()
    joined.CopyFrom(ends[0])
    joined.usage.completion_tokens = sum(end.usage.completion_tokens for end in ends)
    joined.usage.reasoning_tokens = sum(end.usage.reasoning_tokens for end in ends)
    joined.timings.decode_ms = max(end.timings.decode_ms for end in ends)
    return joined
