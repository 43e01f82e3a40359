"""The depth decoder in 8 bits: close to the exact numbers, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.layers import EightBit
from csm_tts_plugin.engine.weights import PackedCsm
from tests.engine.tools import ByHand, alone, say, small_checkpoint
from tests.support.models import small_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_off_by_the_rounding_of_its_weights_at_most(dtype, seed):
    torch.manual_seed(seed)
    weight = torch.randn(64, 96).to(dtype)
    x = torch.randn(3, 5, 64).to(dtype)
    eight = EightBit(weight)
    step = weight.float().abs().amax(dim=0) / 127
    # Half a quantisation step for each weight, plus the rounding of bfloat16 itself.
    most = 0.5 * step * x.float().abs().sum(dim=-1, keepdim=True)
    own = 0.0 if dtype == torch.float32 else 0.02 * (x.float().abs() @ weight.float().abs())
    off = (eight(x).float() - x.float() @ weight.float()).abs()
    assert (off <= most + own + 1e-3).all()
    assert off.max() > 0


def test_only_the_depth_decoder_is_changed():
    packed = PackedCsm(small_model(1), eight_bit_depth=True)
    for layer in packed.layers:
        assert isinstance(layer.qkv, torch.Tensor)
    for layer in packed.depth_layers:
        for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down):
            assert isinstance(matrix, EightBit)
            assert matrix.weight.dtype == torch.int8


def test_it_is_off_unless_asked_for_and_the_first_codebook_stays_the_same():
    """Codebook 0 of the first frame comes from the backbone alone."""
    checkpoint = small_checkpoint(8)
    expected = alone(small_checkpoint(8), "Hello there.", 8)
    plain = ByHand(checkpoint, slots=1, queue=0)
    exact = say(plain.engine, plain.engine.open(), max_seconds=0.64)
    plain.run()
    np.testing.assert_array_equal(exact.codes, expected)
    hand = ByHand(small_checkpoint(8), slots=1, queue=0, eight_bit_depth=True)
    heard = say(hand.engine, hand.engine.open(), max_seconds=0.64)
    hand.run()
    assert heard.frames() == 8
    assert heard.codes[0, 0] == expected[0, 0]
    same = np.mean(heard.codes[0] == expected[0])
    assert same >= 0.5, f"{same:.0%} of the first frame's codes are the same"
