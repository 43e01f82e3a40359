"""`/v1/voices`: stored with consent, used, listed, and deleted everywhere."""

from __future__ import annotations

import base64
import json

import aiohttp
import numpy as np
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import VoiceError
from csm_tts_plugin.voices.store import VoiceStore
from tests.audio.test_containers import made
from tests.server.conftest import limits_of, listen, serving, speaks

LINE = "It is a fine day to be heard from start to end."
CONSENT = {"speaker": "Ann", "statement": "You may speak in my voice.", "date": "2025-01-31"}


def recording(seconds=1.0):
    rng = np.random.default_rng(1)
    return encode_wav(rng.uniform(-0.3, 0.3, int(24_000 * seconds)).astype("float32"))


def adding(**changes):
    audio = base64.b64encode(recording()).decode()
    body = {"id": "ann", "audio": audio, "transcript": "What I said.", "consent": CONSENT}
    return {name: value for name, value in (body | changes).items() if value is not None}


@pytest.fixture
async def keeper(tmp_path):
    async with serving(voices_dir=tmp_path) as running:
        yield running
        await running.settle()


async def ask(server, method, path="", **options):
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{server.url}/v1/voices{path}", **options) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


async def test_a_voice_is_added_listed_spoken_with_and_deleted(keeper, tmp_path):
    assert await ask(keeper, "POST", json=adding()) == (201, {"id": "ann"})
    status, listed = await ask(keeper, "GET")
    assert status == 200
    entry = {"id": "ann", "speaker": "Ann", "date": "2025-01-31", "seconds": 1.0, "problem": None}
    assert listed == {"voices": [{**entry, "band": "narrow"}]}, "a low tone"
    key = VoiceStore(tmp_path).load("ann").key
    async with EngineClient(keeper.url) as client:
        conversation = await client.conversation("ann")
        (held,) = keeper.engine.conversations.values()
        assert (held.voice.key, held.voice.private) == (key, False)
        assert speaks(await listen(await conversation.say(LINE)), LINE)
        assert await ask(keeper, "DELETE", "/ann") == (204, None)
        assert keeper.engine.forgotten == [key]
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(VoiceError):
            await client.conversation("ann")
    assert await ask(keeper, "GET") == (200, {"voices": []})


async def test_a_voice_deleted_at_one_engine_is_forgotten_by_another_of_the_same_folder(tmp_path):
    async with serving(voices_dir=tmp_path) as one, serving(voices_dir=tmp_path) as other:
        await ask(one, "POST", json=adding())
        key = VoiceStore(tmp_path).load("ann").key
        async with EngineClient(other.url) as client:
            await client.conversation("ann")
            assert await ask(one, "DELETE", "/ann") == (204, None)
            status, answer = await ask(other, "DELETE", "/ann")
            assert (status, answer["error"]["code"]) == (404, "bad_voice")
            assert other.engine.forgotten == [key]
            assert (await ask(other, "DELETE", "/ann"))[0] == 404
            assert other.engine.forgotten == [key], "nothing is kept of it any more"
        await other.settle()


async def test_a_form_is_taken_as_well(keeper, tmp_path):
    form = aiohttp.FormData()
    form.add_field("audio", recording(), filename="../../ann.wav", content_type="audio/wav")
    form.add_field("transcript", "What I said.")
    form.add_field("name", "Annie")
    for name, value in CONSENT.items():
        form.add_field(f"consent_{name}", value)
    status, answer = await ask(keeper, "POST", data=form)
    assert status == 201
    voice = VoiceStore(tmp_path).load(answer["id"])
    assert (voice.speaker, voice.consent.to_dict()) == ("Annie", CONSENT)
    assert {path.suffix for path in tmp_path.iterdir()} == {".wav", ".json"}


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"id": "../ann"}, 400, "bad_voice"),
        ({"id": "Ann"}, 400, "bad_voice"),
        ({"id": "stock"}, 400, "bad_voice"),
        ({"id": "a" * 65}, 400, "bad_voice"),
        ({"consent": None}, 400, "bad_request"),
        ({"consent": {"speaker": "Ann"}}, 403, "no_consent"),
        ({"consent": CONSENT | {"date": "yesterday"}}, 403, "no_consent"),
        ({"transcript": " "}, 400, "bad_text"),
        ({"audio": "/etc/passwd"}, 400, "bad_audio"),
        ({"audio": "AAAA"}, 400, "bad_audio"),
        ({"audio": None}, 400, "bad_request"),
        ({"url": "http://host/a.wav"}, 400, "bad_request"),
    ],
)
async def test_what_is_no_consented_voice_is_refused(keeper, tmp_path, changes, status, code):
    answer = await ask(keeper, "POST", json=adding(**changes))
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    assert list(tmp_path.iterdir()) == []


async def test_a_taken_id_is_refused_and_the_voice_stays(keeper, tmp_path):
    await ask(keeper, "POST", json=adding())
    before = (tmp_path / "ann.wav").read_bytes()
    other = base64.b64encode(recording(2.0)).decode()
    status, answer = await ask(keeper, "POST", json=adding(audio=other))
    assert (status, answer["error"]["code"]) == (400, "bad_voice")
    assert (tmp_path / "ann.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("id", "wanted"), [("nobody", 404), ("..%2Fann", 400), ("Ann", 400), ("a" * 65, 400)]
)
async def test_a_voice_that_is_not_there_cannot_be_deleted(keeper, id, wanted):
    status, answer = await ask(keeper, "DELETE", f"/{id}")
    assert (status, answer["error"]["code"]) == (wanted, "bad_voice")
    assert keeper.engine.forgotten == []


async def test_a_damaged_voice_is_listed_with_its_problem_and_can_be_deleted(keeper, tmp_path):
    await ask(keeper, "POST", json=adding())
    (tmp_path / "ann.wav").write_bytes(recording(2.0))
    _, listed = await ask(keeper, "GET")
    assert "SHA-256" in listed["voices"][0]["problem"]
    assert await ask(keeper, "DELETE", "/ann") == (204, None)
    assert list(tmp_path.iterdir()) == []


async def test_forms_are_bounded(tmp_path):
    limits = limits_of(reference_bytes=10_000)
    async with serving(voices_dir=tmp_path, limits=limits) as server:
        large = aiohttp.FormData({"transcript": "a"})
        large.add_field("audio", recording(), filename="a.wav")
        many = aiohttp.FormData({f"field{n}": "a" for n in range(30)})
        many.add_field("audio", b"RIFF", filename="a.wav")
        twice = aiohttp.FormData([("transcript", "a"), ("transcript", "b")])
        twice.add_field("audio", b"RIFF", filename="a.wav")
        for form, code in ((large, "bad_audio"), (many, "bad_request"), (twice, "bad_request")):
            status, answer = await ask(server, "POST", data=form)
            assert (status, answer["error"]["code"]) == (400, code)
        headers = {"Content-Type": "multipart/form-data"}
        status, answer = await ask(server, "POST", data=b"--x--", headers=headers)
        assert (status, answer["error"]["code"]) == (400, "bad_request")
        await server.settle()


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", ""), ("DELETE", "/ann")])
async def test_voices_need_the_key_and_a_folder(tmp_path, method, path):
    async with serving(key="k3y", voices_dir=tmp_path) as server:
        assert (await ask(server, method, path))[0] == 401
        await server.settle()
    async with serving() as server:
        status, answer = await ask(server, method, path)
        assert status == 400
        assert "CSM_VOICES_DIR" in answer["error"]["message"]
        await server.settle()


async def test_what_a_browser_recorded_is_kept_as_a_voice(keeper, tmp_path):
    audio = base64.b64encode(made("webm", "libopus", 48_000)).decode()
    assert await ask(keeper, "POST", json=adding(audio=audio)) == (201, {"id": "ann"})
    assert abs(VoiceStore(tmp_path).load("ann").seconds - 2.0) < 0.1
