"""Converts Perth's weights from its wheel to safetensors in 8 bits, as this package ships them.

    python -m scripts.convert_watermark resemble_perth-1.0.1-py3-none-any.whl

Only needed to change the weights; `pip download --no-deps resemble-perth==1.0.1` fetches the wheel.
Its checkpoint is a pickle. It is read with `torch.load(weights_only=True)`, which builds only
tensors, and only if its SHA-256 matches. Prints the hashes for `audio/perth.py`.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile

import torch
from safetensors.torch import save_file
from torch import Tensor

from csm_tts_plugin.audio.perth import BANDS, FOLDER

CHECKPOINT = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
CHECKPOINT_SHA256 = "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670"
LICENCE = "resemble_perth-1.0.1.dist-info/licenses/LICENSE"
_STACKS = {
    "marker.safetensors": {"marker": "encoder.layers"},
    "detector.safetensors": {name: f"decoder.{name}_layers" for name in ("slow", "normal", "fast")},
}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in, K] -> int8 [out, K * in] and the scale [out] of each output channel."""
    flat = weight.transpose(1, 2).flatten(1)
    scale = flat.abs().amax(dim=1) / 127
    return (flat / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def stack(state: dict[str, Tensor], source: str, name: str) -> dict[str, Tensor]:
    tensors = {}
    for number in range(7):
        weight, scale = quantised(state[f"{source}.{number}.conv.weight"].float())
        bias = state[f"{source}.{number}.conv.bias"].float()
        entries = {"weight": weight, "scale": scale, "bias": bias}
        tensors |= {f"{name}.{number}.{key}": value.contiguous() for key, value in entries.items()}
    return tensors


def main(wheel: str) -> int:
    with zipfile.ZipFile(wheel) as archive:
        data, licence = archive.read(CHECKPOINT), archive.read(LICENCE)
    found = hashlib.sha256(data).hexdigest()
    if found != CHECKPOINT_SHA256:
        print(f"{CHECKPOINT} has SHA-256 {found}, not {CHECKPOINT_SHA256}", file=sys.stderr)
        return 1
    # The only torch.load of this project; no user runs this script. It is safe: the hash is that
    # of the file in Perth's published wheel, and with `weights_only` torch's unpickler builds only
    # tensors and containers.
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["model"]
    assert state["encoder.layers.0.conv.weight"].shape[1] == BANDS
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "LICENSE").write_bytes(licence)
    for file, stacks in _STACKS.items():
        tensors: dict[str, Tensor] = {}
        for name, source in stacks.items():
            tensors |= stack(state, source, name)
        save_file(tensors, FOLDER / file)
        print(f'    "{file}": "{hashlib.sha256((FOLDER / file).read_bytes()).hexdigest()}",')
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
