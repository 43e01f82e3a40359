"""The exception tree: unique codes, round trips over the wire, one-line messages."""

from __future__ import annotations

import inspect
import re
import tomllib

import pytest

from csm_tts_plugin import errors
from csm_tts_plugin.errors import (
    BusyError,
    CsmError,
    EngineError,
    NumericError,
    from_code,
    install,
)
from scripts.setup_tools import ROOT

TREE = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, CsmError)
]


def test_every_error_has_a_code_of_its_own():
    codes = [cls.code for cls in TREE]
    assert len(set(codes)) == len(codes) >= 14


@pytest.mark.parametrize("cls", TREE)
def test_an_error_survives_the_wire(cls):
    sent = cls("One line.", retry_after=1.5)
    received = from_code(sent.code, sent.message, retry_after=sent.retry_after)
    assert type(received) is cls
    assert (str(received), received.retry_after) == ("One line.", 1.5)
    assert received.retryable is cls.retryable


def test_a_code_from_a_newer_peer_is_still_an_error():
    error = from_code("invented later", "Something.")
    assert type(error) is CsmError
    assert not error.retryable


def test_what_may_be_tried_again_is_what_may_pass():
    retryable = {cls.code for cls in TREE if cls.retryable}
    assert retryable == {"busy", "unavailable", "timeout", "engine"}
    assert issubclass(NumericError, EngineError)
    assert not NumericError.retryable, "the same weights give the same NaN"


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = errors.__doc__ or ""
    for cls in TREE:
        assert cls.__name__ in drawn
        assert cls is CsmError or cls.code in drawn


def test_nobody_needs_a_retry_time():
    assert BusyError("Full.").retry_after is None


def test_messages_install_from_the_checkout_and_only_extras_that_exist():
    """The package is in no index, where `pip install csm-tts-plugin` would find it."""
    assert install() == "`pip install .` in the checkout of csm-tts-plugin"
    assert install("engine") == '`pip install ".[engine]"` in the checkout of csm-tts-plugin'
    code = "".join(path.read_text() for path in (ROOT / "csm_tts_plugin").rglob("*.py"))
    assert "pip install csm" not in code.replace('"', "").replace("'", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"""\binstall\(["']([a-z]+)["']""", code))
    assert {"engine"} < named <= set(project["optional-dependencies"])
