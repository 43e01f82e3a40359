"""Decodes G.722 at 64 kbit/s to raw 16 kHz mono PCM: python decode_g722.py IN OUT. Needs PyAV."""

from __future__ import annotations

import sys
from pathlib import Path

import av


def decode(path: Path) -> bytes:
    """The recording as 16-bit samples."""
    with av.open(str(path), format="g722") as file:
        return b"".join(frame.to_ndarray().tobytes() for frame in file.decode(audio=0))


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(decode(Path(sys.argv[1])))
