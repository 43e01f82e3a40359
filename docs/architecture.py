"""Draws docs/architecture.svg and .png: `python docs/architecture.py` (needs matplotlib)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
INK, GREY = "#1f2933", "#5b6770"
BLUE, ORANGE, SAND = "#2f6f9f", "#c8641b", "#8a7440"
FILL = {BLUE: "#e8f0f6", ORANGE: "#fbeee4", SAND: "#f5f1e4", GREY: "#f2f4f5"}


def frame(axes, x, y, w, h, title, under, colour):
    """Draws a process: a light box with its name on top."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), w, h, style, fc=FILL[colour], ec=colour, lw=1.3))
    axes.text(x + 0.18, y + h - 0.16, title, va="top", size=11, weight="bold", color=colour)
    axes.text(x + 0.18, y + h - 0.46, under, va="top", size=8.2, color=GREY)


def box(axes, x, y, w, h, title, lines="", colour=INK):
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch((x, y), w, h, style, fc="white", ec=colour, lw=1.0))
    middle, count = x + w / 2, len(lines.splitlines())
    top = y + h / 2 + (0.2 + 0.155 * count) / 2
    axes.text(middle, top, title, ha="center", va="top", size=9, weight="bold")
    axes.text(middle, top - 0.25, lines, ha="center", va="top", size=7.7, color=GREY)


def arrow(axes, start, end, text="", at=None, colour=INK, both=False, **placing):
    style = "<|-|>,head_length=4,head_width=2.4" if both else "-|>,head_length=4,head_width=2.4"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, lw=1.2, color=colour, shrinkA=1, shrinkB=1, zorder=3
        )
    )
    if text:
        x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.08)
        options = {"ha": "center", "va": "bottom", "size": 7.7, "color": colour, **placing}
        axes.text(x, y, text, **options)


def caller_and_livekit(axes):
    box(axes, 0.1, 3.4, 1.3, 0.9, "Caller", "browser, app\nor telephone", GREY)
    box(axes, 2.0, 3.4, 1.35, 0.9, "LiveKit server", "rooms, WebRTC,\ndispatch", GREY)
    arrow(axes, (1.4, 3.85), (2.0, 3.85), "WebRTC", both=True)
    arrow(axes, (3.35, 3.85), (4.2, 3.85), "audio", (3.62, 3.9))


def services(axes):
    frame(axes, 3.95, 5.55, 4.1, 1.25, "STT and LLM", "named by AGENT_STT and AGENT_LLM", SAND)
    axes.text(
        4.13,
        6.07,
        "a service (LiveKit Inference, OpenAI's protocol), or offline in\n"
        "a process of the worker: Whisper base and SmolLM2",
        va="top",
        size=7.7,
        color=GREY,
    )
    arrow(axes, (6.15, 4.3), (6.15, 5.55), both=True, colour=SAND)
    arrow(axes, (7.25, 4.3), (7.25, 5.55), both=True, colour=SAND)


def worker(axes):
    frame(axes, 3.95, 0.3, 4.1, 4.9, "agent worker", "CallerVoiceAgent", BLUE)
    box(axes, 4.2, 3.4, 0.8, 0.9, "VAD", "end of\nturn", BLUE)
    box(axes, 5.35, 3.4, 1.0, 0.9, "STT", "words of\nthe turn", BLUE)
    box(axes, 6.75, 3.4, 1.0, 0.9, "LLM", "streams\nthe reply", BLUE)
    arrow(axes, (5.0, 3.85), (5.35, 3.85))
    arrow(axes, (6.35, 3.85), (6.75, 3.85))
    box(
        axes,
        4.2,
        1.98,
        1.75,
        0.9,
        "caller's turns",
        "3 to 15 s of speech\nwith transcript, only\nwith consent",
        BLUE,
    )
    arrow(axes, (5.6, 3.4), (5.3, 2.88))
    box(axes, 6.2, 1.98, 1.55, 0.9, "sentences", "each is sent when\nit is complete", BLUE)
    arrow(axes, (7.25, 3.4), (7.25, 2.88))
    box(
        axes,
        4.2,
        0.55,
        3.55,
        0.9,
        "TTS plugin (tts.py)",
        "one conversation per call, typed errors,\nresampled to 8, 16, 24 or 48 kHz",
        BLUE,
    )
    arrow(axes, (4.97, 1.98), (4.97, 1.45), "voice, turns", (5.05, 1.72), ha="left", va="center")
    arrow(axes, (6.97, 1.98), (6.97, 1.45), "text", (7.05, 1.72), ha="left", va="center")
    axes.plot([4.2, 2.67], [1.0, 1.0], color=ORANGE, lw=1.2)
    arrow(axes, (2.67, 1.0), (2.67, 3.4), colour=ORANGE)
    axes.text(3.25, 1.06, "speech", ha="center", va="bottom", size=7.7, color=ORANGE)


def engine(axes):
    frame(
        axes,
        9.35,
        0.3,
        5.0,
        6.5,
        "engine",
        "one process for each GPU, many workers and calls",
        ORANGE,
    )
    box(
        axes,
        9.6,
        4.5,
        4.5,
        1.25,
        "server: event loop",
        "one session per socket; checks limits, key and consent record\n"
        "one bounded outbox per session: a slow client delays no other\n"
        "/v1/stream  /ws  /v1/audio/speech  /v1/voices  /readyz  /metrics",
        ORANGE,
    )
    arrow(
        axes,
        (10.6, 4.5),
        (10.6, 3.72),
        "inbox: open, turn, say, cancel",
        (10.68, 4.08),
        ha="left",
        va="center",
    )
    arrow(
        axes,
        (13.5, 3.72),
        (13.5, 4.5),
        "frames",
        (13.42, 4.08),
        colour=ORANGE,
        ha="right",
        va="center",
    )
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch((9.6, 0.55), 4.5, 3.17, style, fc="white", ec=ORANGE, lw=1.0))
    axes.text(
        11.85,
        3.6,
        "device thread: the only one that calls torch",
        ha="center",
        va="top",
        size=9,
        weight="bold",
    )
    axes.text(
        11.85,
        3.33,
        "schedule, run, deliver; streams join and leave at frame boundaries",
        ha="center",
        va="top",
        size=7.7,
        color=GREY,
    )
    box(axes, 9.8, 2.05, 1.25, 0.9, "schedule", "prefill or frame,\nfor which streams", ORANGE)
    box(axes, 11.22, 2.05, 1.25, 0.9, "prefill", "a bounded piece\nof a prompt", ORANGE)
    box(axes, 12.64, 2.05, 1.25, 0.9, "frame step", "80 ms for all\nstreams", ORANGE)
    arrow(axes, (11.05, 2.5), (11.22, 2.5))
    arrow(axes, (12.47, 2.5), (12.64, 2.5))
    box(axes, 9.8, 0.75, 1.25, 0.9, "depth decoder", "all codebooks,\nsampling inside", ORANGE)
    box(axes, 11.22, 0.75, 1.25, 0.9, "Mimi", "codes to audio,\nstreaming", ORANGE)
    box(axes, 12.64, 0.75, 1.25, 0.9, "backbone", "reads the new\nframe", ORANGE)
    arrow(axes, (11.05, 1.2), (11.22, 1.2))
    arrow(axes, (12.47, 1.2), (12.64, 1.2))
    axes.plot([12.64, 9.8], [2.05, 1.65], color=GREY, lw=0.7, ls=":")
    axes.plot([13.89, 13.89], [2.05, 1.65], color=GREY, lw=0.7, ls=":")


def between(axes):
    axes.plot([7.75, 8.6], [1.15, 1.15], color=INK, lw=1.2)
    axes.plot([8.6, 8.6], [1.15, 5.4], color=INK, lw=1.2)
    arrow(axes, (8.6, 5.4), (9.6, 5.4), colour=INK)
    axes.plot([9.6, 8.9], [4.95, 4.95], color=ORANGE, lw=1.2)
    axes.plot([8.9, 8.9], [4.95, 0.85], color=ORANGE, lw=1.2)
    arrow(axes, (8.9, 0.85), (7.75, 0.85), colour=ORANGE)
    axes.text(8.75, 5.5, "WebSocket:\nJSON out,\nPCM back", ha="center", va="bottom", size=7.7)


def others(axes):
    frame(axes, 0.1, 4.75, 3.25, 2.05, "without LiveKit", "", GREY)
    box(
        axes,
        0.3,
        5.68,
        2.85,
        0.62,
        "client, say --engine-url",
        "the same WebSocket protocol",
        GREY,
    )
    box(axes, 0.3, 4.9, 2.85, 0.66, "library", "the frame step in your own process", GREY)


def main():
    pyplot.rcParams.update({"svg.hashsalt": "csm", "font.family": "DejaVu Sans"})
    figure, axes = pyplot.subplots(figsize=(14.5, 7.1))
    axes.set(xlim=(0, 14.5), ylim=(0.15, 7.0))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    for part in (caller_and_livekit, services, worker, engine, between, others):
        part(axes)
    figure.savefig(HERE / "architecture.svg", metadata={"Date": None})
    figure.savefig(HERE / "architecture.png", dpi=110)


if __name__ == "__main__":
    main()
