"""A LiveKit server on loopback. Each has its own ports and keys, so several can run at once."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from .children import Child
from .setup_tools import TOOLS

READY_S = 20.0


class ServerError(Exception):
    """`str(error)` is one line: why the server does not run."""


@dataclass
class LiveKitServer:
    """`with LiveKitServer(log) as server:` runs it until the end of the block."""

    log: Path
    key: str = "call"
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    port: int = 0
    redis: str = ""
    """Address of a Redis server, which LiveKit needs for SIP trunks and dispatch rules."""
    _child: Child | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def keys(self) -> dict[str, str]:
        """The environment variables that point a client at this server."""
        names = ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")
        return dict(zip(names, (self.url, self.key, self.secret), strict=True))

    @property
    def last_word(self) -> str | None:
        """The last line of its output if it has ended by itself; None while it runs."""
        if self._child is None or self._child.code is None:
            return None
        return self._child.last_line()

    def __enter__(self) -> LiveKitServer:
        for _ in range(3):
            self._start()
            if self._answers():
                return self
            self.__exit__()  # another process may have taken a port first
        assert self._child is not None
        raise ServerError(f"the LiveKit server does not start: {self._child.last_line()}")

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.stop(5.0)

    def _start(self) -> None:
        binary = TOOLS / "bin" / "livekit-server"
        found = str(binary) if binary.exists() else shutil.which("livekit-server")
        if found is None:
            raise ServerError("there is no livekit-server; run `make setup`")
        self.port, tcp, udp = _free_ports()
        config = {
            "port": self.port,
            "bind_addresses": ["127.0.0.1"],
            "rtc": {
                "tcp_port": tcp,
                "udp_port": udp,
                "node_ip": "127.0.0.1",
                "use_external_ip": False,
                "enable_loopback_candidate": True,
            },
            "keys": {self.key: self.secret},
            "logging": {"level": "info"},
            **({"redis": {"address": self.redis}} if self.redis else {}),
        }
        # JSON is valid YAML. Other users can read a command line, but not the environment.
        env = {**os.environ, "LIVEKIT_CONFIG": json.dumps(config)}
        self._child = Child([found], self.log, env=env)

    def _answers(self) -> bool:
        assert self._child is not None
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self._child.code is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2):
                    return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        return False


def _free_ports() -> tuple[int, int, int]:
    kinds = (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM)
    sockets = [socket.socket(socket.AF_INET, kind) for kind in kinds]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        http, tcp, udp = (one.getsockname()[1] for one in sockets)
        return http, tcp, udp
    finally:
        for one in sockets:
            one.close()
