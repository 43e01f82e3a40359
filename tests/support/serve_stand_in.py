"""`serve` as a process with the stand-in engine; `--model` selects its behaviour.

`ready`: it speaks. `slow`: it speaks slowly. `no-model`: loading fails. `crash`: it exits without a
message. `never`: it never gets ready.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from csm_tts_plugin.commands import serve
from csm_tts_plugin.errors import ModelLoadError
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.support.stand_in_engine import StandInEngine

MODES = {"ready": "normal", "slow": "slow"}


def make_engine(config):
    if config.model == "crash":
        os._exit(7)
    engine = StandInEngine(MODES.get(config.model, "not-ready"), slots=config.slots)
    if config.model == "no-model":
        engine.failure = ModelLoadError("There is no model no-model: name a folder or a hub id.")
    return engine


def start(config, server, on_progress):
    """An engine behind a router: this module again."""
    command = (sys.executable, "-m", "tests.support.serve_stand_in", "serve")
    if config.device == "broken":
        config = replace(config, model="no-model")
    return EngineProcess(config, server, on_progress=on_progress, command=command)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    serve.add(parser)
    sys.exit(serve.run(parser.parse_args(), make_engine, start))
