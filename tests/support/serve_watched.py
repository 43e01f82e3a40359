"""`serve` with the real engine, which reports periodically whose voices it holds: a JSON object in
the file that ENGINE_VOICES names, with `cached` (references read, as positions or as keys and
values), `used` (private voices that conversations speak in) and `turns` (of callers, in all).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from csm_tts_plugin.caller.voice import CALLER
from csm_tts_plugin.commands import serve
from csm_tts_plugin.commands.options import load_engine

VOICES = "ENGINE_VOICES"
_EACH_S = 0.1


def voices(engine) -> dict:
    if engine._rounds is None:
        return {"cached": [], "used": [], "turns": 0}
    conversations = list(engine._conversations.values())
    cached = {*list(engine._rounds._voices), *list(engine._rounds._runner._voices)}
    used = {c.voice.key for c in conversations if c.voice is not None and c.voice.private}
    turns = sum(record.name == CALLER for c in conversations for record in list(c.records))
    return {"cached": sorted(cached), "used": sorted(used), "turns": turns}


def tell(engine, path: Path) -> None:
    while True:
        try:
            text = json.dumps(voices(engine))
        except RuntimeError:  # the engine's thread changed something meanwhile
            continue
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)
        time.sleep(_EACH_S)


def make_engine(config):
    # csm-tiny's folder excludes references and turns from the context; they are counted here.
    engine = load_engine(replace(config, whole_context=True))
    path = Path(os.environ[VOICES])
    threading.Thread(target=tell, args=(engine, path), name="voices", daemon=True).start()
    return engine


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    serve.add(parser)
    sys.exit(serve.run(parser.parse_args(), make_engine))
