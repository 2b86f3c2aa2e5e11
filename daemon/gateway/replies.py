"""Plain JSON answers and the one place where failures become HTTP."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from daemon.errors import ApiError, openai_body, retry_after_header, to_api_error
from daemon.log import get_logger

log = get_logger("quantd.gateway")

# Fields of quantd.v1 messages that OpenAI's JSON knows by another name.
_PARAMS = {
    "text": "prompt",
    "tokens": "prompt",
    "tokens.ids": "prompt",
    "name": "model",
    "options.num_choices": "n",
    "options.constraint": "response_format",
    "options.constraint.json_schema": "response_format",
    "options.constraint.regex": "response_format",
    "options.constraint.lark": "response_format",
    "options.constraint.gbnf": "response_format",
    "options.constraint.choice": "response_format",
    "template_arguments": "chat_template_kwargs",
}


class JsonResponse(Response):
    """A JSON answer in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode `content`."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def error_body(failure: Exception, request_id: str) -> dict[str, Any]:
    """The body of OpenAI's API for any failure; one that nobody expected is logged and told without its text."""
    error = to_api_error(failure, request_id)
    log_unexpected(error, failure, request_id)
    return openai_body(error, param=_PARAMS.get(error.field))


def log_unexpected(error: ApiError, failure: Exception, request_id: str) -> None:
    """What nobody expected is told to the log alone."""
    if error.reason == "INTERNAL" and not isinstance(failure, ApiError):
        log.error("internal_error", request_id=request_id, exc_info=failure)


def error_response(failure: Exception, request_id: str) -> JsonResponse:
    """The answer to a request that failed before anything was sent."""
    error = to_api_error(failure, request_id)
    headers = {}
    retry_after = retry_after_header(error)
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse(error_body(failure, request_id), status_code=error.http_status, headers=headers)
