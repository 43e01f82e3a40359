"""One real call for each way to answer the question, all at once: a real LiveKit server, one agent
worker, recorded speech, speech-to-text, and csm-tiny, whose engine tells what voices it holds.

The LLM is a script: replies are short, and it calls the tool for consent where it must not.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from csm_tts_plugin.caller.voice import CALLER
from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from livekit import api, rtc
from scripts import caller
from scripts.caller import Line
from scripts.worker import Progress, Worker
from tests.call import centre
from tests.support.endpoint import completion, endpoint
from tests.support.recordings import READER, path_of, words_of
from tests.support.serve_watched import VOICES

pytestmark = [pytest.mark.call, pytest.mark.timeout(900)]

SPEECH = Path(__file__).with_name("speech")
STORY = READER[2]
"""5.3 s of a human reader: enough for a reference."""
OTHER = READER[3]
"""Neither yes nor no."""
AGREEING = READER[0]
"""Neither either; the LLM of these calls takes it for a yes."""
ME = "caller"
LIMIT_S = 240.0
"""Of every wait: generous, for six calls at once on a busy machine take their time."""


until = partial(centre.until, limit_s=LIMIT_S)


class Voice(centre.Caller):
    """A caller who plays recordings and reads the agent's transcript."""

    def __init__(self) -> None:
        super().__init__()
        self.voices: list[str] = []
        """The attribute `csm.voice` over time."""
        self.events: list[str] = []
        """What was said and understood, in order; for the message of a failed call."""
        self._microphone = caller.Microphone(caller.Recording())

    def listen(self) -> None:
        self.room.on("participant_attributes_changed", self._look)
        self.room.register_text_stream_handler(
            "lk.transcription", lambda reader, who: self._start(self._take(reader, who))
        )

    async def begin(self) -> None:
        track = rtc.LocalAudioTrack.create_audio_track("caller", self._microphone.source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
        await asyncio.wait_for(self.room.local_participant.publish_track(track, options), 60)
        self._start(self._microphone.run())
        await until(lambda: self.texts, "the greeting")

    async def say(self, file: Path) -> None:
        """Waits for its turn, and for the reply; says it again to who asks for it."""
        for _ in range(3):
            await until(lambda: self.agent_state == "listening", "the agent listens")
            before = len(self.texts)
            self.events.append(f"says {file.stem}")
            await self._microphone.speak(Line(str(file)).load())
            await until(lambda: self.texts[before:], f"a reply to {file.stem}")  # noqa: B023
            if "did not hear" not in self.texts[-1]:
                return

    async def is_asked(self) -> None:
        for _ in range(4):
            await self.say(path_of(STORY))
            if self.questions:
                return
        raise AssertionError("not asked")

    async def hears_itself(self) -> None:
        """Where the machine was too busy for a whole turn, the story is told again."""
        for _ in range(4):
            with suppress(AssertionError):
                return await centre.until(lambda: self.voices[-1:] == [CALLER], "it", limit_s=60.0)
            await self.say(path_of(STORY))
        raise AssertionError("still not in the caller's voice")

    async def hears_the_agent(self) -> None:
        await until(lambda: self.voices[-1] == "stock", "the stock voice")

    async def stops(self) -> None:
        """Says it again where speech-to-text did not understand it, as people do."""
        for _ in range(4):
            await self.say(SPEECH / "stop.flac")
            with suppress(AssertionError):
                return await centre.until(lambda: self.voices[-1] == "stock", "it", limit_s=30.0)
        raise AssertionError("still in the caller's voice")

    async def attribute(self, value: str) -> None:
        done = self.room.local_participant.set_attributes({"csm.voice_consent": value})
        await asyncio.wait_for(done, 60)

    async def press(self, digit: str) -> None:
        await self.room.local_participant.publish_dtmf(code=int(digit), digit=digit)

    @property
    def agent_state(self) -> str:
        return next((agent.attributes.get("lk.agent.state", "") for agent in self.agents), "")

    @property
    def questions(self) -> int:
        return sum(text.count("your own voice") for text in self.texts)

    def _look(self, changed: dict[str, str], person: rtc.Participant) -> None:
        if "csm.voice" in changed and person.identity != ME:
            self.voices.append(changed["csm.voice"])
            self.events.append(f"voice: {self.voices[-1]}")

    async def _take(self, reader: rtc.TextStreamReader, who: str) -> None:
        text = await reader.read_all()
        if text.strip():
            self.events.append(f"{'understood' if who == ME else 'agent'}: {text.strip()}")
            if who != ME:
                self.texts.append(text)


def script() -> AbstractContextManager[str]:
    """An OpenAI-compatible LLM, which calls `use_my_voice` where it may, and also at a no."""

    def reply_to(request: dict) -> dict:
        last = request["messages"][-1]
        words = str(last["content"]).lower()
        wants = last["role"] == "user" and any(word in words for word in ("thank", "prudently"))
        if not (wants and any(t["function"]["name"] == "use_my_voice" for t in request["tools"])):
            return {"content": "I see."}
        call = {"index": 0, "id": "call_1", "type": "function"}
        return {"tool_calls": [{**call, "function": {"name": "use_my_voice", "arguments": "{}"}}]}

    def answer(body: bytes) -> bytes:
        delta = reply_to(json.loads(body))
        reason = "tool_calls" if "tool_calls" in delta else "stop"
        return completion([{"role": "assistant", **delta}], reason)

    return endpoint(answer)


@dataclass
class Calls:
    """All calls while they last, and what they left behind."""

    server: object
    state: Path
    granting: int
    """Calls in which the caller's voice is used, all at the same time."""
    voices: dict[str, list[str]] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    left: dict = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    log: str = ""

    @asynccontextmanager
    async def call(self, name: str):
        room = f"{name}-{secrets.token_hex(4)}"
        grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
        token = (
            api.AccessToken(self.server.key, self.server.secret)
            .with_identity(ME)
            .with_grants(grants)
        )
        voice = Voice()
        voice.listen()
        try:
            await asyncio.wait_for(voice.room.connect(self.server.url, token.to_jwt()), 60)
            await voice.begin()
            yield voice
            self.voices[name], self.questions[name] = list(voice.voices), voice.questions
        except AssertionError as error:
            raise AssertionError("; ".join([f"{name}: {error}", *voice.events])) from None
        finally:
            await voice.hang_up()

    def __post_init__(self) -> None:
        self._all_granted = asyncio.Barrier(self.granting)

    async def in_use(self) -> None:
        """All callers who granted are there: the engine holds the voice of each."""
        await self._all_granted.wait()
        await until(lambda: len(self.engine["used"]) == self.granting, "their voices are used")
        await self._all_granted.wait()

    @property
    def engine(self) -> dict:
        return json.loads(self.state.read_text())

    def private(self) -> set[str]:
        """Keys of the callers' voices that the engine has read or speaks in."""
        engine = self.engine
        return {*engine["cached"], *engine["used"]} - {"stock"}


async def by_attribute(calls: Calls) -> None:
    async with calls.call("attribute") as me:
        await me.attribute("granted")
        await me.say(path_of(STORY))
        await me.hears_itself()
        await calls.in_use()
        await me.attribute("refused")
        await me.hears_the_agent()


async def by_word(calls: Calls) -> None:
    async with calls.call("spoken") as me:
        await me.is_asked()
        await me.say(SPEECH / "yes.flac")
        await me.hears_itself()
        await calls.in_use()
        await me.stops()


async def by_llm(calls: Calls) -> None:
    async with calls.call("understood") as me:
        await me.is_asked()
        await me.say(path_of(AGREEING))
        await me.hears_itself()
        await calls.in_use()
        await me.stops()


async def by_key(calls: Calls) -> None:
    async with calls.call("key") as me:
        await me.is_asked()
        await me.press("1")
        await me.hears_itself()
        await calls.in_use()
        await me.press("0")
        await me.hears_the_agent()


async def refused(calls: Calls) -> None:
    async with calls.call("refused") as me:
        await me.is_asked()
        await me.say(SPEECH / "no.flac")
        await me.say(path_of(OTHER))


async def unanswered(calls: Calls) -> None:
    async with calls.call("unanswered") as me:
        await me.is_asked()
        await me.say(path_of(OTHER))
        await me.say(SPEECH / "yes.flac")


PATHS = {
    "attribute": by_attribute,
    "spoken": by_word,
    "understood": by_llm,
    "key": by_key,
    "refused": refused,
    "unanswered": unanswered,
}
GRANTING = {"attribute", "spoken", "understood", "key"}
WAVES = (
    ("spoken", "key", "refused"),
    pytest.param(("attribute", "unanswered", "understood"), marks=pytest.mark.soak),
)
"""Three calls at once are what two cores carry well."""


async def hold(
    wave: tuple[str, ...], server, folder: Path, engine: dict[str, str], llm: str
) -> Calls:
    temporary = folder / "tmp"
    temporary.mkdir()
    settings = {
        "AGENT_STT": "offline",
        "AGENT_LLM": "openai:script",
        "OPENAI_BASE_URL": llm,
        "OPENAI_API_KEY": "",
        "VOICE_SOURCE": "caller",
        "TMPDIR": str(temporary),
    }
    calls = Calls(server, folder / "voices.json", len(GRANTING & set(wave)))
    worker = Worker({**server.keys, **settings, **engine}, folder / "agent.log", Progress())
    with worker.child:
        await asyncio.to_thread(worker.wait_ready)
        await asyncio.gather(*(PATHS[name](calls) for name in wave))
        await until(lambda: not calls.private(), "the engine has forgotten all voices")
    calls.left = calls.engine
    calls.files = {path.suffix for path in temporary.rglob("*") if path.is_file()}
    calls.log = (folder / "agent.log").read_text()
    return calls


@pytest.fixture(scope="module", params=WAVES, ids="-".join)
def calls(request, livekit_server, tmp_path_factory) -> Calls:
    folder = tmp_path_factory.mktemp("consent")
    command = (sys.executable, "-m", "tests.support.serve_watched", "serve")
    config = EngineConfig(model="tiny", device="cpu", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VOICES, str(folder / "voices.json"))
        process = EngineProcess(config, ServerConfig(port=0), command=command)
        with script() as llm, process as engine:
            url = engine.wait_ready(LIMIT_S)
            keys = {"CSM_ENGINE_URL": url, "CSM_ENGINE_KEY": engine.key}
            return asyncio.run(hold(request.param, livekit_server, folder, keys, llm))


def test_a_yes_brings_the_caller_s_voice_a_stop_ends_it_and_without_a_yes_it_never_comes(calls):
    for path, voices in calls.voices.items():
        # Whether the first one is seen as a change depends on who was in the room first.
        changes = voices[1:] if voices[:1] == ["stock"] else voices
        assert changes == ([CALLER, "stock"] if path in GRANTING else []), path


def test_everybody_is_asked_once_but_who_has_granted_already(calls):
    assert calls.questions
    assert calls.questions == {path: int(path != "attribute") for path in calls.questions}


def test_each_consent_is_on_record_with_the_way_it_was_given(calls):
    for path in GRANTING & set(calls.voices):
        assert f"consent ({path}) of 20" in calls.log


def test_nothing_of_any_voice_is_left(calls):
    assert set(calls.left["cached"]) <= {"stock"}
    assert calls.left["turns"] == 0
    assert not calls.files & {".wav", ".flac", ".json", ".npy"}


def test_no_word_of_a_caller_is_in_the_log(calls):
    assert "consent: " in calls.log
    for name in (STORY, OTHER):
        assert words_of(name).lower()[:25] not in calls.log.lower()
