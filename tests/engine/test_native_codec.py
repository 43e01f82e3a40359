"""The codec's convolutions in C: the samples of PyTorch, and PyTorch where they cannot be used."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.codec_layers import CausalConv
from csm_tts_plugin.engine.mimi import MimiDecoder
from csm_tts_plugin.engine.native import build, codec
from csm_tts_plugin.engine.sound import Codec
from tests.support.models import small_model

pytestmark = [
    pytest.mark.skipif(not build.compilers(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native"),
]

ROWS = 5


@pytest.fixture(scope="module")
def mimi() -> Any:
    return small_model(2).codec_model


@pytest.fixture(scope="module", params=[None, ["-mavx2", "-mfma"]], ids=["native", "narrow"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    if request.param is not None and "avx2" not in build._processor():
        pytest.skip("the processor has no AVX2")
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(build, "_TARGETS", (request.param,))
        return build.load()


def native(mimi: Any, library: ctypes.CDLL) -> MimiDecoder:
    decoder = MimiDecoder(mimi, ROWS)
    convs = [module for module in decoder.modules() if isinstance(module, CausalConv)]
    assert len(convs) > 8
    for conv in convs:
        conv.native = codec.NativeConv(conv, library)
    return decoder


def codes_of(decoder: MimiDecoder, rows: int, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = rows, decoder.codebooks, frames
    return torch.randint(decoder.codebook_size, shape, generator=generator)


@pytest.mark.parametrize("rows", [[0], [3], [1, 2, 3], [4, 0, 2]])
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_samples_are_those_of_pytorch(
    mimi: Any, library: ctypes.CDLL, rows: Sequence[int], frames: int
) -> None:
    mine, plain = native(mimi, library), MimiDecoder(mimi, ROWS)
    for turn in range(3):
        codes = codes_of(plain, len(rows), frames, turn)
        right = plain.decode(codes, rows)
        error = (mine.decode(codes, rows) - right).abs().max()
        assert error < 1e-5 * right.abs().max()


def test_any_split_gives_the_samples_of_the_whole(mimi: Any, library: ctypes.CDLL) -> None:
    decoder = native(mimi, library)
    codes = codes_of(decoder, 1, 8)
    whole = decoder.decode(codes, [0])
    parts, begin = [], 0
    for length in (1, 2, 1, 4):
        parts.append(decoder.decode(codes[:, :, begin : begin + length], [2]))
        begin += length
    # The transformer is PyTorch's, whose products may be rounded by their number of positions.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)


def test_a_row_is_the_same_beside_others_and_after_a_reset(mimi: Any, library: ctypes.CDLL) -> None:
    decoder = native(mimi, library)
    codes = codes_of(decoder, 3, 2)
    together = decoder.decode(codes, [0, 1, 4])
    for row in (0, 1, 4):
        decoder.reset(row)
    assert not any(state.any() for _, state in decoder._state)
    alone = decoder.decode(codes[1:2], [3])
    torch.testing.assert_close(alone, together[1:2], rtol=1e-5, atol=1e-6)


def test_states_of_other_rows_stay_as_they_are(mimi: Any, library: ctypes.CDLL) -> None:
    decoder = native(mimi, library)
    decoder.decode(codes_of(decoder, ROWS, 2), range(ROWS))
    before = [state.clone() for _, state in decoder._state]
    decoder.decode(codes_of(decoder, 2, 1), [4, 1])
    for old, (_, new) in zip(before, decoder._state, strict=True):
        assert torch.equal(old[[0, 2, 3]], new[[0, 2, 3]])


def test_values_far_from_speech_are_activated_as_by_pytorch(library: ctypes.CDLL) -> None:
    """The largest and the smallest inputs of an ELU, and those near 0."""
    conv = CausalConv(Identity(), 1, activated=True)
    x = torch.tensor([-1e30, -100.0, -87.4, -3.0, -1e-3, -0.0, 1e-8, 0.5, 50.0, 1e30] * 4)
    right = torch.where(x > 0, x, torch.expm1(x))
    mine = codec.NativeConv(conv, library)(x.view(1, -1, 4), Rows0, None)
    torch.testing.assert_close(mine.flatten(), right, rtol=1e-6, atol=2e-7)
    wrong = codec.NativeConv(conv, library)(torch.full((1, 4, 4), torch.nan), Rows0, None)
    assert wrong.isnan().all()


class Identity(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 4, 1, bias=False)
        self.conv.weight.data = torch.eye(4)[:, :, None]


class Rows0:
    index = torch.tensor([0])


# Where they are used


def warm(mimi: Any, **options: Any) -> Codec:
    made = Codec(mimi, ROWS, **options)
    made.warm_up()
    return made


def test_a_codec_uses_them_where_they_are_faster(
    mimi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "no_slower", lambda *_: True)
    made = warm(mimi)
    assert made.path == "C kernels"
    assert not any(state.any() for _, state in made.decoder._state)
    row = made.take()
    codes = codes_of(made.decoder, 1, 4)
    right = MimiDecoder(mimi, 1).decode(codes, [0])
    sound = made.decode([row], codes.numpy(), [True]).samples[0]
    np.testing.assert_allclose(sound, right[0].numpy(), rtol=1e-4, atol=1e-5)


def test_otherwise_pytorch_decodes_and_says_why(mimi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "no_slower", lambda *_: False)
    made = warm(mimi)
    assert made.path == "PyTorch (no own kernels: PyTorch is faster for 1 rows of 1 frames)"
    convs = [module for module in made.decoder.modules() if isinstance(module, CausalConv)]
    assert all(conv.native is None for conv in convs)
    monkeypatch.setattr(build, "compilers", list)
    build._shared.cache_clear()
    assert warm(mimi).path == "PyTorch (no own kernels: no C compiler)"
    assert warm(mimi, kernels=False).path == "PyTorch"


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_kernels_that_give_other_samples_are_not_used(
    mimi: Any, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    right = codec.NativeConv.__call__
    monkeypatch.setattr(codec.NativeConv, "__call__", lambda *args: right(*args) * wrong)
    assert warm(mimi).path == "PyTorch (no own kernels: their results differ from PyTorch's)"


def test_an_error_while_they_are_tried_leaves_pytorch(
    mimi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(codec.NativeConv, "__call__", fail)
    made = warm(mimi)
    assert made.path == "PyTorch (no own kernels: they raise RuntimeError)"
    assert not any(state.any() for _, state in made.decoder._state)
