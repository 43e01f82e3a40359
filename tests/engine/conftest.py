"""Engines and checkpoints that the engine's tests share."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.loading import load_checkpoint
from csm_tts_plugin.engine.native import build
from tests.engine.tools import small_checkpoint, started

torch.set_num_threads(1)


@pytest.fixture
def native():
    """For tests of the C kernels: without gradients, and nothing of the library is kept."""
    with torch.inference_mode():
        yield
    build._shared.cache_clear()


@pytest.fixture(scope="session")
def tiny():
    """csm-tiny with its current weights; results are only compared with transformers."""
    return load_checkpoint(EngineConfig(model="tiny", device="cpu"))


@pytest.fixture(scope="session")
def small():
    """A random model that hardly ever ends by itself."""
    return small_checkpoint(3)


@pytest.fixture(scope="module")
def engine(small):
    engine = started(small, slots=4, queue=4)
    yield engine
    engine.stop()


@pytest.fixture
def seed(request):
    """A fresh seed for each run; a failing test shows it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed: {seed}")
    return seed


@pytest.fixture(scope="module", autouse=True)
def no_threads_left():
    """Fails if a module's tests leave an engine's thread running."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name == "csm-engine"]
    assert not left
