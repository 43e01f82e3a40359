"""Reads a text file aloud with the library, without LiveKit; one WAV file per paragraph.

python examples/narrator.py story.txt spoken/ --model tiny
python examples/narrator.py story.txt spoken/ --voice anna.wav --transcript "Words of anna.wav."
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile

from csm_tts_plugin import generate_streaming_audio, load_csm_1b, load_reference_audio
from csm_tts_plugin.errors import CsmError
from csm_tts_plugin.text.splitting import SentenceSplitter

RATE = 24_000


def narrate(args: argparse.Namespace) -> None:
    text = args.text.read_text(encoding="utf-8")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    reference = {"path": str(args.voice), "text": args.transcript, "speaker_id": "0"}
    references = load_reference_audio([reference]) if args.voice else None
    generator = load_csm_1b(args.model)
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, paragraph in enumerate(paragraphs, 1):
        splitter = SentenceSplitter()
        spoken = [
            generate_streaming_audio(
                generator, sentence, play_audio=False, reference_data=references, progress=None
            )
            for sentence in splitter.push(paragraph) + splitter.flush()
        ]
        audio = np.concatenate(spoken)
        soundfile.write(args.folder / f"{number:03}.wav", audio, RATE)
        print(f"{number:03}.wav: {len(audio) / RATE:.1f} s, {len(spoken)} sentences", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Read a text file aloud into WAV files.")
    parser.add_argument("text", type=Path, help="paragraphs, separated by empty lines")
    parser.add_argument("folder", type=Path, help="folder for the WAV files")
    parser.add_argument("--model", default="eustlb/csm-1b", help="hub id, folder, or tiny")
    parser.add_argument("--voice", type=Path, help="recording of a voice to clone, 3 to 15 s")
    parser.add_argument("--transcript", default="", help="the words of the recording")
    try:
        narrate(parser.parse_args())
    except (CsmError, OSError) as error:
        print(f"narrator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
