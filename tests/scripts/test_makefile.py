"""Which variables the Makefile's commands get."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from scripts.setup_tools import ROOT

NAMES = (
    "PORT",
    "CALLER",
    "CSM_MODEL",
    "CSM_DEVICE",
    "CSM_ENGINE_URL",
    "AGENT_STT",
    "AGENT_LLM",
    "VOICE_SOURCE",
)
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def given(tmp_path):
    """Returns a function: the variables of `NAMES` in the environment of a command of make."""
    probe = tmp_path / "probe.mk"
    probe.write_text("probe:\n\t@env\n")

    def run(*words: str, **env: str) -> dict[str, str]:
        away = (*NAMES, "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # the last three: of `make test`
        clean = {name: value for name, value in os.environ.items() if name not in away}
        make = ["make", "--no-print-directory", "-f", "Makefile", "-f", str(probe), "probe"]
        done = subprocess.run(
            [*make, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**clean, **env},
            timeout=60,
            check=True,
        )
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return {name: found[name] for name in NAMES if name in found}

    return run


def test_a_variable_that_is_not_set_is_left_to_env_file(given):
    """An empty variable in the environment would have precedence over `.env`."""
    assert given() == {}


def test_a_variable_of_the_command_line_or_the_environment_is_passed_on(given):
    assert given("CSM_MODEL=tiny", PORT="9000") == {"CSM_MODEL": "tiny", "PORT": "9000"}
