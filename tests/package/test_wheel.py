"""The wheel in a fresh environment outside the checkout, as users install it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from csm_tts_plugin.version import __version__
from scripts.setup_tools import ROOT, TOOLS
from tests.server.conftest import serving

pytestmark = pytest.mark.timeout(600)

INSTALL = '`pip install ".[engine]"` in the checkout of csm-tts-plugin'
WHEEL_MB, INSTALLED_MB = 60, 400
SHIPPED = ("csm_tts_plugin", "livekit", "pyproject.toml", "README.md", "LICENSE")
ALONE = {"CSM_ENGINE_URL": "", "CSM_MODEL": "tiny", "PATH": "/usr/bin:/bin"}


def run(*words: str | Path, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves build files in the folder, and would reuse old ones."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    limits = ("--build-constraints", ROOT / "constraints.txt")
    run(uv(), "build", "--wheel", "--quiet", *limits, "--out-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory) -> Path:
    """A folder outside of the checkout with an environment that has only the wheel."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(uv(), "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    where = ("--python", folder / "venv" / "bin" / "python")
    limits = ("-c", ROOT / "constraints.txt")
    run(uv(), "pip", "install", "--quiet", *where, wheel, *limits, cwd=folder)
    return folder


def uv() -> Path:
    return TOOLS / "uv" / "bin" / "uv"


def command(place: Path, *words: str, code: int = 0) -> str:
    return run(place / "venv/bin/csm-tts", *words, cwd=place, code=code, env=ALONE)


def python(place: Path, text: str, code: int = 0) -> str:
    return run(place / "venv/bin/python", "-c", text, cwd=place, code=code, env=ALONE)


def test_the_wheel_is_small_and_holds_what_it_needs(wheel):
    size = wheel.stat().st_size / 2**20
    print(f"the wheel has {size:.1f} MiB")
    assert size < WHEEL_MB
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "csm_tts_plugin",
        "livekit",
        f"csm_tts_plugin-{__version__}.dist-info",
    }
    sources = [f"engine/native/{name}" for name in ("frame.c", "codec.c", "layers.h", "vectors.h")]
    for needed in (
        "py.typed",
        "assets/tiny/model.safetensors",
        "assets/phrases/de.toml",
        *sources,
    ):
        assert f"csm_tts_plugin/{needed}" in names
    assert "livekit/__init__.py" not in names, "it would hide livekit's own package"


def test_the_base_install_has_no_torch_and_is_small(place):
    packages = next((place / "venv/lib").glob("python*/site-packages"))
    for name in ("torch", "torchaudio", "transformers", "safetensors"):
        assert not (packages / name).exists()
    size = sum(file.lstat().st_size for file in packages.rglob("*") if file.is_file()) / 2**20
    print(f"installed: {size:.0f} MiB")
    assert size <= INSTALLED_MB


BASE = """
import asyncio, json
import csm_tts_plugin.audio.playback, csm_tts_plugin.audio.recording
import csm_tts_plugin.audio.reference, csm_tts_plugin.audio.resample
import csm_tts_plugin.worker
from csm_tts_plugin import TTS, CallerVoiceAgent, Consent, ConsentPolicy, Voice
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import ConfigError
from livekit.plugins import csm

assert csm.TTS is TTS
ConsentPolicy(languages=("en", "de"))

async def speak():
    async with TTS(engine_url="{url}") as speech, speech.synthesize("Hello there.") as stream:
        return sum([event.frame.duration async for event in stream])

seconds = asyncio.run(speak())
try:
    TTS()
except ConfigError as error:
    alone = str(error)
try:
    from csm_tts_plugin import load_csm_1b
except ImportError as error:
    library = str(error)
home = csm_tts_plugin.__file__
print(json.dumps(dict(home=home, seconds=seconds, alone=alone, library=library)))
"""


async def test_the_base_install_speaks_through_an_engine_elsewhere_and_says_what_else_needs(place):
    async with serving() as server:
        printed = await asyncio.to_thread(python, place, BASE.format(url=server.url))
    said = json.loads(printed.splitlines()[-1])
    assert said["home"].startswith(str(place))
    assert said["seconds"] > 0.1
    assert said["alone"] == (
        "torch, transformers, safetensors are not installed;"
        f" {INSTALL}, or name a running engine by CSM_ENGINE_URL."
    )
    assert said["library"] == f"load_csm_1b needs torch; {INSTALL}."


@pytest.mark.parametrize("words", [("serve",), ("say", "Hello."), ("detect", "speech.wav")])
def test_commands_that_need_an_engine_say_what_to_install(place, words):
    (place / "speech.wav").write_bytes(b"")
    said = command(place, *words, code=2)
    assert len(said.splitlines()) == 1
    assert f"not installed; {INSTALL}" in said


def test_the_console_script_knows_its_version_and_its_commands(place):
    assert command(place, "--version") == __version__
    helped = command(place, "--help")
    assert helped.startswith("usage: csm-tts ")
    for name in ("say", "serve", "voices", "detect", "doctor"):
        assert f"\n    {name} " in helped


def test_the_checkout_s_own_environment_has_the_package_from_any_folder(tmp_path):
    said = run(Path(sys.executable).with_name("csm-tts"), "--version", cwd=tmp_path)
    assert said == __version__
