"""The engine learns how much of an interrupted reply was heard."""

from __future__ import annotations

from tests.livekit.speech import PATIENT, speak
from tests.support.waiting import until

ONE, TWO, THREE = "The first sentence is here.", "Then comes the second one.", "And a third."
"""6, 6 and 3 frames long with the stand-in."""


def told(server) -> list[tuple[str, int]]:
    """(text, frames heard), as reported to the engine."""
    # The stand-in numbers conversations and utterances together; there is one conversation.
    texts = {f"u{number}": text for number, (_, text) in enumerate(server.engine.said, 2)}
    return [(texts[utterance], frames) for utterance, frames in server.engine.heard_frames]


async def test_a_reply_that_was_made_to_its_end_is_cut_where_it_was_broken_off(server, speaker):
    await speak(speaker, f"{ONE} {TWO} {THREE}")
    speaker.interrupted(0.48 + 0.16)
    await until(lambda: len(server.engine.heard_frames) == 2)
    assert told(server) == [(TWO, 2), (THREE, 0)]


async def test_a_reply_that_is_broken_off_while_it_is_made_is_cut_too(server, speaker):
    server.engine.mode = "slow"
    async with speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text(f"{ONE} {TWO} {THREE}")
        stream.end_input()
        await anext(stream)
    speaker.interrupted(0.08)
    await until(lambda: len(server.engine.heard_frames) == 3)
    assert told(server) == [(ONE, 1), (TWO, 0), (THREE, 0)]
    await until(lambda: set(server.engine.cancelled) == {ONE, TWO, THREE})


async def test_only_the_last_reply_is_cut_and_what_was_heard_whole_is_not(server, speaker):
    speaker.interrupted(1.0)  # nothing was said yet
    await speak(speaker, ONE)
    await speak(speaker, f"{TWO} {THREE}")
    speaker.interrupted(0.72)
    await speak(speaker, ONE)
    assert not server.engine.heard_frames
    speaker.interrupted(-1.0)
    await until(lambda: server.engine.heard_frames)
    assert told(server) == [(ONE, 0)]


async def test_a_lost_conversation_has_nothing_to_forget(server, speaker):
    await speak(speaker, ONE)
    server.state.end_sessions()
    await until(lambda: speaker._call._open is None)
    speaker.interrupted(0.0)
    await speak(speaker, TWO)
    assert not server.engine.heard_frames
