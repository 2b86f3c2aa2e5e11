"""Several requests to the backend that are one request of the client: the prompts of a completion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2

_MAX_WAITING = 16
_Pulled = tuple[int, Any, Exception | None]


async def joined(
    streams: Sequence[AsyncIterator[Any]], num_choices: int
) -> AsyncIterator[generate_service_pb2.GenerateResponse]:
    """One stream of all: the choices of stream i are counted from i * num_choices, the tokens of all are added up."""
    waiting: asyncio.Queue[_Pulled] = asyncio.Queue(_MAX_WAITING)
    tasks = [asyncio.create_task(_pull(index, stream, waiting)) for index, stream in enumerate(streams)]
    done: dict[int, pb.Done] = {}
    is_started = False
    try:
        while len(done) < len(streams):
            index, message, failure = await waiting.get()
            if failure is not None:
                raise failure
            event = getattr(message, message.WhichOneof("event"))
            if isinstance(event, pb.Started):
                if not is_started:
                    yield message
                is_started = True
            elif isinstance(event, pb.Delta):
                event.choice += index * num_choices
                yield message
            elif isinstance(event, pb.Done):
                done[index] = event
                if num_choices == 1:
                    last = pb.Delta(choice=index, finish_reason=event.finish_reason)
                    yield generate_service_pb2.GenerateResponse(delta=last)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    total = done[0]
    for index in range(1, len(streams)):
        usage = done[index].usage
        for field in usage.DESCRIPTOR.fields:
            setattr(total.usage, field.name, getattr(total.usage, field.name) + getattr(usage, field.name))
    yield generate_service_pb2.GenerateResponse(done=total)


async def _pull(index: int, stream: Any, waiting: asyncio.Queue[_Pulled]) -> None:
    try:
        async with aclosing(stream):
            async for message in stream:
                await waiting.put((index, message, None))
    except Exception as failure:  # noqa: BLE001 - handed to whoever reads
        await waiting.put((index, None, failure))
