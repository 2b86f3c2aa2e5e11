"""Settings of the daemon: flags > QUANTD_* variables > TOML file > defaults, checked once, all errors at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.addresses import Address
from daemon.errors import ApiError
from daemon.sizes import parse_size

DEFAULT_FILE = Path("/etc/quantd/quantd.toml")
PREFIX = "QUANTD_"


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Listener = Annotated[Address, NoDecode, BeforeValidator(_address)]
Size = Annotated[int, BeforeValidator(_size)]


class Settings(BaseSettings):
    """Everything that can be set.  A field's name is its TOML key; flags have dashes, variables QUANTD_ and capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, arbitrary_types_allowed=True, str_max_length=4096
    )

    # What to serve: a GGUF file, or a name in models_dir.
    model: str | None = None
    # Folder of GGUF files that clients may name, list, load and quantize.
    models_dir: Path | None = None
    # Folder for quantizations that clients ask for; None: models_dir.  Models in it are served too.
    output_dir: Path | None = None
    # Listeners that other machines can reach: this version has no keys and no TLS, so it takes a word of consent.
    # Stands before the listeners, because their check asks for it.
    allow_remote: bool = False
    http: Listener = Address("127.0.0.1", 11434)
    grpc: Listener = Address("127.0.0.1", 50051)
    # Bytes of the KV arena; None: 1 GiB, or less where the memory plan says so.
    kv_budget: Annotated[Size, Field(ge=2**16, le=2**50)] | None = None
    kv_type: Literal["f16", "q8_0"] = "f16"
    # Keep computed prefixes in idle pages of the arena, for later requests that begin with them.
    prefix_cache: bool = True
    # Sessions that share the arena.
    sessions: Annotated[int, Field(ge=1, le=256)] = 4
    # Tokens of one session; None: what the model and the arena give, at most 4096.
    context: Annotated[int, Field(ge=16, le=2**24)] | None = None
    # Threads of the native core; None: all cores that this process may use.
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    # Requests that may wait for a session; one more is refused.
    max_waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    # Seconds that running requests get to end after SIGTERM.
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 20.0
    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("http", "grpc")
    @classmethod
    def _reachable_only_on_purpose(cls, address: Address, info: ValidationInfo) -> Address:
        if info.field_name == "http" and address.is_unix:
            raise ValueError("the HTTP listener needs HOST:PORT, not a unix socket")
        # allow_remote is missing from the data if it was wrong itself: then that is the error to tell.
        if not address.is_loopback and not info.data.get("allow_remote", True):
            raise ValueError(
                "other machines could reach it, and this version has no keys and no TLS; "
                "listen on 127.0.0.1, or allow it with --allow-remote (allow_remote = true) behind a proxy or firewall"
            )
        return address

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` gives: it reads the other sources itself, to know which value came from where."""
        del settings_cls
        return (init_settings,)


def load(
    flags: Mapping[str, Any], file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings from all sources.

    `flags` holds what the command line gave (None: not given).  `file` must exist if given; otherwise QUANTD_CONFIG,
    otherwise /etc/quantd/quantd.toml if there.  Raises ApiError INVALID_CONFIG (exit 78), or INVALID_ARGUMENT (exit 64)
    when only flags are wrong, with every error, its key and its source.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    from_file, file_name = _read_file(file, environ)
    for key, value in from_file.items():
        name = key.replace("-", "_")
        values[name], sources[name] = value, file_name
    if environ.get("OLLAMA_MAX_KV_CACHE"):
        values["kv_budget"], sources["kv_budget"] = environ["OLLAMA_MAX_KV_CACHE"], "OLLAMA_MAX_KV_CACHE"
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if environ.get(variable):
            values[name], sources[name] = environ[variable], variable
    for name, value in flags.items():
        if value is not None:
            values[name], sources[name] = value, "--" + name.replace("_", "-")
    try:
        return Settings(**values)
    except ValidationError as failure:
        raise _explain(failure, sources) from None


def _read_file(file: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    if file is None and environ.get("QUANTD_CONFIG"):
        file = Path(environ["QUANTD_CONFIG"])
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    if file is None:
        return {}, ""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")), str(file)
    except OSError as failure:
        raise ApiError("INVALID_CONFIG", f"{file}: {failure.strerror}") from failure
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise ApiError("INVALID_CONFIG", f"{file}: {failure}") from failure


def _explain(failure: ValidationError, sources: Mapping[str, str]) -> ApiError:
    lines = []
    used = set()
    for error in failure.errors():
        name = str(error["loc"][0]) if error["loc"] else ""
        source = sources.get(name, "")
        used.add(source)
        given = f" = {str(error['input'])[:80]!r}" if name else ""
        message = (
            "no such setting"
            if error["type"] == "extra_forbidden"
            else error["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{name}{given} (from {source}): {message}" if name else message)
    only_flags = all(source.startswith("--") for source in used if source) and any(used)
    reason = "INVALID_ARGUMENT" if only_flags else "INVALID_CONFIG"
    head = f"{len(lines)} settings are wrong:\n  " if len(lines) > 1 else "wrong setting: "
    return ApiError(reason, head + "\n  ".join(lines))
