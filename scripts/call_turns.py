"""The report of one recorded call: its turns and its audio. `call_report` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PARTS = {
    "turn_end": "end of turn, with STT",
    "llm": "LLM, first token",
    "first_sentence": "LLM, first sentence",
    "first_audio": "first audio",
    "playout": "playout",
    "way_back": "way to the caller",
}
"""The parts of a latency in the order of time, with their labels in the picture."""


@dataclass
class Turn:
    """One turn of the caller and the reply to it. Times are in seconds; None means unknown."""

    caller_text: str = ""
    """The agent's transcript of the turn."""
    reference_text: str = ""
    """The true text, from the transcript beside the recording if there is one."""
    reply_text: str = ""
    reply_heard: str = ""
    """Transcript of the recorded reply by the offline speech-to-text."""
    reply_wer: float | None = None
    """Word error rate of `reply_heard` against `reply_text`; None for an interrupted reply."""
    like_caller: float | None = None
    """Similarity to the caller's voice: about 0.5 for two people, 0.85 for the same person."""
    like_stock: float | None = None
    """Similarity to the greeting, which is in the stock voice."""
    voice: str | None = None
    """The voice that the agent chose: `stock`, `caller` or a stored one; see `Report.voice_of`."""
    interrupted: bool = False
    endpointing: float | None = None
    """End of the caller's speech until the agent ended the turn; includes `stt`."""
    stt: float | None = None
    llm_ttft: float | None = None
    first_sentence: float | None = None
    """The LLM's first token until the text-to-speech has its first sentence."""
    tts_first_audio: float | None = None
    playout: float | None = None
    """First audio of the text-to-speech until LiveKit's output takes it."""
    e2e: float | None = None
    """End of the caller's speech to the first reply sample heard by the caller."""
    reply_seconds: float | None = None
    underruns: int = 0
    """Number of gaps in the reply that late audio left."""
    silent_after: float | None = None
    """The caller's first sound in an interruption until the agent is silent."""
    said: tuple[float, float] = (0.0, 0.0)
    """When the caller spoke, in seconds of the recording."""
    heard: tuple[float, float] | None = None
    """When the reply was heard."""
    parts: dict[str, float] = field(default_factory=dict)
    """The parts of `e2e`, in the order of `PARTS`; their sum is `e2e`."""


@dataclass
class Report:
    turns: list[Turn]
    greeting: tuple[float, float] | None
    model: str
    device: str
    versions: dict[str, str]
    seconds: float
    sound: Any = field(repr=False, default=None)
    """float32 [samples, 2]: caller, agent."""
    rate: int = 24_000
    clones: bool = True
    """Whether the model clones a reference; otherwise replies take only `follows` from it."""
    follows: str | None = None
    """What a model that does not clone takes from a reference, e.g. `pitch and size`; None:
    nothing, so that it always uses its stock voice.
    """

    def voice_of(self, turn: Turn) -> str | None:
        """The voice that the reply was spoken in, or whose `follows` it has."""
        ignored = not self.clones and self.follows is None
        return "stock" if turn.voice == "caller" and ignored else turn.voice

    def manner_of(self, turn: Turn) -> str:
        """The voice of the reply in words that claim no more than the model does."""
        voice = self.voice_of(turn)
        if self.clones or self.follows is None or voice in (None, "stock"):
            return f"in the {voice} voice"
        if voice == "caller":
            return f"in the caller's {self.follows}"
        return f"in the {self.follows} of the voice {voice}"


def parts_of(turn: Turn, before: float, after: float) -> dict[str, float]:
    """Divides `turn.e2e` into `PARTS`. Work in parallel counts only for the time waited for it.

    before: seconds from the caller's last recorded sound until the last sound that the agent
        received; negative if the agent's end of speech is the earlier one.
    after: seconds from the agent's first sample until the caller heard it.
    """
    whole = turn.e2e or 0.0
    left = whole
    spent = {"way_back": min(max(0.0, after), left)}
    left -= spent["way_back"]
    ended = min(max(0.0, before + (turn.endpointing or 0.0)), left)
    left -= ended
    following = {
        "playout": turn.playout,
        "first_audio": turn.tts_first_audio,
        "first_sentence": turn.first_sentence,
        "llm": turn.llm_ttft,
    }
    for name, seconds in following.items():
        spent[name] = min(seconds or 0.0, left)
        left -= spent[name]
    spent["turn_end"] = ended + left
    return {name: round(spent[name], 3) for name in PARTS}
