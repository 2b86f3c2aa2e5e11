"""The Hugging Face Hub: which files of a repository make the model that a name asks for."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import Any

import httpx2

from daemon.errors import ApiError
from daemon.store.download import Wanted
from daemon.store.names import DEFAULT_TAG, ModelName
from daemon.store.offer import Offer, Variant

HOSTS = ("hf.co", "huggingface.co")
MAX_FILES = 10_000
TIMEOUT_S = 30.0

# The order in which a file is chosen where the name asks for none: small enough for small machines, and good.
PREFERRED = (
    "Q4_K_M", "Q4_K_S", "Q4_K", "Q4_0", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q8_0", "MXFP4", "Q2_K", "F16", "BF16", "F32",
)  # fmt: skip

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=$|[-._/])",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"mmproj|imatrix|[-._]lora[-._]", re.IGNORECASE)


def offer(name: ModelName, endpoint: str) -> Offer:
    """What the Hub has for "hf.co/owner/repo[:QUANT]".

    The tag is a quantization ("Q4_K_M") or the name of a file; without one the best of PREFERRED is taken.  Raises ApiError.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, get_token, hf_hub_url  # noqa: PLC0415  takes a while
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError  # noqa: PLC0415
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415

    if len(name.parts) != 3:
        raise ApiError(
            "INVALID_ARGUMENT", f"{name.path}: write hf.co/owner/repo or hf.co/owner/repo:QUANT", field="name"
        )
    repo = "/".join(name.parts[1:])
    token = get_token()
    try:
        info = HfApi(endpoint=endpoint, token=token or False).model_info(
            repo, files_metadata=True, timeout=TIMEOUT_S
        )
    except GatedRepoError as failure:
        raise ApiError(
            "PERMISSION_DENIED",
            f"{repo} is gated: accept its terms on the Hub and set HF_TOKEN.",
            field="name",
        ) from failure
    except RepositoryNotFoundError as failure:
        raise ApiError(
            "MODEL_NOT_FOUND",
            f"The Hub has no repository {repo}, or it is private and HF_TOKEN gives no access.",
            field="name",
        ) from failure
    except HfHubHTTPError as failure:
        code = getattr(failure.response, "status_code", "an error")
        raise ApiError("DOWNLOAD_FAILED", f"The Hub answered {code} for {repo}.") from failure
    except (httpx2.TransportError, OSError) as failure:
        raise ApiError("DOWNLOAD_FAILED", f"The Hub cannot be reached: {str(failure)[:200]}.") from failure
    groups = group_files(list(info.siblings or [])[:MAX_FILES])
    stem = choose(groups, name)
    headers = build_hf_headers(token=token or False, library_name="quantd")
    weights = []
    for sibling in groups[stem]:
        path = sibling.rfilename
        if sibling.lfs is None or not re.fullmatch(r"[0-9a-f]{64}", str(sibling.lfs.sha256)):
            raise ApiError("DOWNLOAD_FAILED", f"The Hub gives no sha256 for {path} of {repo}.")
        url = hf_hub_url(repo, path, revision=info.sha, endpoint=endpoint)
        weights.append(
            Wanted(url, sibling.lfs.sha256, int(sibling.lfs.size), path.rsplit("/", 1)[-1], headers)
        )
    variants = tuple(
        Variant(quant_of(other) or other, sum(int(one.size or 0) for one in files))
        for other, files in groups.items()
    )
    source = f"{'/'.join(name.parts)} at {str(info.sha)[:12]}, {stem}"
    return Offer(tuple(weights), source, quant_of(stem) or "", variants)


def group_files(siblings: list[Any]) -> dict[str, list[Any]]:
    """GGUF models by the path of their file without ".gguf"; the files of a split model in order.

    Projectors, importance matrices and adapters are no models; a split model of which a file is missing is none either.
    """
    groups: defaultdict[str, list[Any]] = defaultdict(list)
    counts: dict[str, int] = {}
    for sibling in sorted(siblings, key=lambda one: str(one.rfilename)):
        path = str(sibling.rfilename)
        if not path.lower().endswith(".gguf") or _NO_MODEL.search(path):
            continue
        shard = _SHARD.fullmatch(path)
        stem = shard["stem"] if shard else path[: -len(".gguf")]
        counts[stem] = int(shard["count"]) if shard else 1
        groups[stem].append(sibling)
    return {stem: files for stem, files in groups.items() if len(files) == counts[stem]}


def quant_of(stem: str) -> str | None:
    """The quantization that a file's path names last: "Q4_K_M" of "x/model-Q4_K_M"."""
    found = [match["quant"].upper() for match in _QUANT.finditer(stem)]
    if not found:
        return None
    return {"FP16": "F16", "FP32": "F32"}.get(found[-1], found[-1])


def choose(groups: dict[str, list[Any]], name: ModelName) -> str:
    """The key of the group that the name asks for; MODEL_NOT_FOUND says what there is."""
    if not groups:
        raise ApiError("MODEL_NOT_FOUND", f"{name.path} holds no GGUF model.", field="name")
    if name.tag != DEFAULT_TAG:
        tag = name.tag.lower().removesuffix(".gguf")
        wanted = {"fp16": "f16", "fp32": "f32"}.get(tag, tag)
        for stem in groups:
            if (quant_of(stem) or "").lower() == wanted or stem.rsplit("/", 1)[-1].lower() == tag:
                return stem
        there = ", ".join(sorted({quant_of(stem) or stem.rsplit("/", 1)[-1] for stem in groups}))
        raise ApiError(
            "MODEL_NOT_FOUND", f"{name.path} has no {name.tag}; it has {there}"[:1000] + ".", field="name"
        )
    quants = {quant_of(stem): stem for stem in sorted(groups, reverse=True)}
    for quant in PREFERRED:
        if quant in quants:
            return quants[quant]
    return min(groups, key=lambda stem: sum(int(one.size or 0) for one in groups[stem]))
