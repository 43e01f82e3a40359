"""The client of an engine over the network, and the conversation of a call."""

from .engine import EngineClient

__all__ = ["EngineClient"]
