"""The voice of one call: which turns and references the TTS gets, and which it never gets."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import pytest

from csm_tts_plugin.audio.resample import to_pcm16
from csm_tts_plugin.caller.consent import State
from csm_tts_plugin.caller.policy import ConsentPolicy
from csm_tts_plugin.caller.voice import CALLER, CallerVoice, spoken_words
from csm_tts_plugin.errors import TextError
from csm_tts_plugin.voices.choose import SpokenWord
from csm_tts_plugin.voices.stock import stock_voice
from csm_tts_plugin.voices.voice import Consent, Voice
from tests.support.recordings import READER, heard, noise

RATE = 24_000
QUESTION = ConsentPolicy().question_for(telephone=False)


@dataclass
class Speech:
    """A stand-in for the TTS that records what it is given."""

    voices: list[Voice | str | None] = field(default_factory=list)
    turns: list[tuple] = field(default_factory=list)
    voice: Voice | str | None = None

    def update_options(self, *, voice):
        self.voices.append(voice)
        self.voice = voice

    def add_turn(self, speaker, text, audio, sample_rate):
        if len(text) > 2_000:
            raise TextError("Too long.")
        self.turns.append((speaker, text, len(audio) / sample_rate))


class Call:
    """A caller who speaks recordings, and an agent that asks for consent."""

    def __init__(self, voice=None, **options):
        self.speech, self.names = Speech(voice=voice), []
        self.voice = CallerVoice(self.speech, self.names.append, **options)

    def say(self, text, samples, words=()):
        recorder = self.voice.recorder
        silence = np.zeros(RATE, np.float32)
        recorder.push(to_pcm16(silence), RATE)
        recorder.speech_began()
        recorder.push(to_pcm16(np.concatenate([samples, silence])), RATE)
        self.voice.heard(text, words)

    def read(self, number, text=None):
        turn = heard(READER[number], RATE)
        self.say(turn.text if text is None else text, turn.samples)
        return turn

    def ask(self):
        self.voice.consent.saying(QUESTION)
        self.voice.consent.said(QUESTION)
        assert self.voice.consent.state is State.ASKED

    def reply(self):
        self.voice.consent.said("I see.")
        self.voice.follow()


def a_word(text="Yes, please.") -> tuple:
    return text, 0.1 * np.random.default_rng(3).standard_normal(RATE // 2).astype(np.float32)


def test_a_yes_makes_a_voice_of_what_was_said_before_and_nothing_was_told_until_then():
    call = Call()
    turn = call.read(0)
    call.ask()
    assert not call.speech.voices
    assert not call.speech.turns
    assert not call.names
    call.say(*a_word())
    assert call.names == [CALLER]
    (voice,) = call.speech.voices
    assert (voice.speaker, voice.transcript) == (CALLER, turn.text)
    assert QUESTION in voice.consent.statement
    assert not call.speech.turns


@pytest.mark.parametrize("answer", ["No, thank you.", "", "What?", "Ja, gerne.", "\u306f\u3044"])
def test_without_a_yes_no_sound_of_the_caller_is_told_or_kept(answer):
    call = Call()
    call.read(0)
    call.ask()
    call.say(*a_word(answer))
    call.say(*a_word("And so on."))
    call.reply()
    assert call.voice.consent.state is State.REFUSED
    for number in (1, 2):
        call.read(number)
        call.reply()
    assert not call.speech.voices
    assert not call.speech.turns
    assert not call.names
    assert not call.voice._held
    assert call.voice._finder is None
    assert call.voice.name == "stock"


def test_later_turns_are_context_or_a_better_reference_and_never_both():
    call = Call()
    call.voice.consent.attribute("granted")
    for number in (2, 1, 3, 0):
        call.read(number)
    assert len(call.speech.voices) + len(call.speech.turns) == 4
    assert len(call.speech.voices) > 1
    assert {speaker for speaker, _, _ in call.speech.turns} <= {CALLER}
    assert call.names == [CALLER]


@pytest.mark.parametrize("stop", ["Stop using my voice.", None])
def test_a_stop_forgets_at_once_and_only_a_wish_begins_anew(stop):
    call = Call()
    call.voice.consent.attribute("granted")
    call.read(0)
    if stop:
        call.say(*a_word(stop))
    else:
        call.voice.consent.attribute("refused")
        call.voice.follow()
    assert call.names == [CALLER, "stock"]
    assert call.speech.voices[-1] is None
    assert call.voice._finder is None
    assert not call.voice.recorder._pcm
    call.read(1)
    assert len(call.speech.voices) == 2
    assert not call.speech.turns
    call.say(*a_word("Please use my voice again."))
    assert call.names[-1] == "stock", "what was forgotten is gone: there is nothing to speak with"
    call.read(2)
    assert call.names == [CALLER, "stock", CALLER]


def spoken_by_the_agent(call: Call) -> np.ndarray:
    """The stock voice's audio, as spoken by the agent; the caller's line then carries its echo."""
    turn = stock_voice("tiny").turns[0]
    call.voice.own.push(to_pcm16(turn.audio), RATE)
    return turn.audio


def room(samples: np.ndarray) -> np.ndarray:
    """Attenuated, with room reverberation, and with noise 15 dB below."""
    rng = np.random.default_rng(7)
    tail = np.exp(-np.arange(4_000) / 1_200) * rng.standard_normal(4_000) / 8
    tail[0] = 1.0
    echo = 0.2 * np.convolve(samples, tail)[: len(samples)]
    return (echo + noise(echo, 15)).astype(np.float32)


@pytest.mark.parametrize("text", ["Yes.", "Use my voice.", "Anything that the STT understood."])
def test_the_agent_s_own_sound_is_no_turn_no_reference_and_no_answer(text, caplog):
    caplog.set_level(logging.INFO)
    call = Call()
    own = spoken_by_the_agent(call)
    call.ask()
    call.say(text, room(own[RATE : 4 * RATE]))
    assert call.voice.consent.state is State.ASKED
    assert not call.voice._held
    assert "echo of the agent's speech" in caplog.text
    call.voice.consent.attribute("granted")
    call.say(text, room(own))
    assert not call.speech.voices
    assert not call.speech.turns


def test_the_caller_is_not_taken_for_an_echo_and_a_stop_never_is():
    call = Call()
    own = spoken_by_the_agent(call)
    call.voice.consent.attribute("granted")
    call.read(0)
    assert call.names == [CALLER]
    call.say("Stop using my voice.", own[: 2 * RATE])
    assert call.voice.consent.state is State.WITHDRAWN


def test_words_with_times_let_a_long_turn_be_used():
    turns = [heard(READER[number], RATE) for number in (0, 2, 3)]
    pause = np.zeros(RATE // 2, np.float32)
    long = np.concatenate([part for turn in turns for part in (turn.samples, pause)])
    text = " ".join(turn.text for turn in turns)
    assert len(long) / RATE > 15

    without = Call()
    without.voice.consent.attribute("granted")
    without.say(text, long)
    assert not without.speech.voices

    timed, words, at = Call(), [], 1.0  # a second of silence comes before it
    for turn in turns:
        seconds = len(turn.samples) / RATE
        step = seconds / len(turn.text.split())
        words += [
            SpokenWord(word, at + n * step, at + (n + 1) * step)
            for n, word in enumerate(turn.text.split())
        ]
        at += seconds + 0.5
    timed.voice.consent.attribute("granted")
    timed.say(text, long, words)
    assert timed.names == [CALLER]

    other_clock = Call()
    other_clock.voice.consent.attribute("granted")
    shifted = [SpokenWord(word.text, word.begin + 60, word.end + 60) for word in words]
    other_clock.say(text, long, shifted)
    assert not other_clock.speech.voices


def test_words_count_only_when_all_have_times():
    class Word(str):
        start_time: object = 1.0
        end_time: object = 2

    one, other = Word("one"), Word("other")
    assert spoken_words([one, other]) == [
        SpokenWord("one", 1.0, 2.0),
        SpokenWord("other", 1.0, 2.0),
    ]
    other.end_time = None
    assert spoken_words([one, other]) == []


def test_a_stored_voice_stays_and_a_consenting_caller_is_context_only():
    call = Call(voice="anna", clones=False)
    call.read(0)
    assert not call.voice.question_after("I see.")
    call.voice.consent.attribute("granted")
    turn = call.read(2)
    assert [text for _, text, _ in call.speech.turns] == [turn.text]
    call.voice.consent.attribute("refused")
    call.voice.follow()
    call.read(3)
    assert len(call.speech.turns) == 1
    assert not call.speech.voices
    assert not call.names
    assert call.voice.name == "anna"


def test_a_turn_that_the_tts_refuses_or_a_voice_that_the_engine_refuses_disturbs_nothing():
    call = Call()
    call.voice.consent.attribute("granted")
    call.read(0)
    call.read(3, text="word " * 500)
    assert not call.speech.turns
    call.voice.unusable()
    call.voice.unusable()
    assert call.names == [CALLER, "stock"]
    assert call.speech.voices[-1] is None
    assert len(call.speech.voices) == 2


def test_who_has_not_spoken_is_not_asked_and_who_writes_can_stop_only():
    call = Call()
    assert not call.voice.question_after("I see.")
    call.voice.wrote("Use my voice.")
    call.read(0)
    assert call.voice.question_after("I see.") == f" {QUESTION}"
    assert call.voice.question_after("I see, and") == f". {QUESTION}"
    assert not call.voice.question_after(" ")
    call.voice.consent.attribute("granted")
    call.voice.follow()
    assert not call.voice.question_after("I see.")
    assert call.names == [CALLER]
    call.voice.wrote("Stop using my voice.")
    assert call.names == [CALLER, "stock"]


def test_a_name_that_no_record_takes_keeps_the_stock_voice():
    call = Call()
    call.voice.identity = "x" * 10_000
    call.voice.consent.attribute("granted")
    call.read(0)
    assert not call.speech.voices
    assert not call.names


def test_nothing_that_the_caller_says_or_is_called_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    call = Call()
    call.voice.identity = "canary"
    call.voice.consent.attribute("granted")
    call.read(0)
    call.say(*a_word("Stop using my voice."))
    for secret in ("canary", "dashwood", "leisure", "stop using"):
        assert secret not in caplog.text.lower()


def consenting(**options) -> Call:
    call = Call(**options)
    call.voice.consent.attribute("granted")
    call.read(0)
    assert call.names == [CALLER]
    return call


OWN_VOICE = Voice.from_audio(
    np.sin(np.arange(2 * RATE) / 20).astype(np.float32) / 3,
    RATE,
    transcript="A tone.",
    consent=Consent(speaker="a tone", statement="It agreed.", date="2026-01-01"),
)


@pytest.mark.parametrize(("given", "name"), [("anna", "anna"), (OWN_VOICE, "custom")])
def test_consent_that_ends_returns_to_the_voice_that_the_tts_had(given, name):
    call = consenting(voice=given)
    call.voice.consent.attribute("refused")
    call.voice.follow()
    assert call.names == [CALLER, name]
    assert call.speech.voices[-1] is given


def test_after_a_handoff_the_other_tts_has_the_voice_and_the_first_has_none():
    call = consenting()
    (cloned,) = call.speech.voices
    other = Speech(voice="anna")
    call.voice.speak_through(other, clones=True)
    assert call.speech.voices == [cloned, None]
    assert other.voices == [cloned]
    assert call.names == [CALLER], "it is the same voice"
    call.voice.consent.attribute("refused")
    call.voice.follow()
    assert other.voices == [cloned, "anna"]
    assert call.names == [CALLER, "anna"]


def test_a_handoff_within_one_tts_changes_nothing():
    call = consenting()
    call.voice.speak_through(call.speech, clones=True)
    assert len(call.speech.voices) == 1


def test_an_agent_that_does_not_clone_speaks_in_the_voice_of_its_tts():
    call = consenting()
    call.voice.speak_through(call.speech, clones=False)
    assert call.names == [CALLER, "stock"]
    assert call.speech.voices[-1] is None
    call.read(2)
    assert len(call.speech.voices) == 2
