"""`make sanitize`: runs the tests of the C kernels with the address and undefined-behaviour
sanitisers of gcc, which end the run at the first wrong access."""

from __future__ import annotations

import os
import subprocess
import sys

from .setup_tools import ROOT

LIBRARIES = ("libasan.so", "libubsan.so")
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")
TESTS = ("test_native.py", "test_native_codec.py", "test_native_choice.py")


def main() -> int:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        return run()
    found = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in LIBRARIES
    ]
    # torch and Python themselves are not built for the sanitisers: leaks would be theirs.
    changes = {
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "scripts.sanitize", *sys.argv[1:]]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **changes})


def run() -> int:
    import pytest

    from csm_tts_plugin.engine.native import build

    # Registers of floats need not be aligned: the type says so.
    build._FLAGS[0] = "-O1"
    build._FLAGS += [*FLAGS, "-fno-sanitize=alignment"]
    build._SECONDS = 600.0
    tests = [f"tests/engine/{name}" for name in TESTS]
    return pytest.main(["-q", "-p", "no:cacheprovider", *tests, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
