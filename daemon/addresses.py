"""Listening addresses: HOST:PORT, [IPV6]:PORT or unix:PATH, and binding them so that failure has a name."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import ApiError

# Kernel limit of sun_path, minus the closing zero.
MAX_UNIX_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect.  `path` is set for a unix socket, `host` and `port` otherwise."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads HOST:PORT, [IPV6]:PORT or unix:PATH; ValueError says what is wrong."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or "\0" in path or len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
                raise ValueError(f"{text[:80]!r}: unix: needs a path of 1 to {MAX_UNIX_PATH_BYTES} bytes")
            return cls(path=path)
        host, separator, port = text.rpartition(":")
        if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{text[:80]!r} is no address: write HOST:PORT with a port of 0 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text[:80]!r}: write an IPv6 address in brackets, as in [::1]:{port}")
        return cls(host=host, port=int(port))

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_loopback(self) -> bool:
        """True: only programs on this machine can reach it."""
        if self.is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> Address:
        """The same host with the port that the kernel chose."""
        return Address(host=self.host, port=port, path=self.path)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(address: Address, what: str) -> socket.socket:
    """A listening socket; ADDRESS_IN_USE (exit code 69) names `what` and the address when it is taken."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as failure:
        raise ApiError("ADDRESS_IN_USE", f"{what} address {address}: the host name is unknown") from failure
    family, kind, protocol, _, target = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise _bind_error(address, what, failure) from failure
    return listener


def require_free(address: Address, what: str) -> None:
    """Fails as `listen` does if the address is taken; frees it again for a server that binds by itself.

    A unix socket file that nobody listens on is left by a process that was killed: it is removed.
    """
    if not address.is_unix:
        if address.port:
            listen(address, what).close()
        return
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    except OSError as failure:
        raise _bind_error(address, what, failure) from failure
    if not stat.S_ISSOCK(mode):
        raise ApiError("ADDRESS_IN_USE", f"{what} address {address}: the path exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            Path(address.path).unlink()
            return
        except OSError as failure:
            raise _bind_error(address, what, failure) from failure
    raise _bind_error(address, what, OSError(errno.EADDRINUSE, "in use"))


def _bind_error(address: Address, what: str, failure: OSError) -> ApiError:
    if failure.errno == errno.EADDRINUSE:
        why = "is in use by another process"
    elif failure.errno == errno.EACCES:
        why = "is not allowed for this user"
    elif failure.errno == errno.EADDRNOTAVAIL:
        why = "is no address of this machine"
    else:
        why = f"cannot be used ({failure.strerror})"
    place = f"port {address.port} ({address})" if not address.is_unix else str(address)
    return ApiError("ADDRESS_IN_USE", f"{what} {place} {why}")
