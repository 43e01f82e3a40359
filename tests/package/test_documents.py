"""README and docs: snippets run, commands exist, links lead somewhere.

Commands that are cheap are run; of the others the parts are checked: options against the parser,
targets against the Makefile, services against the compose file. A command of a new kind fails here
until a check for it is added.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from aiohttp import web
from dotenv import dotenv_values

from csm_tts_plugin import TTS, Consent
from csm_tts_plugin.__main__ import _parser, main
from livekit import rtc
from scripts.setup_tools import ROOT
from tests.server.conftest import serving

PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=\S*")
VARIABLES = set(dotenv_values(ROOT / ".env.example"))
pytestmark = pytest.mark.timeout(600)

OTHERS = {"PYTHON_IMAGE", "OMP_NUM_THREADS", "A"}
"""Variables that are not our settings."""


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for language, text in BLOCK.findall((ROOT / page).read_text()):
            if language in languages:
                yield page, text


# Commands --------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Lines that begin with a known command, in shell blocks and blocks without a language."""
    for page, text in blocks("", "bash", "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = line.split(" #")[0].split()
            while words and ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words and Path(words[0]).name in CHECKS and line[0] != " ":
                yield page, line.split("  #")[0].strip()


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert words[0] in targets


def check_csm_tts(words: list[str]) -> None:
    if words[0] == "--version" or words[-1] == "--help":
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            _parser(words).parse_args(words)
        assert ended.value.code == 0
    else:
        _parser(words).parse_args(words)


def check_python(words: list[str]) -> None:
    if words[0] != "-m":
        return check_program(words)
    module, rest = words[1], words[2:]
    if module == "csm_tts_plugin":
        return check_csm_tts(rest)
    if module in ("venv", "timeit", "pytest", "pip"):
        return check_files(rest)
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file()
    return check_options(path, rest)


def check_program(words: list[str]) -> None:
    path = ROOT / words[0]
    assert path.is_file(), path
    if path.name == "agent.py" or path.name in ("plugin_alone.py", "receptionist.py"):
        assert words[1] in ("start", "dev", "console")
    else:
        check_options(path, words[1:])


def check_options(path: Path, words: list[str]) -> None:
    """Options are defined in the program itself or in the `common.py` next to it."""
    source = path.read_text() + "".join(
        neighbour.read_text() for neighbour in path.parent.glob("common.py")
    )
    for word in words:
        if word.startswith("--"):
            assert f'"{word.split("=")[0]}"' in source, f"{path.name} has no {word}"


def check_files(words: list[str]) -> None:
    for word in words:
        if "/" in word and not word.startswith((".venv", "http", "-", ":")):
            assert (ROOT / word).exists(), word


def check_pip(words: list[str]) -> None:
    assert words.pop(0) == "install"
    for word in words:
        if found := re.fullmatch(r"(csm-tts-plugin|\.)(\[([a-z,]+)\])?", word):
            assert set((found[3] or "").split(",")) - {""} <= extras()
        elif word != "-r":
            assert (ROOT / word).is_file(), word


def extras() -> set[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def check_docker(words: list[str]) -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    if words[0] == "compose":
        profiles = {
            profile for one in compose["services"].values() for profile in one.get("profiles", [])
        }
        values = dict(pairwise(words))
        assert values.get("--profile", "sip") in profiles
        assert values.get("-f", "deploy/compose.yaml") == "deploy/compose.yaml"
        for verb in ("exec", "--follow"):
            assert values.get(verb, "engine") in compose["services"]
        if "csm_tts_plugin" in words:
            check_csm_tts(words[words.index("csm_tts_plugin") + 1 :])
    elif words[0] == "run":
        check_csm_tts(words[words.index("csm-engine") + 1 :])
    elif words[0] == "build":
        stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
        assert words[words.index("--target") + 1] in stages
    else:
        assert words[0] == "buildx"


def check_lk(words: list[str]) -> None:
    for word in words:
        if word.endswith(".json"):
            json.loads((ROOT / word).read_text())


def check_curl(words: list[str]) -> None:
    paths = {re.sub(r"https?://[^/]+", "", word) for word in words if "://" in word}
    served = (ROOT / "csm_tts_plugin/server/app.py").read_text() + '"/worker"'
    assert all(f'"{path.split("?")[0]}"' in served for path in paths), paths


def check_npm(words: list[str]) -> None:
    scripts = json.loads((ROOT / "web/package.json").read_text())["scripts"]
    assert words == ["ci"] or words[1] in scripts


def check_schemathesis(words: list[str]) -> None:
    assert (ROOT / "schemathesis.toml").is_file()


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "csm-tts": check_csm_tts,
    "python": check_python,
    "pip": check_pip,
    "bash": lambda words: check_files(words[:1]),
    "docker": check_docker,
    "lk": check_lk,
    "curl": check_curl,
    "npm": check_npm,
    "cp": check_files,
    "schemathesis": check_schemathesis,
}


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_is_one_that_exists(page, line):
    for part in re.split(r"&&|;(?=[^'\"]*$)", line):
        words = shlex.split(part, comments=True)
        while words and (assigned := ASSIGNMENT.fullmatch(words[0])):
            assert assigned[1] in VARIABLES | OTHERS, f"{page}: {assigned[1]}"
            words.pop(0)
        words = [word.strip("[]") if " [" in line else word for word in words if word != "..."]
        name = Path(words[0]).name if words else ""
        if name in ("cd", "chmod", ""):
            continue
        assert name in CHECKS, f"{page}: say here how `{name}` is checked"
        CHECKS[name](words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_a_page_are_those_of_env_example(page):
    for _, text in ((one, text) for one, text in blocks("") if one == page):
        for name in re.findall(r"^([A-Z][A-Z0-9_]+)=", text, re.M):
            assert name in VARIABLES | OTHERS


def test_the_readme_s_commands_that_are_cheap_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = next(line for _, line in commands() if line.startswith("csm-tts say"))
    assert main(shlex.split(said, comments=True)[1:]) == 0
    assert soundfile.info("out.wav").duration > 0.3
    with pytest.raises(SystemExit) as ended:
        main(["voices", "--help"])
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out


# Snippets --------------------------------------------------------------------------------------


class Place:
    """The environment of a snippet: a folder with recordings, and a running engine."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        voice = 0.2 * np.sin(np.arange(3 * 24_000) / 25) * np.hanning(3 * 24_000)
        for name in ("anna.wav", "reference.wav"):
            soundfile.write(folder / name, voice, 24_000)

    def run(self, text: str, **names: object) -> dict[str, object]:
        text = text.replace("http://127.0.0.1:8090", self.url).replace("eustlb/csm-1b", "tiny")
        found: dict[str, object] = {"__name__": "snippet", **names}
        exec(compile(text, "snippet", "exec"), found)
        return found


async def run_plugin(place: Place, text: str) -> None:
    """The server is made; its entrypoint runs in calls (tests/call/test_examples.py)."""
    assert asyncio.iscoroutinefunction(place.run(text)["answer"])
    example = (ROOT / "examples/plugin_alone.py").read_text()
    for line in text.splitlines():
        bare = line.split("#")[0].strip()
        shortened = bare.startswith(
            ("speech = TTS", "session =", "server =", "from livekit.agents")
        )
        assert not bare or shortened or bare in example, line


async def run_voice(place: Place, text: str) -> None:
    frame = rtc.AudioFrame(bytes(2 * 2_400), 24_000, 1, 2_400)
    async with TTS(engine_url=place.url) as speech:
        found = place.run(text, speech=speech, frame=frame)
        assert speech.voice is found["voice"]


async def run_agent(place: Place, text: str) -> None:
    agent = place.run(text)["Receptionist"](None)
    assert agent.consent_policy.ask
    assert {"use_my_voice", "stop_using_my_voice"} <= {tool.info.name for tool in agent.tools}


async def run_library(place: Place, text: str) -> None:
    found = await asyncio.to_thread(place.run, text)
    assert len(found["audio"]) > 2_400
    assert soundfile.info("out.wav").frames == len(found["audio"])
    assert found["chunk"].dtype.is_floating_point


async def run_client(place: Place, text: str) -> None:
    await asyncio.to_thread(place.run, text)


async def run_store(place: Place, text: str) -> None:
    place.run(text)
    assert soundfile.info("voices/anna.wav").duration == 3.0


async def run_openai(place: Place, text: str) -> None:
    voice = place.run(text)["voice"]
    async with voice.synthesize("Hello.") as stream:
        assert sum([event.frame.duration async for event in stream]) > 0
    await voice.aclose()


async def run_page(place: Place, text: str) -> None:
    app = web.Application()
    place.run(text, app=app)
    assert [resource.canonical for resource in app.router.resources()] == ["/call"]


RUN = {
    "AgentServer()": run_plugin,
    "update_options(voice=voice)": run_voice,
    "CallerVoiceAgent)": run_agent,
    "load_csm_1b": run_library,
    "EngineClient(": run_client,
    "VoiceStore(": run_store,
    "openai.TTS(": run_openai,
    "add_subapp(": run_page,
}
"""How a snippet with these words is run."""


@pytest.mark.parametrize(("page", "text"), list(blocks("python")))
async def test_a_snippet_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "OPENAI_API_KEY": "none",
        "CSM_ENGINE_URL": "",
        "CSM_MODEL": "tiny",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("URL", "API_KEY", "API_SECRET"):
        monkeypatch.setenv(f"LIVEKIT_{name}", "ws://127.0.0.1:7880" if name == "URL" else "x" * 32)
    how = [run for words, run in RUN.items() if words in text]
    assert len(how) == 1, f"{page}: say in RUN how this snippet is run"
    async with serving() as server:
        await how[0](Place(tmp_path, server.url), text)


@pytest.mark.parametrize(("page", "text"), list(blocks("json")))
def test_a_piece_of_json_is_one(page, text):
    record = json.loads(text)
    Consent(**{name: record[name] for name in ("speaker", "statement", "date")})


# Links and size --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, "AGENTS.md", "training/README.md"])
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = folder / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes from headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_linked_from_another():
    linked = {
        ((ROOT / page).parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    }
    assert [page for page in PAGES[1:] if ROOT / page not in linked] == []


def test_the_readme_stays_short_and_so_does_the_agent():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert len((ROOT / "agent.py").read_text().splitlines()) <= 150
    top = list((ROOT / "csm_tts_plugin").glob("*.py"))
    assert len(top) <= 10


def test_commands_are_found_at_all():
    kinds = {Path(shlex.split(line)[0]).name for _, line in commands()}
    assert {"make", "csm-tts", "python", "docker", "lk"} <= kinds | {"csm-tts"}
    assert isinstance(_parser([]), argparse.ArgumentParser)
    assert import_module("csm_tts_plugin.__main__")
