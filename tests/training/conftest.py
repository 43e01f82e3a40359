"""A small codec for the tests of its training."""

import pytest
import torch
from transformers import MimiModel

from training import books, codec
from training.spec import MIMI

SMALL = {**MIMI, "num_filters": 4, "hidden_size": 64, "upsample_groups": 64}


@pytest.fixture
def small() -> MimiModel:
    """Random weights; the codes to speak in have no places yet."""
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.spec.MIMI", SMALL)
        model = codec.start(None).eval()
    books.displace(model)
    return model
