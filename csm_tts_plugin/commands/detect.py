"""`detect`: looks for the watermark of synthetic speech in recordings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio.reference import Bounds, load_recording
from ..config import SAMPLE_RATE
from ..errors import CsmError

if TYPE_CHECKING:
    from ..audio.detection import Detection

_BOUNDS = Bounds(2**30, 0.5, 4 * 3600.0, "one second of speech is enough")
"""Limits for the user's own files, such as recordings of whole calls."""
_NOT_MARKED, _UNREADABLE = 3, 2
_A_LINE = 10


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="WAV, FLAC, OGG, MP3, M4A or WebM"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads all files. 0: all are marked; 3: one is not; 2: one cannot be read."""
    codes = {_examine(path, as_json=args.json) for path in args.files}
    return next((code for code in (_UNREADABLE, _NOT_MARKED) if code in codes), 0)


def _examine(path: Path, *, as_json: bool) -> int:
    from ..audio.detection import detect

    try:
        samples = load_recording(path, _BOUNDS)
        found = detect(samples)
    except CsmError as error:
        print(f"csm_tts_plugin: {error}", file=sys.stderr)
        return _UNREADABLE
    length = len(samples) / SAMPLE_RATE
    print(_as_json(path, length, found) if as_json else _as_text(path, length, found), flush=True)
    return 0 if found.marked else _NOT_MARKED


def _as_json(path: Path, length: float, found: Detection) -> str:
    return json.dumps({"file": str(path), "length": round(length, 2), **found.as_dict()})


def _as_text(path: Path, length: float, found: Detection) -> str:
    said = "marked" if found.marked else "not marked"
    lines = [f"{path}: {said}, confidence {found.whole:.2f} over {length:.1f} s"]
    for first in range(0, len(found.seconds), _A_LINE):
        row = found.seconds[first : first + _A_LINE]
        figures = "  ".join("   -" if one is None else f"{one:.2f}" for one in row)
        lines.append(f"{first:6d} s  {figures}")
    return "\n".join(lines)
