"""Settings of the daemon: flags > QUANTD_* variables > TOML file > defaults, checked once, all errors at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from daemon.addresses import Address
from daemon.errors import ApiError
from daemon.keep_alive import parse_keep_alive
from daemon.sizes import parse_size
from daemon.tls import TlsFiles
from daemon.variables import foreign_values

DEFAULT_FILE = Path("/etc/quantd/quantd.toml")
PREFIX = "QUANTD_"


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _keep_alive(value: object) -> object:
    return parse_keep_alive(value) if isinstance(value, str | int | float) else value


def _origins(value: object) -> object:
    return tuple(one.strip() for one in value.split(",") if one.strip()) if isinstance(value, str) else value


Origin = Annotated[str, Field(pattern=r"^(\*|[a-z*][a-z0-9+.*-]*://\S+)$", max_length=256)]
Listener = Annotated[Address, BeforeValidator(_address)]
Size = Annotated[int, BeforeValidator(_size)]
KeepAlive = Annotated[float, BeforeValidator(_keep_alive)]


class Settings(BaseModel):
    """Everything that can be set.  A field's name is its TOML key; flags have dashes, variables QUANTD_ and capitals."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        arbitrary_types_allowed=True,
        str_max_length=4096,
    )

    # What to serve: a GGUF file, or a name in models_dir.
    model: str | None = None
    # Folder of GGUF files that clients may name, list, load and quantize.
    models_dir: Path | None = None
    # Folder for quantizations that clients ask for; None: models_dir.  Models in it are served too.
    output_dir: Path | None = None
    # Folder of the model store (quantd pull, create, cp); None: in the service's state directory, otherwise
    # ~/.local/share/quantd/store.
    store_dir: Path | None = None
    # Where models are pulled from: the Hugging Face Hub, and a registry of Ollama's kind.
    hub: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/.*)?$")] = "https://huggingface.co"
    registry: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/.*)?$")] = "https://registry.ollama.ai"
    # API keys (`quantd key`): with a file, every request needs one of its keys.
    keys_file: Path | None = None
    # TLS for both listeners: a certificate and its key, PEM.  With a client CA, clients must show a certificate too.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    # Listeners that other machines can reach without keys (or client certificates) and TLS: that takes a word of consent.
    # These five stand before the listeners, because their check asks for them.
    allow_remote: bool = False
    http: Listener = Address("127.0.0.1", 11434)
    grpc: Listener = Address("127.0.0.1", 50051)
    # Origins of web pages that may use the HTTP listener beside those of this machine, as browsers send them; * stands for
    # any characters: "https://chat.example", "chrome-extension://*".  A variable separates them by commas.
    origins: Annotated[tuple[Origin, ...], BeforeValidator(_origins), Field(max_length=64)] = ()
    # Bytes of the KV arena; None: 1 GiB, or less where the memory plan says so.
    kv_budget: Annotated[Size, Field(ge=2**16, le=2**50)] | None = None
    kv_type: Literal["f16", "q8_0"] = "f16"
    # Keep computed prefixes in idle pages of the arena, for later requests that begin with them.
    prefix_cache: bool = True
    # Guess tokens of answers that repeat their own text or prompt ("auto": where that is faster), without changing them.
    speculate: Literal["auto", "off"] = "auto"
    # Sessions that share the arena.
    sessions: Annotated[int, Field(ge=1, le=256)] = 4
    # Tokens of one session; None: what the model and the arena give, at most 4096.
    context: Annotated[int, Field(ge=16, le=2**24)] | None = None
    # Threads of the native core; None: all cores that this process may use.
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    # Requests that may wait for a session; one more is refused.
    max_waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    # Prompt tokens that may wait in all: a few long prompts are as much waiting as many short ones.
    max_waiting_tokens: Annotated[int, Field(ge=1, le=2**40)] = 262_144
    # Seconds that a request may wait for a session.
    max_wait_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    # Models in memory at once; the memory plan may allow fewer.
    max_models: Annotated[int, Field(ge=1, le=16)] = 3
    # How long a model that a request loaded stays after its last request; -1: for ever.
    keep_alive: KeepAlive = 300.0
    # Seconds that a request without a deadline waits for its model to be loaded.
    load_timeout: Annotated[KeepAlive, Field(gt=0, le=86400)] = 300.0
    # When the engine of one model of several fails: take that model out of memory, or end the daemon ("exit"), to be restarted.
    engine_failure: Literal["unload", "exit"] = "unload"
    # Seconds that running requests get to end after SIGTERM.
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 20.0
    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def store_folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The folder of the model store."""
        if self.store_dir is not None:
            return self.store_dir
        state = environ.get("STATE_DIRECTORY", "").split(":")[0]
        if state:
            return Path(state) / "store"
        data = environ.get("XDG_DATA_HOME", "")
        home = Path(data) if data.startswith("/") else Path(environ.get("HOME") or "/") / ".local" / "share"
        return home / "quantd" / "store"

    @field_validator("tls_key")
    @classmethod
    def _key_with_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_cert") is None):
            raise ValueError("TLS needs both files: --tls-cert and --tls-key (tls_cert and tls_key)")
        return key

    @field_validator("tls_client_ca")
    @classmethod
    def _client_ca_with_tls(cls, client_ca: Path | None, info: ValidationInfo) -> Path | None:
        if client_ca is not None and info.data.get("tls_cert") is None:
            raise ValueError("client certificates need TLS: give --tls-cert and --tls-key too")
        return client_ca

    @field_validator("http", "grpc")
    @classmethod
    def _reachable_only_on_purpose(cls, address: Address, info: ValidationInfo) -> Address:
        if info.field_name == "http" and address.is_unix:
            raise ValueError("the HTTP listener needs HOST:PORT, not a unix socket")
        # What is missing from the data was wrong itself: then that is the error to tell.
        known = info.data
        if address.is_loopback or known.get("allow_remote", True):
            return address
        lacks = []
        if known.get("keys_file", True) is None and known.get("tls_client_ca", True) is None:
            lacks.append("keys (--keys-file, made by `quantd key add`)")
        if known.get("tls_cert", True) is None:
            lacks.append("TLS (--tls-cert and --tls-key)")
        if lacks:
            raise ValueError(
                f"other machines could reach it, and it has no {' and no '.join(lacks)}; give them, "
                "listen on 127.0.0.1, or allow it with --allow-remote (allow_remote = true) behind a proxy or firewall"
            )
        return address

    @property
    def tls(self) -> TlsFiles | None:
        """The files for the listeners; None: plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)


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
    for name, value, variable in foreign_values(environ):
        values[name], sources[name] = value, variable
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
