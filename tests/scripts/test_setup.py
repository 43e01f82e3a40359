"""Set-up: each step runs once, failures are one line, and every package is pinned."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import setup, setup_tools
from scripts.setup import Step
from scripts.setup_tools import ROOT, SetupError, Tools


@pytest.fixture
def tools_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "TOOLS", tmp_path)
    monkeypatch.setattr(setup_tools, "TOOLS", tmp_path)
    monkeypatch.setattr(setup_tools, "LOG", tmp_path / "setup.log")
    return tmp_path


def step(output: Path, done: list[str], key: str = "v1") -> Step:
    def action(_: Tools) -> None:
        output.write_text("here")
        done.append(key)

    return Step("thing", "a thing", key, (output,), action)


def test_a_step_is_done_once(tools_folder):
    done: list[str] = []
    for _ in range(3):
        setup.run([step(tools_folder / "out", done)], Tools())
    assert done == ["v1"]


def test_a_step_is_done_again_when_its_inputs_change_or_its_output_is_gone(tools_folder):
    done: list[str] = []
    setup.run([step(tools_folder / "out", done)], Tools())
    setup.run([step(tools_folder / "out", done, key="v2")], Tools())
    (tools_folder / "out").unlink()
    setup.run([step(tools_folder / "out", done, key="v2")], Tools())
    assert done == ["v1", "v2", "v2"]


def test_a_step_that_was_interrupted_is_done_again_and_those_before_it_are_not(tools_folder):
    done: list[str] = []
    first = step(tools_folder / "first", done)

    def interrupted(_: Tools) -> None:
        (tools_folder / "second").write_text("half")
        raise KeyboardInterrupt

    second = Step("second", "", "v1", (tools_folder / "second",), interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup.run([first, second], Tools())
    assert first.done()
    assert not second.done()


def test_an_optional_step_that_fails_is_told_and_what_follows_is_done(tools_folder, capsys):
    done: list[str] = []

    def refused(_: Tools) -> None:
        raise SetupError("no such package; take another")

    optional = Step("more", "", "v1", (tools_folder / "more",), refused, optional=True)
    setup.run([optional, step(tools_folder / "out", done)], Tools())
    assert done == ["v1"]
    assert "continuing without it (no such package" in capsys.readouterr().out
    assert not optional.done()


def test_a_step_beside_the_others_runs_while_they_do(tools_folder):
    begun, seen = (threading.Event(), threading.Event()), []

    def meets(mine: int) -> Callable[[Tools], None]:
        def action(_: Tools) -> None:
            begun[mine].set()
            seen.append(begun[1 - mine].wait(30))

        return action

    aside = Step("aside", "", "v1", (), meets(0), beside=True)
    setup.run([Step("first", "", "v1", (), meets(1)), aside], Tools())
    assert seen == [True, True]
    assert aside.done()


def test_a_step_that_fails_ends_the_one_beside_it(tools_folder):
    begun = threading.Event()

    def endless(tools: Tools) -> None:
        begun.set()
        tools.run([sys.executable, "-c", "import time; time.sleep(600)"], cwd=tools_folder)

    def fails(_: Tools) -> None:
        begun.wait(30)
        raise SetupError("no network; check it")

    aside = Step("aside", "", "v1", (), endless, beside=True)
    with pytest.raises(SetupError, match="no network"):
        setup.run([aside, Step("first", "", "v1", (), fails)], Tools())
    assert not aside.done()


def test_the_failure_of_a_step_beside_the_others_is_told_after_they_are_done(tools_folder):
    done: list[str] = []

    def fails(tools: Tools) -> None:
        tools.run([sys.executable, "-c", "print('error: no disk'); exit(1)"], cwd=tools_folder)

    aside = Step("aside", "", "v1", (), fails, beside=True)
    with pytest.raises(SetupError, match=r"no disk.*\.tools/livekit-server\.log"):
        setup.run([aside, step(tools_folder / "out", done)], Tools())
    assert done == ["v1"]


def test_a_call_needs_none_of_the_recordings_of_the_tests():
    steps = setup.all_steps(own_recordings=False)
    assert [one.name for one in steps if one.for_tests] == ["speakers", "prompts"]
    assert [one.name for one in steps if one.beside] == ["livekit-server"]


def test_a_file_other_than_the_pinned_one_is_deleted_and_told(tmp_path):
    file = tmp_path / "model.bin.partial"
    file.write_bytes(b"other")
    with pytest.raises(SetupError, match=r"model\.bin is not the pinned file"):
        setup.check_hash(file, hashlib.sha256(b"right").hexdigest())
    assert not file.exists()


def test_a_file_that_is_the_pinned_one_stays(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"right")
    setup.check_hash(file, hashlib.sha256(b"right").hexdigest())
    assert file.exists()


def test_a_tool_that_fails_gives_its_last_word_without_addresses(tools_folder):
    script = "print('error: no route to https://user:secret@mirror/simple'); raise SystemExit(3)"
    with pytest.raises(SetupError) as caught:
        Tools().run([sys.executable, "-c", script], cwd=tools_folder, cure="check the network")
    message = str(caught.value)
    assert "no route to (address)" in message
    assert "check the network" in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_tool_that_is_missing_is_named(tools_folder):
    with pytest.raises(SetupError, match="no-such-tool cannot be started"):
        Tools().run(["no-such-tool"], cwd=tools_folder)


def test_a_tool_that_never_ends_is_ended(tools_folder):
    with pytest.raises(SetupError, match="did not end"):
        Tools(limit_s=0.2, patience_s=0.1).run(
            [sys.executable, "-c", "import time; time.sleep(600)"], cwd=tools_folder
        )


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8\n", (1, 26)), ("go1.27rc1", (1, 27)), ("", (0, 0)), ("devel", (0, 0))],
)
def test_versions_of_go_are_read(text, version):
    assert setup_tools._go_version(text) == version


def test_a_mirror_of_pip_holds_for_uv_too(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    env = setup_tools._environment({"GOBIN": "/bin"})
    assert env["UV_DEFAULT_INDEX"] == "http://mirror/simple"
    assert env["GOBIN"] == "/bin"
    assert "VIRTUAL_ENV" not in env


def test_own_recordings_make_ours_unnecessary():
    ours = {"speech", "speakers", "prompts"}
    assert not {one.name for one in setup.all_steps(own_recordings=True)} & ours
    assert "speech" in {one.name for one in setup.all_steps(own_recordings=False)}


def test_without_a_network_there_is_one_line_and_no_traceback(tmp_path):
    """A fresh copy whose package index is an address without a server."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in (*setup.REQUIREMENTS, "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    env = {**os.environ, **nowhere, "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.setup"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("set-up failed: ")
    assert done.stderr.count("\n") == 1
    assert "network" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def pinned(name: str) -> dict[str, str]:
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line):
            found.setdefault(match[1].lower(), match[2])
        else:
            assert not line.strip() or line.startswith("#"), f"{name}: {line} is not an exact pin"
    return found


def test_every_requirement_is_pinned_and_the_lock_agrees():
    lock = pinned("constraints.txt")
    for name in setup.REQUIREMENTS:
        for package, version in pinned(name).items():
            assert lock[package] == version, f"{package} of {name}: run make lock"


def test_what_measures_is_pinned_and_leaves_the_locked_packages_alone():
    measuring = pinned("benchmarks/requirements.txt")
    assert {"resemblyzer", "jiwer"} <= set(measuring)
    assert not {"torch", "numpy", "soundfile"} & set(measuring)


def test_the_lock_names_no_host():
    assert "://" not in (ROOT / "constraints.txt").read_text()
