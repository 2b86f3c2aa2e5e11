"""TokenizerService: text to token ids and back, in the text workers."""

from __future__ import annotations

import asyncio

from daemon.services.call import Call
from daemon.services.constraint import Constraints
from daemon.services.host import ModelHost
from daemon.services.options import MAX_TEXT_BYTES, invalid
from daemon.services.prompt import check_ids, check_messages, prepare_chat
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import tokenizer_service_pb2 as rpc

MAX_IDS = 1_048_576


class TokenizerService:
    """The vocabulary of the served model."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._constraints = Constraints()

    async def tokenize(self, request: rpc.TokenizeRequest, call: Call) -> rpc.TokenizeResponse:
        """Splits text into token ids."""
        n_bytes = len(request.text.encode())
        if n_bytes > MAX_TEXT_BYTES:
            raise invalid("text", f"at most {MAX_TEXT_BYTES} bytes, not {n_bytes}")
        async with self._host.admit(request.model, deadline=call.deadline) as served:
            encode = served.model.tokenizer.encode
            ids = await asyncio.get_running_loop().run_in_executor(
                self._host.text_workers,
                lambda: encode(
                    request.text, add_special=not request.no_special, parse_special=request.parse_special
                ),
            )
        return rpc.TokenizeResponse(ids=ids)

    async def detokenize(self, request: rpc.DetokenizeRequest, call: Call) -> rpc.DetokenizeResponse:
        """Joins token ids to text."""
        if len(request.ids) > MAX_IDS:
            raise invalid("ids", f"at most {MAX_IDS} ids, not {len(request.ids)}")
        async with self._host.admit(request.model, deadline=call.deadline) as served:
            tokenizer = served.model.tokenizer

            def decode() -> str:
                ids = list(request.ids)
                if ids:
                    check_ids("ids", ids, tokenizer.n_vocab)
                return str(tokenizer.decode(ids))

            text = await asyncio.get_running_loop().run_in_executor(self._host.text_workers, decode)
        return rpc.DetokenizeResponse(text=text)

    async def render_chat(self, request: rpc.RenderChatRequest, call: Call) -> rpc.RenderChatResponse:
        """Renders a conversation as Chat would, without answering it."""
        del call
        chat = pb.ChatRequest()
        chat.CopyFrom(request.request)
        chat.ClearField("options")
        async with self._host.admit(chat.model) as served:
            check_messages(chat, served)
            prompt = await asyncio.get_running_loop().run_in_executor(
                self._host.text_workers, prepare_chat, chat, served, self._constraints
            )
        return rpc.RenderChatResponse(prompt=prompt.text, ids=prompt.ids)
