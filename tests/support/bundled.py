"""What the bundled model makes of a caller's voice, as its folder says."""

from __future__ import annotations

import json
from pathlib import Path

TINY = Path(__file__).parents[2] / "csm_tts_plugin" / "assets" / "tiny"


def tiny_follows() -> str | None:
    """What replies of `tiny` take from a reference; None: nothing. `tiny` clones no voice."""
    context = json.loads((TINY / "generation_config.json").read_text())["csm_context"]
    follows: str | None = context.get("follows")
    assert context["reference_seconds"] == 0 or follows, "the tests know no tiny that clones"
    return follows if context["reference_seconds"] else None
