"""sd_notify: readiness, status and watchdog pings, without a library (the protocol is one datagram).

Source: sd_notify(3).  Every call is a no-op where systemd did not start us (NOTIFY_SOCKET unset).
"""

from __future__ import annotations

import os
import socket


class Notifier:
    """Talks to the service manager over its datagram socket; failures are never fatal."""

    def __init__(self, address: str | None, watchdog_interval_s: float | None) -> None:
        """`address` as in NOTIFY_SOCKET; "@name" is an abstract socket."""
        self._address = address
        self.watchdog_interval_s = watchdog_interval_s

    @classmethod
    def from_environment(cls, environ: dict[str, str] | os._Environ[str] = os.environ) -> Notifier:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; the ping interval is a third of the limit."""
        interval = None
        usec = environ.get("WATCHDOG_USEC", "")
        if (
            usec.isdigit()
            and int(usec) > 0
            and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        ):
            interval = int(usec) / 1e6 / 3
        return cls(environ.get("NOTIFY_SOCKET") or None, interval)

    @property
    def enabled(self) -> bool:
        """True: a service manager listens."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """The model is mapped and a warm-up step ran."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}")

    def extend_start(self, seconds: float) -> None:
        """Asks for more time to start, while a large model is being mapped."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """The event loop and the engine are alive; call it only after checking both."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """No new requests; running ones are finished."""
        self._send("STOPPING=1\nSTATUS=draining")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as channel:
                channel.sendto(message.encode(), address)
        except OSError:
            # A service manager that is gone or busy must not stop the service.
            return


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:256]
