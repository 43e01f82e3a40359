"""`make test` runs its lanes in parallel, reports each result, and ends them all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from scripts import run_tests
from scripts.setup_tools import ROOT

PROGRAM = """
import sys
from pathlib import Path
from scripts.run_tests import Lane, run

folder = Path(sys.argv[1])
sys.exit(run([Lane(name, (name,), cwd=folder) for name in ("one", "two")], folder / "out"))
"""

MEETING = """
import time
from pathlib import Path

def test_both_are_there(tmp_path):
    Path("{me}.here").touch()
    until = time.monotonic() + 150
    while not Path("{other}.here").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
"""

ENDLESS = """
import time
from pathlib import Path
import pytest

@pytest.fixture
def held():
    yield
    Path("{me}.given-back").touch()

def test_it_takes_long(held):
    print("begun", flush=True)
    Path("{me}.begun").touch()
    time.sleep(600)
"""


@contextmanager
def lanes(folder, one: str, two: str):
    """Two running lanes of one file each."""
    (folder / "pytest.ini").touch()
    for name, source, other in (("one", one, "two"), ("two", two, "one")):
        (folder / name).mkdir()
        (folder / name / f"test_{name}.py").write_text(source.format(me=name, other=other))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process) -> str:
    said, _ = process.communicate(timeout=170)
    print(said)
    return said


def test_lanes_run_beside_each_other(tmp_path):
    with lanes(tmp_path, MEETING, MEETING) as process:
        said = ended(process)
    assert process.returncode == 0
    assert "== all: 2 passed" in said
    assert "failed" not in said.splitlines()[-1]


def test_one_that_fails_is_named_and_shown_with_its_report_and_all_are_counted(tmp_path):
    fails = "import pytest\ndef test_a(): assert 'this' == 'that'\ndef test_b(): pytest.skip('no')"
    with lanes(tmp_path, "def test_a(): pass", fails) as process:
        said = ended(process)
    assert process.returncode == 1
    assert "assert 'this' == 'that'" in said
    counted, _, failed = said.splitlines()[-1].removeprefix("== all: ").partition("; failed: ")
    assert set(counted.split(", ")) == {"1 passed", "1 failed", "1 skipped"}
    assert failed == "two"
    assert "'this' == 'that'" in (tmp_path / "out" / "two.txt").read_text()


def test_a_lane_that_finds_no_test_or_cannot_begin_has_failed(tmp_path):
    with lanes(tmp_path, "def test_a(): pass", "import nowhere_to_be_found") as process:
        said = ended(process)
    assert process.returncode == 1
    assert "1 error" in said.splitlines()[-1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_every_lane_in_order(tmp_path, sent):
    with lanes(tmp_path, ENDLESS, ENDLESS) as process:
        while not all((tmp_path / f"{name}.begun").exists() for name in ("one", "two")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        ended(process)
    assert process.returncode == 130
    assert (tmp_path / "one.given-back").exists()
    assert (tmp_path / "two.given-back").exists()


def test_every_folder_of_tests_is_in_one_lane():
    folders = [folder for lane in run_tests.lanes() for folder in lane.folders]
    there = {f"tests/{path.parent.name}" for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(folders) == sorted(there)


def test_words_for_pytest_mean_one_pytest_with_them(monkeypatch):
    started = []
    monkeypatch.setattr(run_tests.os, "execv", lambda *words: started.append(words[1]))
    monkeypatch.setattr(run_tests, "run", lambda *_: 0)
    run_tests.main(["tests/wire", "-k", "round"])
    assert started[0][-3:] == ["tests/wire", "-k", "round"]
