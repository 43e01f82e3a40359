"""The only place that touches tensors while the engine runs: it does what the scheduler planned.

Rows come in as numbers, codes and samples go out as numpy; nothing here knows conversations or
texts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .api import Samples
from .context import Positions
from .frame import FrameState, draw_frame, read_frame, read_prompt
from .graphs import GraphSet, lengths, padded
from .mimi import MimiDecoder
from .weights import PackedCsm

_LENGTH_STEP = 128
"""Attention looks at a multiple of this many positions, so that few lengths (and graphs) exist."""

_CANDIDATES = 64
"""Top-k up to this many is drawn from that many candidates; more takes the whole vocabulary."""

_VOICES_KEPT = 32


Arrays = tuple[npt.NDArray[np.int64], Samples, npt.NDArray[np.bool_]]


class Frame:
    """One frame of rows [0, B), waited for at the first look: on a GPU it may still be made."""

    def __init__(self, fetch: Callable[[], Arrays]) -> None:
        self._fetch = fetch

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """[B, K]"""
        return self._arrays[0]

    @property
    def samples(self) -> Samples:
        """[B, 1920]"""
        return self._arrays[1]

    @property
    def sound(self) -> npt.NDArray[np.bool_]:
        """[B]: False where NaN or Inf came out of the model."""
        return self._arrays[2]

    @cached_property
    def _arrays(self) -> Arrays:
        return self._fetch()


class Mailbox:
    """Host memory that a GPU writes results to while the host goes on; for one frame at a time."""

    def __init__(self) -> None:
        self._pinned: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, outputs: tuple[Tensor, ...]) -> Callable[[], Arrays]:
        """Queue the copies; what is returned waits for them."""
        hosts = []
        for output in outputs:
            key = (output.shape, output.dtype)
            if key not in self._pinned:
                self._pinned[key] = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
            hosts.append(self._pinned[key].copy_(output, non_blocking=True))
        self._arrived.record()

        def fetch() -> Arrays:
            self._arrived.synchronize()
            codes, samples, sound = (host.numpy().copy() for host in hosts)
            return codes, samples, sound

        return fetch


@dataclass(frozen=True, slots=True)
class Draw:
    """How one utterance draws its codes; pairs are for codebook 0 and for the depth decoder's.

    Temperature 0 is greedy, top-k 0 the whole vocabulary.
    """

    temperature: tuple[float, float]
    top_k: tuple[int, int]
    seed: int

    def candidates(self, codes: int) -> int:
        """How many candidates the wider part looks at; 0 when all is greedy."""
        parts = zip(self.temperature, self.top_k, strict=True)
        return max(min(k or codes, codes) if t > 0 else 0 for t, k in parts)


class Runner:
    """Weights and rows on one device. All methods run on the engine's thread."""

    def __init__(
        self,
        model: Any,
        rows: int,
        context: int,
        *,
        batches: list[int] | None = None,
        graphs: bool = False,
        eight_bit_depth: bool = False,
    ) -> None:
        """`rows`: conversations kept, each of at most `context` positions. `batches`: the sizes
        that a step is padded to; None: any. `graphs`: capture each of them (CUDA only).
        `eight_bit_depth`: see `PackedCsm`."""
        self.weights = PackedCsm(model, eight_bit_depth=eight_bit_depth)
        self.device = self.weights.lm_head.device
        self.state = FrameState(self.weights, rows, context)
        self._codec = model.codec_model
        self.decoder = MimiDecoder(self._codec, rows)
        self.batches = batches or list(range(1, rows + 1))
        self._lengths = lengths(context)
        self._use_graphs = graphs
        self._graphs: GraphSet | None = None
        self._voices: OrderedDict[str, list[Tensor]] = OrderedDict()
        self.runs_behind = self.device.type == "cuda"
        """Work is only queued: what comes after a frame should be queued before it is looked at."""
        self._mailbox = Mailbox() if self.runs_behind else None

    @torch.inference_mode()
    def warm_up(self, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """The first call of everything is slow; nobody shall wait for it."""
        positions = np.zeros((2, self.weights.codebooks + 1), np.int64)
        self.start(0, Draw((1.0, 1.0), (_CANDIDATES, _CANDIDATES), 0))
        self.read(0, 0, positions)
        self.draw(1, _CANDIDATES)
        self.advance(1, 3)
        self.encode(np.zeros(2 * 1920, np.float32))
        if self._use_graphs:
            self._graphs = self._capture(on_progress)
        for row in range(self.state.rows if self._use_graphs else 1):
            self.wipe(row)
            self.decoder.reset(row)

    # Rows -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def swap(self, a: int, b: int) -> None:
        for tensor in self.state.tensors():
            kept = tensor[a].clone()
            tensor[a].copy_(tensor[b])
            tensor[b].copy_(kept)
        self.decoder.swap(a, b)

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Nothing of who had this row stays: a masked NaN would still poison whoever comes next."""
        for tensor in self.state.tensors():
            tensor[row].zero_()

    @torch.inference_mode()
    def start(self, row: int, draw: Draw) -> None:
        """A new utterance will be spoken in `row`."""
        sampling = self.state.sampling
        for part in range(2):
            sampling.temperature[row, part] = draw.temperature[part]
            sampling.top_k[row, part] = draw.top_k[part] or self.weights.codes
        sampling.seed[row] = draw.seed
        sampling.frame[row] = 0
        self.decoder.reset(row)

    # Voices ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def keep_voice(self, key: str, row: int, length: int) -> None:
        """Keep the first `length` positions of `row` as the prefix `key`."""
        if key in self._voices or not length:
            return
        caches = (*self.state.keys, *self.state.values)
        self._voices[key] = [cache[row, :, :length].clone() for cache in caches]
        while len(self._voices) > _VOICES_KEPT:
            self._voices.popitem(last=False)

    @torch.inference_mode()
    def restore_voice(self, key: str, row: int) -> int:
        """Copy the prefix `key` into `row`; how many positions it has (0: not kept)."""
        kept = self._voices.get(key)
        if kept is None:
            return 0
        self._voices.move_to_end(key)
        length = kept[0].shape[1]
        for cache, prefix in zip((*self.state.keys, *self.state.values), kept, strict=True):
            cache[row, :, :length] = prefix
        self.state.position[row] = length
        return length

    def forget_voice(self, key: str) -> None:
        self._voices.pop(key, None)

    # Work -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, samples: Samples) -> npt.NDArray[np.int64]:
        """Samples [n] at 24 kHz -> codes [frames, K]"""
        dtype = next(self._codec.parameters()).dtype
        sound = torch.from_numpy(np.array(samples)).to(self.device, dtype)[None, None]
        codes = self._codec.encode(sound, num_quantizers=self.weights.codebooks).audio_codes
        return codes[0].T.cpu().numpy()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def read(self, row: int, start: int, positions: Positions) -> None:
        """Read a piece of a prompt into `row`, of which `start` positions are valid."""
        read_prompt(
            self.weights, self.state, row, start, torch.from_numpy(positions).to(self.device)
        )

    @torch.inference_mode()
    def draw(
        self, batch: int, candidates: int, shape_logits: Callable[[Tensor], Tensor] | None = None
    ) -> Frame:
        """The next frame of rows [0, batch) and its sound.

        `candidates`: the largest top-k, 0 where all rows are greedy. `shape_logits`: see
        `draw_frame`; such a step is not a captured one.
        """
        width, size = self._width(candidates), padded(batch, self.batches)
        outputs: tuple[Tensor, ...]
        if self._graphs is None or shape_logits is not None:
            outputs = self._draw(size, width, shape_logits)
        else:
            outputs = self._graphs.replay(("draw", size, width))
        if self._mailbox is not None:
            return Frame(self._mailbox.send(tuple(output[:batch] for output in outputs)))
        codes, samples, sound = (output[:batch].numpy() for output in outputs)
        return Frame(lambda: (codes, samples, sound))

    @torch.inference_mode()
    def advance(self, batch: int, longest: int) -> None:
        """The backbone reads the frame just drawn; `longest`: positions of the longest row then."""
        size = padded(batch, self.batches)
        if self._graphs is None:
            length = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self.state.context + 1)
            read_frame(self.weights, self.state, size, length)
        else:
            self._graphs.replay(("read", size, padded(longest, self._lengths)))

    def _draw(
        self, size: int, width: int, shape_logits: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        codes, sound = draw_frame(self.weights, self.state, size, width, shape_logits)
        samples = self.decoder(codes[:, :, None])
        return codes, samples.float(), sound

    def _width(self, candidates: int) -> int:
        """Few widths exist, so that few graphs do; captured runs are never merely greedy."""
        codes = self.weights.codes
        if not candidates and self._graphs is None:
            return 0
        return min(_CANDIDATES if candidates <= _CANDIDATES else codes, codes)

    @torch.inference_mode()
    def _capture(self, on_progress: Callable[[str], None]) -> GraphSet:
        """Every graph, the largest first so that the smaller ones fit into its memory."""
        graphs = GraphSet()
        widths = sorted({self._width(1), self._width(self.weights.codes)})
        total = len(self.batches) * (len(widths) + len(self._lengths))
        for size in reversed(self.batches):
            for width in widths:
                graphs.capture(("draw", size, width), partial(self._draw, size, width))
            for length in self._lengths:
                graphs.capture(("read", size, length), partial(self._read_only, size, length))
            on_progress(f"capturing CUDA graphs: {len(graphs)} of {total}")
        on_progress(
            f"captured {total} graphs in {graphs.seconds:.0f} s, {graphs.bytes / 2**20:.0f} MiB"
        )
        return graphs

    def _read_only(self, size: int, length: int) -> tuple[Tensor, ...]:
        read_frame(self.weights, self.state, size, length)
        return ()
