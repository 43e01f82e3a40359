"""The teacher: hibari, with an edited graph that makes durations an input.

hibari's network computes, per 12.5 ms, a harmonic envelope, a noise envelope, a free-phase part and
F0; a small vocoder synthesises audio from them. With durations as an input, speech is aligned to
codec frames without time stretching. Other speakers are changes of F0 and envelopes before the
vocoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UNIT = 600
"""Samples (24 kHz) of one unit of hibari's durations."""
Parts = list[npt.NDArray[np.float32]]
"""hibari's harmonic envelope, phase, noise, free-phase part, its phase (bins, frames); F0."""
_DURATIONS = "/Clip_output_0"
"""The tensor of hibari's graph with the durations."""


def cut_open(target: Path) -> None:
    """Write hibari's graph with durations as an output, and as an input if `use` is true."""
    import hibari
    import onnx

    asset = Path(hibari.__file__).parent / "assets" / "hibari.onnx"
    model = onnx.load(asset)
    graph = model.graph
    clip = next(n for n in graph.node if n.output[0] == _DURATIONS)
    clip.output[0] = "natural"
    helper, kinds = onnx.helper, onnx.TensorProto
    place = list(graph.node).index(clip) + 1
    choose = helper.make_node("Where", ["use", "durations", "natural"], [_DURATIONS])
    graph.node.insert(place, choose)
    graph.input.extend(
        [
            helper.make_tensor_value_info("use", kinds.BOOL, [1]),
            helper.make_tensor_value_info("durations", kinds.FLOAT, ["L"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("natural", kinds.FLOAT, None))
    onnx.save(model, target)
    short = target.with_name("durations.onnx")
    onnx.utils.extract_model(
        str(target), str(short), ["ids", "speed"], ["natural"], check_model=False
    )


class Teacher:
    """hibari's American voice. The edited graph is kept in `work`."""

    def __init__(self, work: Path) -> None:
        import onnxruntime
        from hibari import Hibari

        folder = work / "teacher"
        if not (folder / "durations.onnx").exists():
            folder.mkdir(parents=True, exist_ok=True)
            cut_open(folder / "hibari.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(folder / name), options, providers=["CPUExecutionProvider"]
            )

        self.tts = Hibari()
        self._whole, self._short = session("hibari.onnx"), session("durations.onnx")

    def phonemes(self, text: str) -> list[str]:
        """The misaki phonemes of each sentence."""
        return list(self.tts.phonemize(text))

    def ids(self, phonemes: str) -> list[int]:
        """hibari's ids of the phonemes, with the pauses at both ends."""
        return list(self.tts.ids(phonemes))

    def durations(self, ids: list[int], speed: float = 1.0) -> npt.NDArray[np.float32]:
        """The natural duration of every id, in units."""
        given = {"ids": np.asarray([ids], np.int64), "speed": np.array([speed], np.float32)}
        return np.asarray(self._short.run(None, given)[0], np.float32).reshape(-1)

    def parts(self, ids: list[int], durations: npt.NDArray[np.float32]) -> Parts:
        """The vocoder's inputs for the given durations, in units."""
        given = {
            "ids": np.asarray([ids], np.int64),
            "speed": np.ones(1, np.float32),
            "use": np.array([True]),
            "durations": np.asarray(durations, np.float32),
        }
        return [part[0] for part in self._whole.run(None, given)[:6]]
