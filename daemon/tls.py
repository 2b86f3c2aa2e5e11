"""Certificates for the listeners: one pair of files for HTTP and gRPC, and clients' certificates where they are asked for."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import ApiError

if TYPE_CHECKING:
    import grpc

MAX_PEM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.  `client_ca` set: a client must show a certificate that it signed (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises ApiError INVALID_CONFIG where the files are not a certificate and its key."""
        self.http_context()

    def http_context(self) -> ssl.SSLContext:
        """For the HTTP listener: TLS 1.2 and later, the library's own choice of ciphers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError, ValueError) as failure:
            named = f"{self.certificate}, {self.key}" + (f", {self.client_ca}" if self.client_ca else "")
            reason = getattr(failure, "strerror", None) or getattr(failure, "reason", None) or failure
            raise ApiError("INVALID_CONFIG", f"TLS files {named}: {reason}") from failure
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC listener, from the same files."""
        import grpc  # noqa: PLC0415  configuration is read long before gRPC is needed

        client_ca = None if self.client_ca is None else _read(self.client_ca)
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.certificate))],
            root_certificates=client_ca,
            require_client_auth=client_ca is not None,
        )


def client_credentials(
    ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """For a client of a gRPC listener whose certificate `ca` signed (None: an authority that this system trusts).

    `certificate` and `key` are the client's own, for mutual TLS.  Raises ApiError INVALID_CONFIG.
    """
    import grpc  # noqa: PLC0415

    return grpc.ssl_channel_credentials(
        None if ca is None else _read(ca),
        None if key is None else _read(key),
        None if certificate is None else _read(certificate),
    )


def _no_password() -> str:
    # OpenSSL would otherwise ask at the terminal, and a daemon would hang there.
    raise ValueError(
        "the key is encrypted; a daemon needs one without a passphrase, readable by its user only"
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as failure:
        raise ApiError("INVALID_CONFIG", f"{path}: {failure.strerror}") from failure
    if len(data) > MAX_PEM_BYTES:
        raise ApiError("INVALID_CONFIG", f"{path}: is larger than {MAX_PEM_BYTES} bytes; no PEM file is")
    return data
