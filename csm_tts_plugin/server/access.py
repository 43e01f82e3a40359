"""Keys of the server, and on which addresses it may listen without one."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from aiohttp import web

from ..config import ServerConfig
from ..errors import AuthError, ConfigError
from .origins import check_origins, is_loopback


def check_bind(config: ServerConfig) -> None:
    """Raises ConfigError for an address, or allowed web pages, that need a key
    where none is set.
    """
    if not config.keys and not is_loopback(config.host):
        raise ConfigError(
            f"{config.host or 'Every address'} can be reached from outside: set CSM_ENGINE_KEY "
            "(or --key), or listen on 127.0.0.1."
        )
    check_origins(config)


def which_key(given: str | None, keys: Sequence[str]) -> int | None:
    """The index of `given` among `keys`, None if it is not one of them; 0 if there are no keys.

    Takes constant time, so that nothing can be learned about a key from it.
    """
    if not keys:
        return 0
    shown = (given or "").encode("utf-8", "surrogatepass")
    same = [hmac.compare_digest(shown, key.encode("utf-8", "surrogatepass")) for key in keys]
    return same.index(True) if any(same) else None


def bearer(request: web.Request) -> str | None:
    """The key in the Authorization header, None without such a header."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def require_key(request: web.Request, config: ServerConfig) -> int:
    """The index of the request's key. Raises AuthError."""
    number = which_key(bearer(request), config.keys)
    if number is None:
        raise wrong_key()
    return number


def wrong_key() -> AuthError:
    return AuthError("The key is missing or wrong; send the engine's CSM_ENGINE_KEY.")
