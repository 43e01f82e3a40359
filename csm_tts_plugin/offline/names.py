"""Checks the names in `AGENT_STT` and `AGENT_LLM`. Independent of LiveKit."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from ..config import AgentConfig
from ..errors import ConfigError, install


def check_names(config: AgentConfig, env: Mapping[str, str]) -> None:
    """Raises ConfigError if a name is unknown or lacks its endpoint."""
    for variable, name in (("AGENT_STT", config.stt), ("AGENT_LLM", config.llm)):
        endpoint = env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL")
        if name.startswith("openai:") and not endpoint:
            raise ConfigError(f"{variable}={name} needs OPENAI_API_KEY, or OPENAI_BASE_URL.")
        if name != "offline" and "/" not in name and not name.startswith("openai:"):
            raise ConfigError(
                f"{variable}={name} is unknown; take offline, a LiveKit Inference name such as"
                " openai/gpt-4.1-mini, or openai:<model> with OPENAI_BASE_URL."
            )


def check_installed(config: AgentConfig) -> None:
    """Raises ConfigError if a package that these names need is not installed."""
    for variable, name in (("AGENT_STT", config.stt), ("AGENT_LLM", config.llm)):
        needs = {"livekit.plugins.openai": "agent"} if name.startswith("openai:") else {}
        if name == "offline":
            needs = {"faster_whisper": "offline"}
            if variable == "AGENT_LLM":
                needs = {"livekit.plugins.openai": "agent", "xllamacpp": "offline"}
        for module, extra in needs.items():
            if importlib.util.find_spec(module) is None:
                raise ConfigError(f"{variable}={name} needs {module}; {install(extra)}.")
