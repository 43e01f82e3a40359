"""`voices`: the voices that are kept, each with the consent of whoever speaks in it."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from ..audio.reference import load_reference
from ..config import SAMPLE_RATE, ServerConfig
from ..engine.api import Samples
from ..errors import ConfigError, ConsentError, TextError, VoiceError
from ..protocol import VOICE_ID
from ..voices.choose import HeardTurn, choose, normalised
from ..voices.faults import faults_of
from ..voices.measure import measure
from ..voices.store import VoiceStore
from ..voices.voice import Consent, Voice, check_id
from .finding import Mark
from .voice_check import Examined, examine

_TRANSCRIPT_BYTES = 64 * 2**10


def add(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_add(actions.add_parser("add", help="keep a recording as a voice, with consent"))
    _add_list(actions.add_parser("list", help="all voices, and what is wrong with them"))
    _add_check(actions.add_parser("check", help="how good a recording or a voice is"))
    _add_remove(actions.add_parser("remove", help="delete a voice and its consent record"))


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="of a-z, 0-9, _ and -: the name to ask for it by")
    parser.add_argument("file", type=Path, help="3 to 15 s of speech as WAV, FLAC or OGG")
    parser.add_argument("--transcript", help="what is said in it (default: the .txt beside it)")
    parser.add_argument("--speaker", help="whose voice it is")
    parser.add_argument("--statement", help="what they agreed to, in their words")
    parser.add_argument("--date", default=date.today().isoformat(), help="of that (%(default)s)")
    parser.add_argument("--replace", action="store_true", help="in place of a voice of this id")
    parser.add_argument("--force", action="store_true", help="keep a poor recording all the same")
    _add_folder(parser, run_add)


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, run_list)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", help="a recording, or the id of a voice that is kept")
    parser.add_argument("--transcript", help="what is said in it (default: the .txt beside it)")
    parser.add_argument("--language", default="en", help="that is spoken (%(default)s)")
    parser.add_argument("--no-stt", action="store_true", help="do not listen for the words")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw it")
    _add_folder(parser, run_check)


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="of the voice")
    _add_folder(parser, run_remove)


def _add_folder(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--dir", type=Path, help="the voices' folder (default: CSM_VOICES_DIR)")
    parser.set_defaults(run=run)


def run_add(args: argparse.Namespace) -> int:
    """0. Raises ConsentError before anything is read, VoiceError for a poor recording, CsmError."""
    check_id(args.id)
    if not args.speaker or not args.statement:
        raise ConsentError(
            "A voice is kept by consent only: name the person with --speaker, and with --statement"
            " what they agreed to."
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
    print(f"voice {voice.id}: {voice.seconds:.1f} s kept in {store.folder}")
    print(f"consent of {consent.speaker}, {consent.date}, for the audio {voice.sha256[:16]}...")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """1 when a voice cannot be loaded, else 0."""
    store = _store(args)
    voices = store.list()
    for voice in voices:
        band = "  (a telephone's band)" if voice.band == "narrow" else ""
        facts = f"{voice.seconds:4.1f} s  {voice.date[:10]}  {voice.speaker}{band}"
        facts = voice.problem or facts
        print(f"{Mark.BAD if voice.problem else Mark.OK:<5}{voice.id:<24}{facts}")
    if not voices:
        print(f"no voices in {store.folder}; `voices add` keeps one")
    return int(any(voice.problem for voice in voices))


def run_check(args: argparse.Namespace) -> int:
    """1 when something should be recorded again, else 0. Raises CsmError."""
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
    """0. Raises VoiceError when there is no such voice."""
    _store(args).remove(args.id)
    print(f"voice {args.id}: its audio and its consent record are deleted")
    return 0


def _store(args: argparse.Namespace) -> VoiceStore:
    folder = args.dir or ServerConfig.from_env().voices_dir
    if folder is None:
        raise ConfigError("There is no folder for voices: set CSM_VOICES_DIR, or name it by --dir.")
    return VoiceStore(folder)


def _named(args: argparse.Namespace) -> tuple[str, Samples, str | None]:
    """Name, sound and words of a file, or of a voice that is kept."""
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
    """Raises TextError."""
    beside = recording.with_suffix(".txt")
    if given is not None or not beside.is_file():
        if not (given or "").strip():
            raise TextError(
                f"The words of {recording.name} are missing: give --transcript, or write them into"
                f" {beside.name} beside it."
            )
        return str(given).strip()
    try:
        with beside.open("rb") as file:
            return file.read(_TRANSCRIPT_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        raise TextError(f"{beside.name} cannot be read as UTF-8 text; save it again.") from None


def _reference(path: Path, samples: Samples, transcript: str, force: bool) -> Samples:
    """Trimmed and at the loudness of all references. Raises VoiceError for a poor recording."""
    figures, _ = measure(samples, SAMPLE_RATE)
    faults = faults_of(figures, transcript)
    if faults and not force:
        raise VoiceError(
            f"{path.name} makes no good voice: {faults[0].words}. `voices check` shows all there"
            " is; --force keeps it as it is."
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
            "A picture takes matplotlib: `pip install matplotlib`, or leave -o away."
        ) from None
    try:
        draw(examined, name, path)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "not a kind of picture"
        raise ConfigError(f"{path} cannot be drawn ({cause}); name a .png with -o.") from None
    print(f"drew {path}")
