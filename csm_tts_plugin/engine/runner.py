"""Executes the scheduler's plans; the only module that handles tensors while the engine runs.

Rows are given as numbers; codes and samples are returned as numpy arrays. Conversations and texts
are unknown here.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .api import Samples
from .context import Positions
from .devices import Mailbox, Staging, on_device, settle
from .frame import Batch, FrameState, Piece, draw_frame, read_frame, read_prompts
from .graphs import GraphSet, lengths, padded
from .sampling import mixed
from .steps import CudaSteps, Steps
from .weights import PackedCsm

log = logging.getLogger("csm_tts_plugin.engine")

_LENGTH_STEP = 128
"""The number of attended positions is a multiple of this, so that there are few lengths and graphs.
"""

_CANDIDATES = 64
"""Top-k up to this value is drawn from this many candidates; above it, from the whole vocabulary.
"""

_VOICES_KEPT = 32


_STAGED = 1 << 17
"""Bytes of a pinned buffer for prefill: more than 256 positions take."""


class Frame:
    """One frame of rows [0, B). On a GPU it may not be done: the first access waits for it."""

    def __init__(self, fetch: Callable[[], tuple[npt.NDArray[Any], ...]]) -> None:
        self._fetch = fetch

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """[B, K]"""
        return self._arrays[0]

    @property
    def sound(self) -> npt.NDArray[np.bool_]:
        """bool [B]: False where the model's logits had NaN or Inf."""
        return self._arrays[1]

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self._fetch()


@dataclass(frozen=True, slots=True)
class Draw:
    """How the codes of one utterance are sampled. Pairs are for codebook 0 and for the codebooks of
    the depth decoder. Temperature 0 is greedy, top-k 0 the whole vocabulary.
    """

    temperature: tuple[float, float]
    top_k: tuple[int, int]
    seed: int

    def candidates(self, codes: int) -> int:
        """The larger number of candidates of the two; 0 if both are greedy."""
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
        kernels: bool = True,
    ) -> None:
        """`rows`: KV rows, each of at most `context` positions. `batches`: the sizes to which a
        step is padded; None: any size. `graphs`: capture each of them (CUDA only).
        `eight_bit_depth`: see `PackedCsm`. `kernels`: try our own kernels.
        """
        self.device = model.lm_head.weight.device
        settle(self.device)
        self.weights = PackedCsm(model, eight_bit_depth=eight_bit_depth)
        on_cuda = self.device.type == "cuda"
        self.steps = CudaSteps(self.weights) if on_cuda else Steps(self.weights)
        self._use_kernels = kernels
        self.path = "PyTorch"
        """Which kernels compute the frames, in words."""
        # One more row, for the padding of steps that take rows by index.
        self.rows = rows
        self.state = FrameState(self.weights, rows + on_cuda, context)
        self._codec = model.codec_model
        self.batches = batches or list(range(1, rows + 1))
        self._lengths = lengths(self.state.length)
        self._use_graphs = graphs
        self._graphs: GraphSet | None = None
        self._voices: OrderedDict[str, Tensor] = OrderedDict()
        self.runs_behind = self.device.type == "cuda"
        """Whether work is only queued: the next work should be queued before a frame is accessed.
        """
        self._index: Tensor | None = None
        self._chosen: Sequence[int] | None = None
        self._used = [0] * self.state.rows
        """Positions of each row that have been written to since it was wiped."""
        self._mailbox, self._staging = None, None
        if self.runs_behind:
            self._staging = Staging(_STAGED, self.device)
            self._mailbox = Mailbox(self.batches[-1] * self._bytes_per_row(), self.device)

    @on_device
    def warm_up(self, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """Run everything once, because first calls are slow. `on_progress` gets
        what is being done.
        """
        positions = np.zeros((2, self.weights.codebooks + 1), np.int64)
        self.start(0, Draw((1.0, 1.0), (_CANDIDATES, _CANDIDATES), 0))
        self.read(0, 0, positions)
        self.draw(1, _CANDIDATES)
        self.advance(1, 3)
        self.encode(np.zeros(2 * 1920, np.float32))
        if self._use_kernels:
            self._choose_kernels(on_progress)
        if self._use_graphs:
            self._graphs = self._capture(on_progress)
        if self.runs_behind:
            self._used = [self.state.length] * self.state.rows
        for row in range(self.state.rows):
            self.wipe(row)

    def _choose_kernels(self, on_progress: Callable[[str], None]) -> None:
        """Select our own kernels where they are right and faster; after any error PyTorch's."""
        on_progress("trying own kernels")
        if self.runs_behind:
            self._choose_on_cuda()
        else:
            self._choose_on_cpu()

    def _choose_on_cpu(self) -> None:
        from .native.selection import TRIED, select

        self._used = [min(TRIED, self.state.length)] * self.state.rows
        try:
            own, told = select(self.steps, self.state)
        except Exception as error:
            log.warning("the C kernels fail", exc_info=True)
            own, told = None, f"they raise {type(error).__name__}"
        if own is None:
            self.path = f"PyTorch (no own kernels: {told})"
        else:
            self.steps, self.path = own, told
        log.info("%s", self.path)

    def _choose_on_cuda(self) -> None:
        assert isinstance(self.steps, CudaSteps)
        try:
            from .kernels.selection import select

            early = torch.cuda.get_device_capability(self.device) >= (9, 0)
            found = select(self.steps, self.state, self.batches, launch_early=early)
        except Exception as error:
            reason = str(error).strip().splitlines()[:1]
            self.path = f"PyTorch (no own kernels: {type(error).__name__} {''.join(reason)})"
            log.warning("%s", self.path)
            return
        self.steps, selection = found
        if selection.own_any():
            self.path = f"PyTorch with {selection}"
        else:
            self.path = f"PyTorch; {selection}"
        log.info("%s, found in %.1f s", self.path, selection.seconds)

    # Rows -----------------------------------------------------------------------------------------

    @on_device
    def swap(self, a: int, b: int) -> None:
        length = max(self._used[a], self._used[b])
        for tensor in self.state.tensors(length):
            kept = tensor[a].clone()
            tensor[a].copy_(tensor[b])
            tensor[b].copy_(kept)
        self._used[a], self._used[b] = self._used[b], self._used[a]

    @on_device
    def wipe(self, row: int) -> None:
        """Zero the row: a NaN left in it would spread to the next conversation even if masked."""
        for tensor in self.state.tensors(self._used[row]):
            tensor[row].zero_()
        self._used[row] = 0

    @on_device
    def start(self, row: int, draw: Draw) -> None:
        """A new utterance will be spoken in `row`."""
        sampling = self.state.sampling
        # `tensor[row] = number` would copy the number from the host and wait for the device.
        for part in range(2):
            sampling.temperature[row, part].fill_(draw.temperature[part])
            sampling.top_k[row, part].fill_(draw.top_k[part] or self.weights.codes)
        sampling.seed[row].fill_(mixed(draw.seed))
        sampling.frame[row].fill_(0)

    # Voices ---------------------------------------------------------------------------------------

    @on_device
    def keep_voice(self, key: str, row: int, length: int) -> None:
        """Cache the first `length` positions of `row` as the prefix `key`."""
        if key in self._voices or not length:
            return
        self._voices[key] = self.state.memory[:, :, row, :, :length].clone()
        while len(self._voices) > _VOICES_KEPT:
            self._voices.popitem(last=False)

    @on_device
    def restore_voice(self, key: str, row: int) -> int:
        """Copy the prefix `key` into `row`; returns its number of positions, 0 if not cached."""
        kept = self._voices.get(key)
        if kept is None:
            return 0
        self._voices.move_to_end(key)
        length = kept.shape[3]
        self.state.memory[:, :, row, :, :length] = kept
        self._used[row] = max(self._used[row], length)
        self.state.position[row].fill_(length)
        return length

    def forget_voice(self, key: str) -> None:
        self._voices.pop(key, None)

    # Work -----------------------------------------------------------------------------------------

    @on_device
    def encode(self, samples: Samples) -> npt.NDArray[np.int64]:
        """Samples [n] at 24 kHz -> codes [frames, K]"""
        dtype = next(self._codec.parameters()).dtype
        sound = self._to_device(samples).to(dtype)[None, None]
        codes = self._codec.encode(sound, num_quantizers=self.weights.codebooks).audio_codes
        return codes[0].T.cpu().numpy()  # type: ignore[no-any-return]

    def read(self, row: int, start: int, positions: Positions) -> None:
        """Prefill a piece of a prompt into `row`, which holds `start` positions."""
        self.read_all([(row, start, positions)])

    @on_device
    def read_all(self, prompts: Sequence[tuple[int, int, Positions]]) -> None:
        """`read` for several rows, in one pass of the backbone."""
        pieces = [Piece(row, start, len(positions)) for row, start, positions in prompts]
        for piece in pieces:
            self._used[piece.row] = max(self._used[piece.row], piece.start + piece.count)
        together = np.concatenate([positions for _, _, positions in prompts])
        read_prompts(self.weights, self.state, pieces, self._to_device(together))

    @on_device
    def select(self, rows: Sequence[int]) -> None:
        """Set the rows of the following steps, if steps take rows by index (`Steps.by_index`).
        Otherwise steps work on the first rows, whatever is set here.
        """
        self._chosen, index = rows, self._rows_index()
        if index is not None:
            numbers = np.full(len(index), self.rows, np.int64)
            numbers[: len(rows)] = rows
            index.copy_(self._to_device(numbers))

    def _batch(self, size: int) -> Batch:
        index = self._rows_index()
        return Batch(size, None if index is None else index[:size])

    def _rows_index(self) -> Tensor | None:
        """The numbers of the rows of a step on the device, if steps take rows by index."""
        if self.steps.by_index and self._index is None:
            self._index = torch.arange(self.batches[-1], device=self.device)
        return self._index

    @on_device
    def draw(
        self, batch: int, candidates: int, shape_logits: Callable[[Tensor], Tensor] | None = None
    ) -> Frame:
        """The next frame of rows [0, batch).

        `candidates`: the largest top-k, 0 if all rows are greedy. `shape_logits`: see `draw_frame`;
        such a step does not use a graph.
        """
        width, size = self._width(candidates), padded(batch, self.batches)
        outputs: tuple[Tensor, ...]
        if self._graphs is None or shape_logits is not None:
            outputs = self._draw(size, width, shape_logits)
        else:
            outputs = self._graphs.replay(("draw", size, width))
        if self._mailbox is not None:
            return Frame(self._mailbox.send(tuple(output[:batch] for output in outputs)))
        codes, sound = (output[:batch].numpy() for output in outputs)
        return Frame(lambda: (codes, sound))

    @on_device
    def advance(self, batch: int, longest: int) -> None:
        """Run the backbone on the frame just drawn. `longest`: positions of the longest row after
        it.
        """
        size = padded(batch, self.batches)
        chosen = self._chosen if self.steps.by_index else None
        for row in range(size) if chosen is None else chosen:
            # One more than before, if it is padding.
            self._used[row] = min(max(self._used[row] + 1, longest), self.state.length)
        if self._graphs is None:
            length = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self.state.length)
            read_frame(self.steps, self.state, self._batch(size), length)
        else:
            self._graphs.replay(("read", size, padded(longest, self._lengths)))

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        if self._staging is not None:
            return self._staging.send(array)
        return torch.from_numpy(np.array(array)).to(self.device)

    def _draw(
        self, size: int, width: int, shape_logits: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return draw_frame(self.steps, self.state, self._batch(size), width, shape_logits)

    def _bytes_per_row(self) -> int:
        """Bytes that a frame sends to the host per row: codes, and 32 for flag and alignment."""
        return 8 * self.weights.codebooks + 32

    def _width(self, candidates: int) -> int:
        """`candidates` rounded up to one of few values, so that there are few graphs. Graphs are
        never greedy only.
        """
        codes = self.weights.codes
        if not candidates and self._graphs is None:
            return 0
        return min(_CANDIDATES if candidates <= _CANDIDATES else codes, codes)

    @on_device
    def _capture(self, on_progress: Callable[[str], None]) -> GraphSet:
        """Capture all graphs, the largest first so that smaller ones reuse its memory."""
        graphs = GraphSet()
        widths = sorted({self._width(1), self._width(self.weights.codes)})
        if self.steps.by_index:
            # Attention reads its length on the device: one graph serves all lengths.
            self._lengths = self._lengths[-1:]
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
        read_frame(self.steps, self.state, self._batch(size), length)
        return ()
