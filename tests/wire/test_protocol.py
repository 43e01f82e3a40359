"""Wire messages survive a round trip, and invalid ones are refused."""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_tts_plugin.config import OUTPUT_RATES, Limits
from csm_tts_plugin.errors import (
    AudioError,
    BusyError,
    CsmError,
    EngineError,
    RequestError,
    TextError,
    VoiceError,
)
from csm_tts_plugin.wire.protocol import (
    AudioHeader,
    Cancel,
    ClientMessage,
    Close,
    DoneMessage,
    ErrorMessage,
    InlineVoice,
    Open,
    Opened,
    Say,
    ServerMessage,
    TurnMessage,
    encode,
    parse_client,
    parse_server,
)

LIMITS = Limits(text_chars=200, reference_bytes=300)

ids = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200).filter(
    lambda text: text.strip()
)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=64)
files = st.binary(min_size=1, max_size=300)
inline = st.builds(
    InlineVoice,
    audio=files,
    transcript=words,
    consent=st.dictionaries(st.sampled_from(["speaker", "statement", "date"]), words),
    speaker=names,
)
client_messages = st.one_of(
    st.builds(
        Open,
        voice=st.one_of(st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True), inline),
        rate=st.sampled_from(OUTPUT_RATES),
        key=st.none() | words,
        temperature=st.none() | st.floats(0, 4),
        top_k=st.none() | st.integers(1, 2051),
        seed=st.none() | st.integers(0, 2**63 - 1),
    ),
    st.builds(TurnMessage, who=names, text=words, audio=st.none() | files),
    st.builds(
        Say,
        id=ids,
        text=words,
        more=st.booleans(),
        max_seconds=st.none() | st.floats(0.1, 600),
    ),
    st.builds(Cancel, id=ids, heard=st.none() | st.integers(0, 10_000)),
    st.just(Close()),
)
seconds = st.floats(0, 1e6)
counts = st.integers(0, 2**40)
server_messages = st.one_of(
    st.builds(Opened, conversation=ids, rate=st.sampled_from(OUTPUT_RATES)),
    st.builds(AudioHeader, id=ids, seq=counts, frame=counts, samples=counts),
    st.builds(
        DoneMessage,
        id=ids,
        frames=counts,
        reason=st.sampled_from(["end", "length", "cancelled"]),
        timings=st.dictionaries(st.sampled_from(["queued", "total"]), seconds),
    ),
    st.builds(
        ErrorMessage,
        code=st.sampled_from(["busy", "bad_text"]),
        message=words,
        retryable=st.booleans(),
        id=st.none() | ids,
        retry_after=st.none() | seconds,
        about=st.none() | st.sampled_from(["open", "turn"]),
    ),
)


@given(client_messages)
def test_a_clients_message_is_read_as_it_was_written(message):
    assert parse_client(encode(message), LIMITS) == message


@given(server_messages)
def test_a_servers_message_is_read_as_it_was_written(message):
    assert parse_server(encode(message)) == message


def read(text):
    """The message, or the only kind of error that parsing may raise."""
    try:
        return parse_client(text, LIMITS)
    except RequestError as error:
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
field_names = st.sampled_from(
    ["voice", "rate", "key", "temperature", "top_k", "seed", "who", "text", "audio", "id", "more"]
) | st.text(max_size=8)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries({"type": st.sampled_from(["open", "turn", "say", "cancel", "close"])}),
    st.dictionaries(field_names, json_values, max_size=6),
)
def test_any_fields_give_a_message_within_bounds_or_a_request_error(kind, members):
    match read(json.dumps({**members, **kind})):
        case RequestError() as error:
            assert "\n" not in error.message
        case Open() as message:
            assert message.rate in OUTPUT_RATES
            assert message.temperature is None or 0 <= message.temperature <= 4
            assert message.seed is None or 0 <= message.seed < 2**63
        case Say() | TurnMessage() as message:
            assert message.text.strip()
            assert len(message.text) <= LIMITS.text_chars


@settings(max_examples=200)
@given(st.text() | json_values.map(json.dumps) | st.binary().map(lambda b: b.decode("latin-1")))
def test_any_text_is_a_message_or_an_error_of_ours(text):
    assert isinstance(read(text), RequestError | ClientMessage)
    with suppress(EngineError):
        assert isinstance(parse_server(text), ServerMessage)


@given(client_messages, st.data())
def test_a_mutated_message_is_read_or_refused(message, data):
    text = list(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.characters())
    assert isinstance(read("".join(text)), RequestError | ClientMessage)


def say(**members):
    return json.dumps({"type": "say", "id": "1", "text": "Hello.", **members})


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u2003"])
def test_blank_text_is_a_text_error(text):
    with pytest.raises(TextError):
        parse_client(say(text=text), LIMITS)


def test_text_at_the_limit_passes_and_one_more_character_does_not():
    assert parse_client(say(text="a" * 200), LIMITS).text == "a" * 200
    with pytest.raises(TextError, match="200"):
        parse_client(say(text="a" * 201), LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "7",
        '"open"',
        "{}",
        '{"type":7}',
        '{"type":"sing"}',
        '{"type":"close","now":true}',
        '{"type":"close","type":"open"}',
        '{"type":"say","id":"1","text":7}',
        '{"type":"say","id":"1","text":"a\\ud800"}',
        '{"type":"say","id":"a b","text":"a"}',
        '{"type":"say","id":"","text":"a"}',
        '{"type":"say","id":"1\\n","text":"a"}',
        '{"type":"say","id":"1","text":"a","more":1}',
        '{"type":"say","id":"1","text":"a","max_seconds":NaN}',
        '{"type":"say","id":"1","text":"a","max_seconds":Infinity}',
        '{"type":"say","id":"1","text":"a","max_seconds":1e999}',
        '{"type":"say","id":"1","text":"a","max_seconds":-1}',
        '{"type":"say","id":"1","text":"a","max_seconds":true}',
        '{"type":"open","rate":44100}',
        '{"type":"open","rate":24000.0}',
        '{"type":"open","rate":true}',
        '{"type":"open","seed":-1}',
        '{"type":"open","seed":9223372036854775808}',
        '{"type":"open","seed":' + "9" * 6000 + "}",
        '{"type":"open","temperature":-0.1}',
        '{"type":"open","top_k":0}',
        '{"type":"open","voice":7}',
        '{"type":"turn","who":" ","text":"a"}',
        '{"type":"turn","who":"a\\u0000b","text":"a"}',
        '{"type":"turn","who":"' + "a" * 65 + '","text":"a"}',
        "[" * 100_000,
        '{"type":' + '{"a":' * 50_000,
    ],
)
def test_nonsense_is_a_request_error(text):
    with pytest.raises(RequestError):
        parse_client(text, Limits())


@pytest.mark.parametrize(
    "voice",
    ["../../etc/passwd", "/etc/passwd", "http://host/a.wav", "A", "", "a" * 65, "a\n", "a.wav"],
)
def test_a_voice_is_never_a_path_nor_a_url(voice):
    with pytest.raises(VoiceError):
        parse_client(json.dumps({"type": "open", "voice": voice}), LIMITS)


def test_the_length_of_base64_is_checked_before_it_is_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(base64, "b64decode", lambda *a, **k: decoded.append(a))
    with pytest.raises(AudioError, match="300"):
        parse_client(
            json.dumps({"type": "turn", "who": "a", "text": "b", "audio": "A" * 404}), LIMITS
        )
    assert not decoded


@pytest.mark.parametrize("audio", ["", "A", "AAA", "####", "AAAA AAAA", "ä", 7, ["AAAA"]])
def test_what_is_not_base64_of_something_is_refused(audio):
    with pytest.raises(RequestError):
        parse_client(json.dumps({"type": "turn", "who": "a", "text": "b", "audio": audio}), LIMITS)


def test_a_file_of_the_largest_size_passes():
    data = bytes(300)
    assert parse_client(encode(TurnMessage("a", "b", data)), LIMITS).audio == data
    with pytest.raises(AudioError):
        parse_client(encode(TurnMessage("a", "b", bytes(301))), LIMITS)


@pytest.mark.parametrize(
    "consent",
    [
        {"A": "b"},
        {"": "b"},
        {"a": 7},
        {"a": None},
        {f"n{i}": "" for i in range(9)},
        {"a": "b" * 201},
    ],
)
def test_a_consent_record_is_a_few_short_texts(consent):
    voice = {"audio": "AAAA", "transcript": "hello", "consent": consent}
    with pytest.raises(RequestError):
        parse_client(json.dumps({"type": "open", "voice": voice}), LIMITS)


def test_a_message_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(RequestError, match="at most 10 bytes"):
        parse_client('{"type":"close"}', Limits(message_bytes=10))


def test_errors_of_reading_never_repeat_what_was_sent():
    for members in ({"id": "secret words"}, {"secret": 1}, {"more": "secret"}, {"text": 5}):
        with pytest.raises(RequestError) as caught:
            parse_client(say(**members), LIMITS)
        assert "secret" not in caught.value.message


def test_another_protocol_is_an_engine_error_that_says_so():
    with pytest.raises(EngineError, match="same version"):
        parse_server('{"type":"opened","conversation":"a"}')


def test_an_error_travels_as_the_same_exception():
    busy = BusyError("All 4 slots speak and 4 wait.", retry_after=1.5)
    received = parse_server(encode(ErrorMessage.of(busy, "7"))).to_exception()
    assert type(received) is BusyError
    assert received.message == busy.message
    assert math.isclose(received.retry_after, 1.5)
    assert type(ErrorMessage("new_code", "x", False).to_exception()) is CsmError


def test_secrets_and_speech_are_absent_from_the_repr():
    voice = InlineVoice(b"sound", "my words", {"speaker": "me"})
    for message in (Open(voice, key="k3y"), Say("1", "my words"), TurnMessage("me", "my words")):
        assert "my words" not in repr(message)
        assert "k3y" not in repr(message)
