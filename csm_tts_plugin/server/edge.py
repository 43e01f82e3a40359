"""Checks that an engine's server and the router apply to each request first."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web
from prometheus_client import Counter

from ..config import ServerConfig


@dataclass(frozen=True, slots=True)
class Edge:
    config: ServerConfig
    errors: Counter
    """Errors told to clients, by code."""


EDGE = web.AppKey("edge", Edge)
