"""`voices`: manages stored voices, each with the consent of its speaker."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from ..audio.reference import load_reference
from ..config import SAMPLE_RATE, ServerConfig
from ..engine.api import Samples
from ..errors import ConfigError, ConsentError, TextError, VoiceError
from ..voices.choose import HeardTurn, choose, normalised
from ..voices.faults import faults_of
from ..voices.measure import measure
from ..voices.store import VoiceStore
from ..voices.voice import Consent, Voice, check_id
from ..wire.protocol import VOICE_ID
from .finding import Mark
from .voice_check import Examined, examine

_TRANSCRIPT_BYTES = 64 * 2**10


def add(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_add(actions.add_parser("add", help="store a recording as a voice, with consent"))
    _add_list(actions.add_parser("list", help="list all voices and their faults"))
    _add_check(actions.add_parser("check", help="measure a recording or a stored voice"))
    _add_remove(actions.add_parser("remove", help="delete a voice and its consent record"))


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="id of the voice, from a-z, 0-9, _ and -")
    parser.add_argument(
        "file", type=Path, help="3 to 15 s of speech: WAV, FLAC, OGG, MP3, M4A or WebM"
    )
    parser.add_argument(
        "--transcript", help="the words spoken in it (default: the .txt file beside it)"
    )
    parser.add_argument("--speaker", help="the person who speaks")
    parser.add_argument("--statement", help="what the person agreed to, in their words")
    parser.add_argument(
        "--date",
        default=date.today().isoformat(),
        help="date of the agreement (default: %(default)s)",
    )
    parser.add_argument("--replace", action="store_true", help="replace the voice with this id")
    parser.add_argument(
        "--force", action="store_true", help="store the recording in spite of its faults"
    )
    _add_folder(parser, run_add)


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, run_list)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", help="a recording, or the id of a stored voice")
    parser.add_argument(
        "--transcript", help="the words spoken in it (default: the .txt file beside it)"
    )
    parser.add_argument("--language", default="en", help="language spoken (default: %(default)s)")
    parser.add_argument("--no-stt", action="store_true", help="do not transcribe the recording")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PNG", help="write a picture of the figures"
    )
    _add_folder(parser, run_check)


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="id of the voice")
    _add_folder(parser, run_remove)


def _add_folder(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--dir", type=Path, help="folder of the voices (default: CSM_VOICES_DIR)")
    parser.set_defaults(run=run)


def run_add(args: argparse.Namespace) -> int:
    """Returns 0. Raises ConsentError before it reads a file, VoiceError for a poor recording."""
    check_id(args.id)
    if not args.speaker or not args.statement:
        raise ConsentError(
            "A voice is stored only with consent: give the person by --speaker, and what they"
            " agreed to by --statement."
        )
    consent = Consent(args.speaker, args.statement, args.date)
    store = _store(args)
    recorded = load_reference(args.file)
    transcript = _transcript(args.file, args.transcript)
    samples = _reference(args.file, recorded, transcript, args.force)
    voice = Voice.from_audio(
        samples, SAMPLE_RATE, transcript=transcript, consent=consent, id=args.id
    )
    store.add(voice, replace=args.replace)
    print(f"voice {voice.id}: {voice.seconds:.1f} s stored in {store.folder}")
    print(f"consent of {consent.speaker}, {consent.date}, for the audio {voice.sha256[:16]}...")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """1 if a voice cannot be loaded, else 0."""
    store = _store(args)
    voices = store.list()
    for voice in voices:
        band = "  (telephone bandwidth)" if voice.band == "narrow" else ""
        facts = f"{voice.seconds:4.1f} s  {voice.date[:10]}  {voice.speaker}{band}"
        facts = voice.problem or facts
        print(f"{Mark.BAD if voice.problem else Mark.OK:<5}{voice.id:<24}{facts}")
    if not voices:
        print(f"no voices in {store.folder}; `voices add` stores one")
    return int(any(voice.problem for voice in voices))


def run_check(args: argparse.Namespace) -> int:
    """1 if something should be recorded again, else 0. Raises CsmError."""
    name, samples, transcript = _named(args)
    examined = examine(samples, transcript, None if args.no_stt else args.language)
    for finding in examined.findings:
        print(f"{finding.mark:<5}{finding.text}")
    if args.output is not None:
        _draw(examined, name, args.output)
    again = [finding for finding in examined.findings if finding.mark is Mark.BAD]
    print("record it again: see BAD above" if again else f"good: {examined.score:.2f} of 1")
    return int(bool(again))


def run_remove(args: argparse.Namespace) -> int:
    """Returns 0. Raises VoiceError if there is no such voice."""
    _store(args).remove(args.id)
    print(f"voice {args.id}: its audio and its consent record are deleted")
    return 0


def _store(args: argparse.Namespace) -> VoiceStore:
    folder = args.dir or ServerConfig.from_env().voices_dir
    if folder is None:
        raise ConfigError("There is no folder for voices: set CSM_VOICES_DIR, or name it by --dir.")
    return VoiceStore(folder)


def _named(args: argparse.Namespace) -> tuple[str, Samples, str | None]:
    """Name, samples and transcript of a file or of a stored voice."""
    path = Path(args.voice)
    if VOICE_ID.fullmatch(args.voice) and not path.exists():
        voice = _store(args).load(args.voice)
        return voice.id, voice.audio, args.transcript or voice.transcript
    samples = load_reference(path)
    try:
        return path.name, samples, _transcript(path, args.transcript)
    except TextError:
        return path.name, samples, None


def _transcript(recording: Path, given: str | None) -> str:
    """The given transcript, or that of the text file beside the recording. Raises TextError."""
    beside = recording.with_suffix(".txt")
    if given is not None or not beside.is_file():
        if not (given or "").strip():
            raise TextError(
                f"The transcript of {recording.name} is missing: give --transcript, or write it to"
                f" {beside.name} beside it."
            )
        return str(given).strip()
    try:
        with beside.open("rb") as file:
            return file.read(_TRANSCRIPT_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        raise TextError(f"{beside.name} cannot be read as UTF-8 text; save it again.") from None


def _reference(path: Path, samples: Samples, transcript: str, force: bool) -> Samples:
    """Trims the audio and normalises its loudness. Raises VoiceError for a poor recording."""
    figures, _ = measure(samples, SAMPLE_RATE)
    faults = faults_of(figures, transcript)
    if faults and not force:
        raise VoiceError(
            f"{path.name} makes no good voice: {faults[0].words}. `voices check` shows all faults;"
            " --force stores it in spite of them."
        )
    choice, _ = choose([HeardTurn(transcript, samples, SAMPLE_RATE)])
    if choice is not None:
        return choice.samples
    return normalised(samples, figures) if figures.speech_seconds else samples


def _draw(examined: Examined, name: str, path: Path) -> None:
    try:
        from .voice_picture import draw
    except ImportError:
        raise ConfigError(
            "A picture needs matplotlib: `pip install matplotlib`, or leave out -o."
        ) from None
    try:
        draw(examined, name, path)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "not a kind of picture"
        raise ConfigError(f"{path} cannot be drawn ({cause}); name a .png with -o.") from None
    print(f"drew {path}")
