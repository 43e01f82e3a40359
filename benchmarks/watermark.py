"""The watermark: detection after processing, false alarms, and its effect on the speech.

    python benchmarks/watermark.py [--count 60] [--model tiny] [--words] [--out FILE]

`--count` utterances of each kind of speech: the model's own as the engine delivers it (the first
four frames unmarked); recordings of people encoded and decoded by the model's codec, watermarked;
and for false alarms the same recordings and the model's speech without a watermark. Each is
examined unchanged and after common kinds of processing. The recordings are prompts of Debian's
asterisk-core-sounds (English, French, Spanish, Italian, Russian; five people); without apt these
figures are omitted.

`--words`: word error rates by Whisper base with and without the watermark. distillmos and PESQ are
measured too if they are installed (`naturalness.py`).
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import soxr
import torch
from common import finish, heard, machine, percentile, ready_engine, say, table
from naturalness import likeness, ratings

from csm_tts_plugin.audio.detection import detect
from csm_tts_plugin.audio.watermark import marked
from csm_tts_plugin.config import SAMPLE_RATE, EngineConfig
from csm_tts_plugin.engine.api import Sampling
from csm_tts_plugin.engine.loading import load_checkpoint
from scripts.setup_tools import SetupError, Tools
from tests.support import mulaw
from training import sentences

LANGUAGES = ("en", "fr", "es", "it", "ru")
SHORTEST_S, LONGEST_S = 1.5, 8.0

Sound = np.ndarray


def spoken(model: str, texts: list[str], watermark: str) -> list[Sound]:
    """The engine's speech for `texts`, seeds 0, 1, ...: the codes do not
    depend on the watermark.
    """
    config = EngineConfig(model=model, slots=8, queue=len(texts), watermark=watermark)
    engine = ready_engine(config)
    events = [
        say(engine, engine.open(), text, sampling=Sampling(seed=seed))
        for seed, text in enumerate(texts)
    ]
    sounds = [np.clip(heard(one)[0], -1, 1) for one in events]
    engine.stop()
    return sounds


def people(count: int) -> list[Sound]:
    """Up to `count` recordings at 24 kHz, equally many of each language."""
    import av

    found: list[Sound] = []
    share = -(-count // len(LANGUAGES))
    for language in LANGUAGES:
        with Tools().debian_package(f"asterisk-core-sounds-{language}-g722") as folder:
            files = sorted(folder.rglob("*.g722"))
            random.Random(0).shuffle(files)
            fitting = [
                path for path in files if SHORTEST_S <= path.stat().st_size / 8_000 <= LONGEST_S
            ]
            for path in fitting[:share]:
                with av.open(str(path), format="g722") as file:
                    pcm = [frame.to_ndarray()[0] for frame in file.decode(audio=0)]
                sound = np.concatenate(pcm).astype(np.float32) / 32_768
                found.append(soxr.resample(sound, 16_000, SAMPLE_RATE))
    return found[:count]


def resynthesised(model: str, sounds: list[Sound]) -> list[Sound]:
    codec = load_checkpoint(EngineConfig(model=model)).model.codec_model
    made = []
    with torch.inference_mode():
        for sound in sounds:
            codes = codec.encode(torch.from_numpy(sound)[None, None]).audio_codes
            made.append(codec.decode(codes).audio_values[0, 0].numpy())
    return made


# Processing


def telephone(sound: Sound) -> Sound:
    pcm = np.clip(np.rint(sound * 32_767), -32_768, 32_767).astype(np.int16)
    return soxr.resample(mulaw.line(pcm, SAMPLE_RATE).astype(np.float32) / 32_768, 8_000, 24_000)


def coded(sound: Sound, codec: str, container: str, rate: int, bits: int, **options: str) -> Sound:
    """Encoded and decoded by libav."""
    import av

    pcm = np.clip(np.rint(soxr.resample(sound, SAMPLE_RATE, rate) * 32_767), -32_768, 32_767)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono", options=options)
        stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray(pcm.astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as file:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        parts = [one.to_ndarray()[0] for f in file.decode(audio=0) for one in resampler.resample(f)]
    return np.concatenate(parts)


def faster(sound: Sound) -> Sound:
    """10 % faster at the same pitch, as in players."""
    import av

    graph = av.filter.Graph()
    source = graph.add_abuffer(format="flt", sample_rate=SAMPLE_RATE, layout="mono")
    graph.link_nodes(source, graph.add("atempo", "1.1"), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(sound[None].astype("<f4"), format="flt", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    graph.push(frame)
    graph.push(None)
    parts = []
    while True:
        try:
            parts.append(graph.pull().to_ndarray()[0])
        except (av.error.BlockingIOError, av.error.EOFError):
            return np.concatenate(parts)


def faster_and_higher(sound: Sound) -> Sound:
    return soxr.resample(sound, 11, 10)


def noisy(sound: Sound) -> Sound:
    noise = np.random.default_rng(len(sound)).standard_normal(len(sound)).astype(np.float32)
    return sound + noise * np.sqrt(np.mean(sound**2)) * 0.1


def second(sound: Sound) -> Sound:
    middle = max(0, len(sound) - SAMPLE_RATE) // 2
    return sound[middle : middle + SAMPLE_RATE]


WAYS: dict[str, Callable[[Sound], Sound]] = {
    "as it is": lambda sound: sound,
    "mu-law, 8 kHz": telephone,
    "Opus, 16 kbit/s": partial(
        coded, codec="libopus", container="ogg", rate=48_000, bits=16_000, application="voip"
    ),
    "Opus, 24 kbit/s": partial(
        coded, codec="libopus", container="ogg", rate=48_000, bits=24_000, application="voip"
    ),
    "mp3, 64 kbit/s": partial(coded, codec="libmp3lame", container="mp3", rate=24_000, bits=64_000),
    "10 % faster": faster,
    "10 % faster and higher": faster_and_higher,
    "noise 20 dB below": noisy,
    "one second of it": second,
}


def rates(kinds: dict[str, list[Sound]]) -> dict[str, dict[str, dict]]:
    """For each processing and kind: the share detected, and mean, lowest and highest confidence."""
    result: dict[str, dict[str, dict]] = {}
    for way, change in WAYS.items():
        result[way] = {}
        for kind, sounds in kinds.items():
            found = [detect(np.ascontiguousarray(change(sound), np.float32)) for sound in sounds]
            whole = [one.whole for one in found]
            result[way][kind] = {
                "marked": round(float(np.mean([one.marked for one in found])), 4),
                "mean": round(float(np.mean(whole)), 3),
                "lowest": round(min(whole), 3),
                "highest": round(max(whole), 3),
            }
        print(f"  {way}: done", flush=True)
    return result


def quality(plain: list[Sound], made: list[Sound]) -> dict:
    """Scores of distillmos (1 to 5), PESQ, and the level of the watermark in dB below the
    speech."""
    pairs = list(zip(plain, made, strict=True))
    below = [10 * np.log10(np.mean(a**2) / np.mean((a - b) ** 2)) for a, b in pairs]
    result = {"change_db": -round(float(percentile(below, 0.5)), 1)}
    for name, sounds in (("plain", plain), ("marked", made)):
        if found := ratings(sounds, SAMPLE_RATE):
            result[f"distillmos_{name}"] = round(float(np.mean(found)), 3)
    alike = [found for a, b in pairs if (found := likeness(a, b, SAMPLE_RATE)) is not None]
    return result | ({"pesq": round(float(np.mean(alike)), 3)} if alike else {})


def word_errors(texts: list[str], sounds: list[Sound]) -> float:
    """Word error rate by Whisper base."""
    from tests.support.wording import Listener, errors, words

    listener, wrong, total = Listener(), 0, 0
    for text, sound in zip(texts, sounds, strict=True):
        wrong += errors(words(listener.hear(sound, SAMPLE_RATE)), words(text))
        total += len(words(text))
    return wrong / total


def cost(seconds: float = 8.0) -> dict[str, float]:
    """CPU seconds per second of audio: watermarking streams frame by frame, and detection."""
    from csm_tts_plugin.audio.watermark import Marker

    sound = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    result = {}
    for rows in (1, 16):
        marker = Marker(rows)
        frames = torch.from_numpy(sound).view(-1, 1, 1920).expand(-1, rows, -1).contiguous()
        began = time.thread_time()
        for frame in frames:
            marker(frame, range(rows))
        result[f"marking_{rows}"] = round((time.thread_time() - began) / seconds / rows, 4)
    detect(sound)
    began = time.thread_time()
    detect(sound)
    return {**result, "detecting": round((time.thread_time() - began) / seconds, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--words", action="store_true", help="word error rates too")
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = sentences.held_out(args.count)
    made, plain = (spoken(args.model, texts, watermark) for watermark in ("perth", "off"))
    kinds = {"speech": made, "speech, unmarked": plain}
    try:
        recordings = people(args.count)
        kinds["people, unmarked"] = recordings
        kinds["people by the codec"] = [
            marked(one) for one in resynthesised(args.model, recordings)
        ]
    except SetupError as error:
        print(f"no recordings of people: {error}", file=sys.stderr)
    kinds = {name: kinds[name] for name in sorted(kinds, key=lambda name: "unmarked" in name)}
    found = rates(kinds)
    rows = [
        [way, *(f"{kinds[name]['marked']:.1%}" for name in kinds)] for way, kinds in found.items()
    ]
    table(f"found marked, of {args.count} each", ["", *kinds], rows)
    result = {"benchmark": "watermark", "model": args.model, **machine("cpu")}
    result |= {"count": args.count, "rates": found, "quality": quality(plain, made)}
    result["cpu_seconds_a_second"] = cost()
    if args.words:
        named = {"plain": plain, "marked": made}
        result["wer"] = {name: round(word_errors(texts, one), 4) for name, one in named.items()}
    finish(result, args.out)


if __name__ == "__main__":
    main()
