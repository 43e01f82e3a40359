"""Selects the kernels that are correct and faster than PyTorch's on the device.

At start-up each kernel is run on the model's weights. Its error against float32 may be at most
twice that of PyTorch in the model's dtype, and its time inside a graph must be shorter, with all
layers in turn, so that weights are not in the cache. Then whole frames with all selected kernels
are compared. Kernels that raise, give NaN or are slower are not used, nor those for which the time
is not sufficient; Triton caches compiled kernels, so that the next start gets further.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..forced import forced_logits
from ..frame import Batch, FrameState
from ..layers import EightBit, PackedLayer, RmsNorm
from ..steps import CudaSteps, WideCache
from ..weights import PackedCsm
from .steps import CLASSES, SITES, Chosen, KernelSteps, Packed, class_of, sites

log = logging.getLogger("csm_tts_plugin.engine")

SECONDS = 10.0
_ORDER = (
    *("attention", "choose", "depth gate", "depth down", "depth attention", "depth qkv"),
    *("depth head", "depth out", "gate", "down", "qkv", "out", "head"),
)
"""The most useful first; attention by index before all, because all classes need it or none."""
_COMPARED = 16
"""Number of compared rows; float32 copies of more would be large."""
_FLOOR = 1e-5
"""An error that is always accepted: that of float32."""
_WHOLE_FRAME = 0.05
"""Largest accepted difference of logits after a whole frame, relative to the largest logit; the
results of two ways to round each layer in bfloat16 differ by less."""

_DRAWN = 64
"""The least number of codes that are drawn both ways."""

Timer = Callable[[Callable[[], object]], float]


@dataclass(slots=True)
class Selection:
    """The selected kernels by class of batch sizes, and why others were not selected."""

    own: dict[int, frozenset[str]]
    refused: dict[tuple[int, str], str] = field(default_factory=dict)
    seconds: float = 0.0

    def own_any(self) -> bool:
        return any(self.own.values())

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f"{_up_to(limit)}: {_listed(names)}" for limit, names in self.own.items()]
        reasons: dict[str, int] = {}
        for reason in self.refused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return f"own kernels ({'; '.join(parts)})" + (f"; not taken: {told}" if told else "")


def _up_to(limit: int) -> str:
    if limit == 1:
        return "1 stream"
    return f"up to {limit}" if limit < CLASSES[-1] else "more"


def _listed(names: frozenset[str]) -> str:
    return ", ".join(site for site in SITES if site in names) or "none"


class Bench:
    """The same inputs for PyTorch, for a kernel, and for the computation in float32."""

    def __init__(self, weights: PackedCsm, state: FrameState, batch: int) -> None:
        self.weights, self.state, self.count = weights, state, batch
        device, depth = state.hidden.device, weights.depth_layers[0]
        generator = torch.Generator(device).manual_seed(1)

        def random(*shape: int) -> Tensor:
            drawn: Tensor = torch.randn(*shape, generator=generator, device=device)
            rounded: Tensor = drawn.to(weights.dtype)
            return rounded

        self.hidden = random(batch, weights.lm_head.shape[0])
        self.x = random(batch, weights.depth_projector.shape[1])
        self.step = weights.codebooks - 2
        width = (depth.heads + 2 * depth.kv_heads) * depth.head_dim
        self.cached = random(weights.codebooks, batch, width)
        self.logits = 3 * random(batch, weights.codes)
        self.batch = Batch(batch, torch.arange(batch, device=device))
        state.position.fill_(min(512, state.context // 2))
        state.memory[:, :, :batch].normal_(generator=generator)

    def first(self, weights: PackedCsm, state: FrameState) -> Bench:
        """The first rows of these inputs, with other weights and another state."""
        bench, rows = copy.copy(self), min(self.count, _COMPARED)
        bench.weights, bench.state, bench.count = weights, state, rows
        for name in ("hidden", "x", "logits"):
            setattr(bench, name, getattr(self, name)[:rows].to(weights.dtype))
        bench.cached = self.cached[:, :rows].to(weights.dtype)
        assert self.batch.index is not None
        bench.batch = Batch(rows, self.batch.index[:rows])
        return bench

    def cache(self, steps: CudaSteps) -> WideCache:
        cache = steps.depth_cache(self.count)
        for layer in cache.layers:
            layer.flatten(2).copy_(self.cached)
        return cache

    def work(self, site: str, steps: CudaSteps) -> Callable[[int], Tensor]:
        """The part of a frame to which `site` belongs, as a function of the layer's number."""
        if site == "choose":
            return lambda number: self._drawn(steps)
        if site == "head":
            return lambda number: steps.first_head(self.hidden)
        if site == "depth head":
            return lambda number: steps.depth_head(self.x, number + 1)
        return self._depth(site, steps) if site.startswith("depth") else self._backbone(steps)

    def _depth(self, site: str, steps: CudaSteps) -> Callable[[int], Tensor]:
        layers, cache, step = self.weights.depth_layers, self.cache(steps), self.step

        def project(number: int) -> Tensor:
            steps.depth_qkv(cache, number, layers[number], self.x, step)
            written: Tensor = cache.written[number][step]
            return written

        def attend(number: int) -> Tensor:
            x = self.x.clone()
            steps.depth_attend(cache, number, layers[number], x, step)
            return x

        def feed(number: int) -> Tensor:
            x = self.x.clone()
            steps.feed_forward(layers[number], x)
            return x

        works = {"depth qkv": project, "depth attention": attend, "depth out": attend}
        return works.get(site, feed)

    def _backbone(self, steps: CudaSteps) -> Callable[[int], Tensor]:
        state, layers = self.state, self.weights.layers
        length = min(state.length, 1024)
        reading = steps.reading(state, self.batch, length)
        steps.prepare(state, reading)
        return lambda n: steps.backbone_layer(state, n, layers[n], self.hidden.clone(), reading)

    def _drawn(self, steps: CudaSteps) -> Tensor:
        draw = steps.drawing(self.state, self.batch, min(64, self.weights.codes))
        x = draw.choose(self.logits, 0)
        assert x is not None
        return x

    def layers(self, site: str) -> int:
        """Number of layers with this work, each with weights of its own."""
        if site in ("choose", "head"):
            return 1
        if site == "depth head":
            return self.weights.codebooks - 1
        depth = site.startswith("depth")
        return len(self.weights.depth_layers if depth else self.weights.layers)


def select(
    plain: CudaSteps,
    state: FrameState,
    batches: Sequence[int],
    *,
    timer: Timer | None = None,
    seconds: float = SECONDS,
    launch_early: bool = False,
) -> tuple[Chosen, Selection]:
    """The steps to use, and what was selected. The content of `state` is overwritten."""
    began, timer = time.monotonic(), timer or in_a_graph
    packed = Packed.of(plain, launch_early=launch_early)
    largest = {class_of(batch): batch for batch in sorted(batches)}
    found = Selection({limit: frozenset() for limit in largest})
    benches = {limit: Bench(plain.weights, state, batch) for limit, batch in largest.items()}
    eight = any(isinstance(layer.qkv, EightBit) for layer in plain.weights.depth_layers)
    judge = Judge(plain.weights, state)
    tasks = [
        (limit, site)
        for site in _ORDER
        for limit, batch in largest.items()
        if site in sites(batch, eight)
    ]
    for limit, site in tasks:
        if time.monotonic() - began > seconds:
            reason: str | None = "for want of time"
        else:
            reason = _reason_against(site, packed, benches[limit], judge, timer)
        if reason is None:
            found.own[limit] |= {site}
        else:
            found.refused[limit, site] = reason
    _keep_whole_frames(packed, found, benches)
    found.seconds = time.monotonic() - began
    return Chosen(packed, _by_class(found.own)), found


def _by_class(own: dict[int, frozenset[str]]) -> dict[int, frozenset[str]]:
    """Classes without a batch size of this engine get the kernels of the next
    larger one, if any.
    """
    by_class: dict[int, frozenset[str]] = {}
    for limit in CLASSES:
        by_class[limit] = own.get(limit, frozenset({"attention"} if _all_attend(own) else ()))
    return by_class


def _all_attend(own: dict[int, frozenset[str]]) -> bool:
    return all("attention" in names for names in own.values())


def _reason_against(
    site: str, packed: Packed, bench: Bench, judge: Judge, timer: Timer
) -> str | None:
    """Why the kernel of `site` is not used; None if it is correct and faster."""
    own = KernelSteps(packed, bench.count, frozenset({site}))
    try:
        ours, theirs = bench.work(site, own), bench.work(site, packed.plain)
        if not _right(site, bench, judge, own, ours, theirs, packed.plain):
            return "with another result"
        numbers = range(bench.layers(site))
        took = [timer(_all_layers(work, numbers)) for work in (ours, theirs)]
        return None if took[0] < took[1] else "not faster"
    except Exception as error:
        log.debug("kernel %s failed", site, exc_info=True)
        return f"with {type(error).__name__}"


def _all_layers(work: Callable[[int], Tensor], numbers: Sequence[int]) -> Callable[[], object]:
    return lambda: [work(number) for number in numbers]


def _right(
    site: str,
    bench: Bench,
    judge: Judge,
    own: CudaSteps,
    ours: Callable[[int], Tensor],
    theirs: Callable[[int], Tensor],
    plain: CudaSteps,
) -> bool:
    if site == "choose":
        return _draws_alike(bench, own, plain)
    rows = slice(0, min(bench.count, _COMPARED))
    result, other = (work(0)[rows].float().clone() for work in (ours, theirs))
    exact = judge.result(site, bench).float()
    scale = exact.abs().max()
    error, accepted = ((one - exact).abs().max() / scale for one in (result, other))
    return bool(result.isfinite().all() and error <= torch.clamp(2 * accepted, min=_FLOOR))


def _draws_alike(bench: Bench, own: CudaSteps, plain: CudaSteps) -> bool:
    """Whether nearly all codes are equal; where logits are equal in bfloat16, both are correct."""
    state, same, drawn = bench.state, 0, 0
    sampling = state.sampling
    sampling.temperature.fill_(0.9)
    sampling.top_k.fill_(50)
    for frame in range(max(1, _DRAWN // bench.count)):
        sampling.frame.fill_(frame)
        draws = [one.drawing(state, bench.batch, 50) for one in (own, plain)]
        inputs = [draw.choose(bench.logits, 0) for draw in draws]
        codes = [draw.first_codes() for draw in draws]
        table = plain.weights.depth_embeddings[0]
        if inputs[0] is None or not torch.equal(inputs[0], table[codes[0]]):
            return False
        same += int((codes[0] == codes[1]).sum())
        drawn += bench.count
    return same >= 0.8 * drawn


class Judge:
    """The first layers in float32, to which results are compared."""

    def __init__(self, weights: PackedCsm, state: FrameState) -> None:
        exact = copy.copy(weights)
        exact.dtype = torch.float32
        exact.layers = [_exact(layer) for layer in weights.layers[:1]]
        exact.depth_layers = [_exact(layer) for layer in weights.depth_layers[:1]]
        for name in ("cos", "sin", "depth_cos", "depth_sin", "lm_head", "depth_projector"):
            setattr(exact, name, getattr(weights, name).float())
        exact.depth_rotations = [one.float() for one in weights.depth_rotations]
        exact.depth_heads = [weights.depth_heads[0].float()]
        exact.depth_norm = _exact_norm(weights.depth_norm)
        self._state, self._weights = state, exact
        self._steps = CudaSteps(exact)

    def result(self, site: str, bench: Bench) -> Tensor:
        rows = min(bench.count, _COMPARED)
        state = copy.copy(self._state)
        if not site.startswith("depth"):
            # The new position's keys and values are written to copies of this layer's.
            state.keys, state.values = (
                [caches[0][:rows].float()] for caches in (self._state.keys, self._state.values)
            )
        part = bench.first(self._weights, state)
        part.batch = Batch(rows)
        return part.work(site, self._steps)(0)


def _exact(layer: PackedLayer) -> PackedLayer:
    exact = copy.copy(layer)
    for name in ("qkv", "out", "gate_up", "down"):
        matrix = getattr(layer, name)
        rounded = matrix.rounded() if isinstance(matrix, EightBit) else matrix.float()
        setattr(exact, name, rounded)
    exact.norm1, exact.norm2 = _exact_norm(layer.norm1), _exact_norm(layer.norm2)
    return exact


def _exact_norm(norm: RmsNorm) -> RmsNorm:
    return RmsNorm(norm.weight.float(), norm.eps)


# Whole frames


def _keep_whole_frames(packed: Packed, found: Selection, benches: dict[int, Bench]) -> None:
    """Compares a whole frame with the same codes for each class: if the logits are not close to
    PyTorch's, the class uses no own kernels.
    """
    for limit, bench in benches.items():
        if not found.own[limit]:
            continue
        try:
            own = KernelSteps(packed, bench.count, found.own[limit])
            near = frames_alike(own, packed.plain, bench)
            reason = None if near else "in a frame that differs as a whole"
        except Exception as error:
            reason = f"with {type(error).__name__} in a whole frame"
        if reason is not None:
            found.refused |= {(limit, site): reason for site in found.own[limit]}
            found.own[limit] = frozenset()


def frames_alike(own: CudaSteps, plain: CudaSteps, bench: Bench) -> bool:
    weights, state = bench.weights, bench.state
    state.hidden[: bench.count] = bench.hidden
    shape = (bench.count, weights.codebooks)
    codes = torch.arange(shape[0] * shape[1], device=state.hidden.device).view(shape)
    codes = codes % weights.codes
    told = [forced_logits(steps, state, bench.batch, codes) for steps in (own, plain)]
    scale = told[1].abs().max()
    off = (told[0] - told[1]).abs().max()
    return bool(told[0].isfinite().all() and off <= _WHOLE_FRAME * scale)


def in_a_graph(work: Callable[[], object]) -> float:
    """Seconds for `work` as a CUDA graph, the shortest of a few runs."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    best = float("inf")
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best
