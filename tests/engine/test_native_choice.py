"""C kernels are used where they are right and not slower; otherwise PyTorch, which says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from csm_tts_plugin.engine.frame import Batch
from csm_tts_plugin.engine.native import build, selection
from csm_tts_plugin.engine.native.steps import NativeSteps
from csm_tts_plugin.engine.runner import Runner
from tests.support.models import small_model

pytestmark = [
    pytest.mark.skipif(not build.compilers(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model(3, codebooks=6, context=512, head_dim=32)


def warm(runner: Runner) -> Runner:
    runner.warm_up()
    return runner


def test_a_runner_uses_them_where_they_are_faster(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(selection, "no_slower", lambda *_: True)
    runner = warm(Runner(model, 4, 128))
    assert isinstance(runner.steps, NativeSteps)
    assert runner.path == "C kernels"
    assert not any(tensor.any() for tensor in runner.state.tensors())


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"target": build, "name": "compilers", "value": list}, "no C compiler"),
        ({"target": build, "name": "SOURCES", "value": [__file__]}, "does not compile them"),
        (
            {"target": selection, "name": "no_slower", "value": lambda *_: False},
            "PyTorch is faster for a batch of 1",
        ),
        ({"target": selection, "name": "_LARGEST", "value": 10}, "too large for a second copy"),
    ],
)
def test_otherwise_pytorch_computes_frames_and_says_why(
    model: Any, monkeypatch: Any, broken: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(broken["target"], broken["name"], broken["value"])
    build._shared.cache_clear()
    runner = warm(Runner(model, 2, 128))
    assert not isinstance(runner.steps, NativeSteps)
    assert runner.path.startswith("PyTorch (no own kernels: ")
    assert told in runner.path
    assert runner.draw(1, 0).sound.all()


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_kernels_that_give_other_numbers_are_not_used(
    model: Any, monkeypatch: Any, value: float
) -> None:
    right = NativeSteps.told
    monkeypatch.setattr(NativeSteps, "told", lambda *args: right(*args) * value)
    runner = warm(Runner(model, 2, 128))
    assert runner.path == "PyTorch (no own kernels: their results differ from PyTorch's)"


def test_a_model_they_cannot_compute_is_computed_by_pytorch() -> None:
    assert "heads of 8 numbers are not supported" in warm(Runner(small_model(1), 2, 64)).path
    eight = Runner(small_model(1, head_dim=32), 2, 64, eight_bit_depth=True)
    assert "the depth decoder has 8 bits" in warm(eight).path
    wide = small_model(1, head_dim=32).to(torch.bfloat16)
    assert "the weights are bfloat16" in warm(Runner(wide, 2, 64)).path


@pytest.mark.parametrize("error", [RuntimeError("no memory"), OSError("no folder")])
def test_an_error_while_they_are_tried_leaves_pytorch(
    model: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(selection, "NativeSteps", fail)
    runner = warm(Runner(model, 2, 128))
    assert runner.path == f"PyTorch (no own kernels: they raise {type(error).__name__})"
    assert not any(tensor.any() for tensor in runner.state.tensors())


def test_codes_that_do_not_follow_from_the_logits_are_found(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = NativeSteps.draw_frame

    def draw_wrongly(self: NativeSteps, state: Any, batch: Batch, *given: Any) -> Any:
        codes, sound = right(self, state, batch, *given)
        state.codes[: batch.count, 2] = (codes[:, 2] + 1) % self.weights.codes
        return state.codes[: batch.count].clone(), sound

    monkeypatch.setattr(NativeSteps, "draw_frame", draw_wrongly)
    assert "results differ" in warm(Runner(model, 2, 128)).path


def test_they_can_be_turned_off(model: Any) -> None:
    runner = warm(Runner(model, 2, 64, kernels=False))
    assert (runner.path, type(runner.steps).__name__) == ("PyTorch", "Steps")
