"""Folders that are not a usable model are refused in one line with the remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csm_tts_plugin.engine.loading import TINY_FOLDER
from tests.commands.test_doctor import bad, examined, nothing_set
from tests.server.test_process import ROOT, free_of_settings

__all__ = ["examined", "nothing_set"]


def faulty(tmp_path, what):
    """A copy of the small model's folder with one fault, as a value of CSM_MODEL."""
    folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / "model"))
    weights = folder / "model.safetensors"
    if what == "no template":
        (folder / "chat_template.jinja").unlink()
    elif what == "a template that fails":
        (folder / "chat_template.jinja").write_text("{{ messages[7].nothing.at_all }}")
    elif what == "a template that is none":
        (folder / "chat_template.jinja").write_text("{% for %}")
    elif what == "an adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif what == "first layout":
        (folder / "config.json").write_text('{"backbone_flavor": "llama-1B"}')
    elif what == "first layout, older":
        (folder / "config.json").unlink()
        weights.rename(folder / "ckpt.pt")
    elif what == "a missing part":
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": weights.name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "a pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    elif what == "a file":
        return str(weights)
    return str(folder)


FAULTY = [
    ("no template", "chat_template.jinja"),
    ("a template that fails", "chat template"),
    ("a template that is none", "chat template"),
    ("an adapter", "CSM_ADAPTER"),
    ("first layout", "Sesame's first layout"),
    ("first layout, older", "Sesame's first layout"),
    ("a missing part", "lacks model-00001-of-00002.safetensors"),
    ("a pointer", "git lfs pull"),
    ("a file", "name its folder"),
]
_ONLY_LOADING_TELLS = ("a template that fails", "a template that is none")


@pytest.mark.parametrize(("what", "words"), FAULTY)
def test_a_folder_that_cannot_speak_is_one_line_with_its_cure(examined, tmp_path, what, words):
    model = faulty(tmp_path, what)
    output = tmp_path / "o.wav"
    ran = subprocess.run(
        [sys.executable, "-m", "csm_tts_plugin", "say", "Hello.", "--model", model, "-o", output],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
        env={**free_of_settings(), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 2, ran.stderr
    # Before this line, transformers may print its progress of loading weights.
    *_, last = ran.stderr.strip().splitlines()
    assert last.startswith("csm_tts_plugin: ")
    assert words in last
    assert "Traceback" not in ran.stderr
    assert not output.exists()
    if what not in _ONLY_LOADING_TELLS:
        (fault,) = bad(examined(CSM_MODEL=model))
        assert words in fault
