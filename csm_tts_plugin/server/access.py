"""Who may speak to the server, and from where."""

from __future__ import annotations

import hmac
import ipaddress

from aiohttp import web

from ..config import ServerConfig
from ..errors import AuthError, ConfigError


def check_bind(config: ServerConfig) -> None:
    """Raises ConfigError for an address that others can reach without a key."""
    if config.key is None and not _is_loopback(config.host):
        raise ConfigError(
            f"{config.host or 'Every address'} can be reached from outside: set CSM_ENGINE_KEY "
            "(or --key), or listen on 127.0.0.1."
        )


def same_key(given: str | None, key: str | None) -> bool:
    """Whether `given` opens a server with `key`; takes the same time wherever they differ."""
    if key is None:
        return True
    return given is not None and hmac.compare_digest(given.encode(), key.encode())


def bearer(request: web.Request) -> str | None:
    """The key in the Authorization header; None where there is no such header."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def require_key(request: web.Request, config: ServerConfig) -> None:
    """Raises AuthError."""
    if not same_key(bearer(request), config.key):
        raise wrong_key()


def wrong_key() -> AuthError:
    return AuthError("The key is missing or wrong; send the engine's CSM_ENGINE_KEY.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
