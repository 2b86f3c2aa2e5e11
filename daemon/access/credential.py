"""Where a client puts its API key."""

from __future__ import annotations

from collections.abc import Mapping


def credential_of(headers: Mapping[str, str]) -> str | None:
    """The key in lower-case headers or metadata: Authorization: Bearer, or x-api-key (Anthropic), or api-key (Azure)."""
    authorization = headers.get("authorization", "")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or headers.get("api-key") or None
