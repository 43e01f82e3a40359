"""The cost of imports, and partial installations."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import csm_tts_plugin

ROOT = Path(__file__).resolve().parents[2]

BLOCKER = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def installed(name, path=None, target=None):
    return None if name.split(".")[0] in BLOCKED else find(name, path, target)

PathFinder.find_spec = installed
"""

SPEAK = """
import threading
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.api import Audio, Done
from csm_tts_plugin.engine.core import Engine

engine = Engine(EngineConfig(model="tiny", device="cpu", slots=1, threads=1))
engine.start()
engine.wait_ready(100)
events, over = [], threading.Event()

def sink(event):
    events.append(event)
    if not isinstance(event, Audio):
        over.set()

engine.say(engine.open(), "Hello.", sink, max_seconds=0.24, live=False)
assert over.wait(100)
engine.stop()
assert isinstance(events[-1], Done), events[-1]
assert all(len(event.samples) == 1920 for event in events[:-1])
print(events[-1].frames)
"""


def python(code: str, seconds: float = 150.0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return {name.split(".")[0] for name in python(code).split()}


HEAVY = {"torch", "torchaudio", "transformers", "livekit"}


@pytest.mark.parametrize(
    "module",
    [
        "csm_tts_plugin",
        "csm_tts_plugin.errors",
        "csm_tts_plugin.config",
        "csm_tts_plugin.wire.protocol",
        "csm_tts_plugin.engine.api",
        "csm_tts_plugin.client.engine",
        "csm_tts_plugin.server.app",
    ],
)
def test_it_imports_neither_torch_nor_livekit(module):
    assert not imported_by(f"import {module}") & HEAVY


def test_settings_and_errors_need_the_standard_library_alone():
    loaded = imported_by("import csm_tts_plugin.config, csm_tts_plugin.errors")
    foreign = loaded - set(sys.stdlib_module_names) - {"csm_tts_plugin"}
    before = imported_by("pass")
    assert not foreign - before


def test_the_engine_speaks_where_livekit_and_aiohttp_are_not_installed():
    blocked = "BLOCKED = {'livekit', 'aiohttp', 'prometheus_client', 'av', 'dotenv', 'soxr'}\n"
    frames = python(blocked + BLOCKER + SPEAK)
    assert 0 <= int(frames.splitlines()[-1]) <= 3


def test_the_blocker_of_these_tests_blocks():
    blocked = "BLOCKED = {'aiohttp'}\n"
    code = "\ntry:\n    import aiohttp\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert "No module named 'aiohttp'" in python(blocked + BLOCKER + code)


EXPORTED = {
    "TTS",
    "CallerVoiceAgent",
    "Consent",
    "ConsentPolicy",
    "Generator",
    "Voice",
    "__version__",
    "generate_streaming_audio",
    "load_csm_1b",
    "load_reference_audio",
}


def test_the_exported_names_are_those_promised():
    assert set(csm_tts_plugin.__all__) == EXPORTED
    assert dir(csm_tts_plugin) == sorted(EXPORTED)


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_every_exported_name_is_there(name):
    assert getattr(csm_tts_plugin, name) is not None


def test_paths_that_the_readme_named_before_the_move_stay():
    from csm_tts_plugin.client import EngineClient
    from csm_tts_plugin.client.engine import EngineClient as moved

    assert EngineClient is moved


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = csm_tts_plugin.no_such_name


def test_livekit_finds_the_plugin_where_it_looks_for_plugins():
    plugin = importlib.import_module("livekit.plugins.csm")
    assert plugin.TTS is csm_tts_plugin.TTS


def test_nothing_unpickles():
    """Weights are safetensors only: the package uses neither torch.load nor pickle."""
    found = []
    for path in (ROOT / "csm_tts_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            banned = {"pickle", "cPickle", "dill", "joblib", "torch.load", "marshal", "shelve"}
            found += [f"{path.name}: {name}" for name in names if name in banned]
    assert not found
