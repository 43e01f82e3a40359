"""The import rules of `make check` catch violations and pass for this repository."""

from __future__ import annotations

import pytest

from scripts import check_imports
from scripts.check_imports import breaches
from scripts.setup_tools import ROOT


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("csm_tts_plugin/engine/core.py", "from livekit import rtc\n", "livekit"),
        ("csm_tts_plugin/server/app.py", "import livekit.agents\n", "livekit"),
        ("csm_tts_plugin/engine/core.py", "from ..server import app\n", "engine may not import"),
        ("csm_tts_plugin/audio/reference.py", "from .. import engine\n", "audio may not import"),
        ("csm_tts_plugin/server/app.py", "from csm_tts_plugin.tts import TTS\n", "server may not"),
        ("csm_tts_plugin/client/call.py", "from ..engine.core import Engine\n", "client may not"),
        ("csm_tts_plugin/wire/load.py", "from ..client import call\n", "wire may not"),
        ("csm_tts_plugin/errors.py", "x = 1\n" * 421, "421 lines"),
        ("training/lm.py", "import pickle\n", "pickle"),
        ("tests/wire/test_x.py", "import torch\ntorch.load('x')\n", "torch.load"),
        ("scripts/convert_x.py", "torch.load('x', weights_only=False)\n", "torch.load"),
        ("csm_tts_plugin/errors.py", "torch.load('x', weights_only=True)\n", "torch.load"),
    ],
)
def test_a_breach_is_found(path, source, what):
    found = list(breaches(path, source))
    assert len(found) == 1
    assert what in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "csm_tts_plugin/tts.py",
            "from livekit import rtc\nfrom .client.engine import EngineClient\n",
        ),
        ("csm_tts_plugin/offline/stt.py", "from livekit.agents import stt\n"),
        (
            "csm_tts_plugin/client/call.py",
            "from ..engine.api import Turn\nfrom ..errors import CsmError\n",
        ),
        ("csm_tts_plugin/engine/core.py", "from .api import Turn\nfrom ..audio import resample\n"),
        ("agent.py", "from livekit import agents\nimport csm_tts_plugin\n"),
        ("csm_tts_plugin/errors.py", "x = 1\n" * 420),
        ("scripts/convert_x.py", "torch.load('x', weights_only=True)\n"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert list(breaches(path, source)) == []


def test_the_package_itself_keeps_the_rules():
    for name in check_imports.tracked_files():
        if name.startswith("csm_tts_plugin/"):
            assert list(breaches(name, (ROOT / name).read_text())) == []
