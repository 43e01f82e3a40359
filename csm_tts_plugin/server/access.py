"""Who may speak to the server, and from where."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence

from aiohttp import web

from ..config import ServerConfig
from ..errors import AuthError, ConfigError


def check_bind(config: ServerConfig) -> None:
    """Raises ConfigError for an address that others can reach without a key."""
    if not config.keys and not _is_loopback(config.host):
        raise ConfigError(
            f"{config.host or 'Every address'} can be reached from outside: set CSM_ENGINE_KEY "
            "(or --key), or listen on 127.0.0.1."
        )


def which_key(given: str | None, keys: Sequence[str]) -> int | None:
    """The number of the key that `given` is, None where it is none of them; 0 where none is asked.

    Takes the same time wherever they differ, and whichever it is.
    """
    if not keys:
        return 0
    shown = (given or "").encode("utf-8", "surrogatepass")
    same = [hmac.compare_digest(shown, key.encode("utf-8", "surrogatepass")) for key in keys]
    return same.index(True) if any(same) else None


def bearer(request: web.Request) -> str | None:
    """The key in the Authorization header; None where there is no such header."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def require_key(request: web.Request, config: ServerConfig) -> int:
    """The number of the request's key. Raises AuthError."""
    number = which_key(bearer(request), config.keys)
    if number is None:
        raise wrong_key()
    return number


def wrong_key() -> AuthError:
    return AuthError("The key is missing or wrong; send the engine's CSM_ENGINE_KEY.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
