"""`.env` files are read, or refused in one line with the remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.config import load_env_file
from csm_tts_plugin.errors import ConfigError
from tests.server.test_process import ROOT, free_of_settings

TEXT = "# Grüße\nCSM_SLOTS=3\n"


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setenv("CSM_SLOTS", "9")
    monkeypatch.delenv("CSM_SLOTS")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_with_a_byte_order_mark_or_without(tmp_path, without, encoding):
    text = TEXT if encoding == "utf-8" else "CSM_SLOTS=3\n"
    (tmp_path / ".env").write_bytes(text.encode(encoding))
    load_env_file(tmp_path / ".env")
    assert os.environ["CSM_SLOTS"] == "3"


def test_the_environment_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CSM_SLOTS", "9")
    (tmp_path / ".env").write_text(TEXT)
    load_env_file(tmp_path / ".env")
    assert os.environ["CSM_SLOTS"] == "9"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_another_encoding_is_one_line(tmp_path, without, encoding):
    (tmp_path / ".env").write_bytes(TEXT.encode(encoding))
    with pytest.raises(ConfigError, match="save it again as UTF-8"):
        load_env_file(tmp_path / ".env")


def test_a_folder_is_one_line_and_nothing_is_fine(tmp_path):
    (tmp_path / ".env").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_env_file(tmp_path / ".env")
    load_env_file(tmp_path / "none")
    load_env_file("")


def test_the_command_line_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / ".env").write_bytes(TEXT.encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("csm_tts_plugin: .env is not UTF-8")
    assert errors.count("\n") == 1


def test_the_worker_says_so(tmp_path):
    (tmp_path / ".env").write_bytes(TEXT.encode("latin-1"))
    run = "from csm_tts_plugin.worker import run; from pathlib import Path; import sys;"
    ran = subprocess.run(
        [sys.executable, "-c", f"{run} sys.exit(run(lambda job: None, Path('.env')))", "start"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**free_of_settings(), "PYTHONPATH": str(ROOT)},
        timeout=150,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("agent: .env is not UTF-8")
    assert ran.stderr.count("\n") == 1


def test_every_variable_of_the_operations_page_is_in_the_example():
    table = (ROOT / "docs" / "operations.md").read_text().split("## Variables")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Z_]+)`", row)}
    example = (ROOT / ".env.example").read_text()
    shown = set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE))
    assert named <= shown
    telemetry = {name for name in shown if name.startswith("OTEL_")}
    assert shown - telemetry <= named
