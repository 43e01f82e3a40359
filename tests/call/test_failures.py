"""User errors end with one line; failures during a call do not end the call."""

from __future__ import annotations

import pytest

from tests.call.running import Run, recordings, run
from tests.support.endpoint import endpoint

pytestmark = [pytest.mark.call, pytest.mark.timeout(700)]

NOWHERE = "ws://127.0.0.1:9"
KEYS = {"LIVEKIT_API_KEY": "somebody", "LIVEKIT_API_SECRET": "a-secret-of-more-than-32-characters"}


def agent(tmp_path, **env: str) -> Run:
    free = {"AGENT_HEALTH": "127.0.0.1:0", "CSM_MODEL": "tiny"}
    return run(["agent.py", "start"], {**free, **env}, tmp_path, limit_s=120)


def assert_one_line(done: Run, *words: str) -> None:
    assert done.code not in (0, None)
    for word in words:
        assert word in done.last_line
    assert "Traceback" not in done.output


def test_without_keys_the_agent_names_the_variables(tmp_path):
    done = agent(tmp_path, LIVEKIT_URL="", LIVEKIT_API_KEY="", LIVEKIT_API_SECRET="")
    assert_one_line(done, "LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", ".env")


def test_without_a_server_the_agent_says_where_it_looked(tmp_path):
    assert_one_line(agent(tmp_path, LIVEKIT_URL=NOWHERE, **KEYS), NOWHERE, "LIVEKIT_URL")


def test_a_wrong_key_is_told_as_such_and_not_shown(tmp_path, livekit_server):
    done = agent(tmp_path, LIVEKIT_URL=livekit_server.url, **KEYS)
    assert_one_line(done, "LIVEKIT_API_SECRET", "refuses")
    assert KEYS["LIVEKIT_API_SECRET"] not in done.output


def keys_of(server) -> dict[str, str]:
    return {
        "LIVEKIT_URL": server.url,
        "LIVEKIT_API_KEY": server.key,
        "LIVEKIT_API_SECRET": server.secret,
    }


def test_an_unknown_model_is_named(tmp_path, livekit_server):
    missing = str(tmp_path / "no-such-model")
    done = agent(tmp_path, CSM_MODEL=missing, **keys_of(livekit_server))
    assert_one_line(done, "no-such-model")


@pytest.mark.parametrize("variable", ["AGENT_STT", "AGENT_LLM"])
def test_an_unknown_provider_is_named_with_its_variable(tmp_path, livekit_server, variable):
    done = agent(tmp_path, **{variable: "parrot"}, **keys_of(livekit_server))
    assert_one_line(done, f"{variable}=parrot", "offline")


def test_an_openai_model_without_a_key_asks_for_one(tmp_path, livekit_server):
    blank = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}
    done = agent(tmp_path, AGENT_LLM="openai:some", **blank, **keys_of(livekit_server))
    assert_one_line(done, "OPENAI_API_KEY")


def test_a_missing_recording_is_named_before_anything_starts(tmp_path):
    done = run(["-m", "scripts.call"], {"CALLER": "nobody.wav"}, tmp_path, limit_s=120)
    assert_one_line(done, "nobody.wav", "CALLER")
    assert "LiveKit" not in done.output


def test_a_recording_that_is_no_sound_is_named(tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but not for long")
    done = run(["-m", "scripts.call"], {"CALLER": str(broken)}, tmp_path, limit_s=120)
    assert_one_line(done, "broken.wav")


def test_a_call_whose_agent_cannot_start_ends_with_the_agents_reason(tmp_path):
    done = run(["-m", "scripts.call"], {"CSM_MODEL": str(tmp_path / "none")}, tmp_path, 300)
    assert_one_line(done, "call failed", "none")


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [("AGENT_LLM", "I lost my thread"), ("AGENT_STT", "I did not hear that")],
)
def test_a_failing_provider_is_told_to_the_caller_and_the_call_goes_on(
    tmp_path, quick_engine, variable, sentence
):
    with endpoint(lambda _: None) as url:
        broken = {variable: "openai:broken", "OPENAI_BASE_URL": url, "OPENAI_API_KEY": ""}
        env = {"CALLER": recordings(1, 4), **quick_engine, **broken}
        done = run(["-m", "scripts.call"], env, tmp_path)
    assert done.code == 0
    turns = done.report["turns"]
    assert len(turns) == 2
    for turn in turns:
        assert sentence in turn["reply_text"]
    assert "Traceback" not in done.output
