"""An Ollama registry: an OCI manifest by name, blobs by digest."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx2

from daemon.errors import ApiError
from daemon.store.blobs import MAX_TEXT_BYTES
from daemon.store.download import Wanted, get_small
from daemon.store.names import ModelName
from daemon.store.offer import Offer

MAX_MANIFEST_BYTES = 1 << 20
MAX_LAYERS = 64
MAX_BLOB_BYTES = 1 << 43
_TYPE = "application/vnd.ollama.image."
_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


def offer(name: ModelName, registry: str, client: httpx2.Client) -> Offer:
    """What the registry at the URL `registry` has for a name; "library/" is put before names of one part.  Raises ApiError."""
    parts = name.parts[1:] if len(name.parts) > 2 else name.parts
    repository = "/".join(parts if len(parts) > 1 else ("library", *parts))
    base = f"{registry.rstrip('/')}/v2/{repository}"
    manifest, headers = _manifest(client, f"{base}/manifests/{name.tag}", name)
    weights: list[Wanted] = []
    texts: dict[str, list[Wanted]] = {
        kind: [] for kind in ("template", "system", "params", "messages", "license")
    }
    for layer in manifest:
        kind = str(layer.get("mediaType", "")).removeprefix(_TYPE)
        if kind in ("adapter", "projector", "tensor"):
            what = {"adapter": "a LoRA adapter", "projector": "an image projector"}.get(
                kind, "unpacked tensors"
            )
            if kind == "projector":
                continue  # the text part serves without it
            raise ApiError("UNSUPPORTED_MODEL", f"{name} comes with {what}, which quantd does not serve.")
        if kind != "model" and kind not in texts:
            continue
        wanted = _wanted(layer, base, headers, name)
        if kind == "model":
            weights.append(wanted)
        elif wanted.size_bytes <= MAX_TEXT_BYTES:
            texts[kind].append(wanted)
    if len(weights) != 1:
        raise ApiError(
            "UNSUPPORTED_MODEL", f"{name} has {len(weights)} model files in its manifest; one is served."
        )

    def last(kind: str) -> Wanted | None:
        return texts[kind][-1] if texts[kind] else None

    return Offer(
        weights=tuple(weights),
        source=f"{urlsplit(registry).netloc}/{repository}:{name.tag}",
        template=last("template"),
        system=last("system"),
        parameters=last("params"),
        messages=last("messages"),
        licenses=tuple(texts["license"][:16]),
    )


def _manifest(
    client: httpx2.Client, url: str, name: ModelName
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The layers, and the headers with which blobs are asked for."""
    headers: dict[str, str] = {}
    answer = get_small(client, url, {"Accept": _ACCEPT}, MAX_MANIFEST_BYTES)
    if answer.status_code == 401:
        headers["Authorization"] = f"Bearer {_token(client, answer.headers.get('www-authenticate', ''), url)}"
        answer = get_small(client, url, {"Accept": _ACCEPT, **headers}, MAX_MANIFEST_BYTES)
        if answer.status_code == 401:
            host = urlsplit(url).hostname
            raise ApiError(
                "PERMISSION_DENIED",
                f"{host} does not let us download {name}; it may be private.",
                field="name",
            )
    try:
        layers = json.loads(answer.content)["layers"]
        if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ApiError("DOWNLOAD_FAILED", f"{urlsplit(url).hostname} gave no manifest for {name}.") from None
    return layers[:MAX_LAYERS], headers


def _token(client: httpx2.Client, challenge: str, url: str) -> str:
    """The token that anybody gets, from where the registry says."""
    fields = dict(_CHALLENGE.findall(challenge))
    realm = urljoin(url, fields.get("realm", ""))
    if not challenge.lower().startswith("bearer ") or "realm" not in fields:
        raise ApiError(
            "PERMISSION_DENIED", f"{urlsplit(url).hostname} asks for a login that quantd does not know."
        )
    if urlsplit(realm).scheme != urlsplit(url).scheme:
        raise ApiError("DOWNLOAD_FAILED", f"{urlsplit(url).hostname} sends us elsewhere for a key; refused.")
    query = urlencode({key: fields[key] for key in ("service", "scope") if key in fields})
    answer = get_small(client, f"{realm}?{query}" if query else realm, {}, MAX_MANIFEST_BYTES)
    try:
        facts = json.loads(answer.content)
        token = facts.get("token") or facts.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise ApiError("DOWNLOAD_FAILED", f"{urlsplit(realm).hostname} gave no key.")
    return token


def _wanted(layer: dict[str, Any], base: str, headers: dict[str, str], name: ModelName) -> Wanted:
    digest, size = layer.get("digest"), layer.get("size")
    match = re.fullmatch(r"sha256:([0-9a-f]{64})", digest) if isinstance(digest, str) else None
    if (
        match is None
        or isinstance(size, bool)
        or not isinstance(size, int)
        or not 0 <= size <= MAX_BLOB_BYTES
    ):
        raise ApiError("DOWNLOAD_FAILED", f"The manifest of {name} names a blob that cannot be.")
    return Wanted(f"{base}/blobs/{digest}", match[1], size, "", headers)
