"""Prompt and sampling of the offline LLM.

A model of 135 M parameters follows examples better than instructions, and often leaves the topic.
Independent of LiveKit.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]

MAX_TOKENS = 48
_EXAMPLE = re.compile(r"^Caller:\s*(\S.*)\n+You:\s*(\S.*)$", re.MULTILINE)

GRAMMAR = r"""root ::= [A-Z] unit{16,140} [.!?]
unit ::= [a-z A-Z,'-] | "Mr." | "Mrs." | "Dr."
"""
"""One whole sentence of letters and commas: small voice models read nothing else reliably."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNWANTED = _words(
    "sex sexual sexually sexuality erotic naked porn pornography breast breasts penis vagina"
    " genital genitals intercourse prostitution rape raped lust aroused arousal condom virgin"
    " negro retard kill killed killing killer kills murder murdered suicide suicidal stab bomb"
    " bombs bombing terrorist terrorism terrorists gun guns shooting bloody corpse torture tortured"
    " slaughter massacre genocide racist racism slave slaves slavery cocaine heroin drug drugs meth"
    " marijuana cannabis overdose addict addiction addicted alcohol drunk abortion cancer tumor"
    " abuse abused assault hatred Nazi Nazis Hitler Holocaust Trump Biden Obama Putin Israel"
    " Palestine Muslim Muslims Jew Jews Islam"
)
"""Each word is one token of SmolLM2 together with the space before it, and is never drawn."""
_OBSCENE = (
    "fuck|shit|bitch|bastard|whore|slut|asshole|nigg|faggot|orgas|masturb|rapis|incest|pedoph"
    "|seduc|nud[ei]|murder"
)
_UNSAID = re.compile(rf"\b(?:{_OBSCENE}|(?:{'|'.join(UNWANTED)})(?![a-z]|$))", re.IGNORECASE)
_SHORT = 2.0
"""Logit bias of the full stop: sentences of 50 letters instead of 60."""

SAMPLING: dict[str, Any] = {
    "stop": ["\n"],
    "repeat_penalty": 1.1,
    "grammar": GRAMMAR,
    "logit_bias": [[".", _SHORT], *([f" {word}", False] for word in UNWANTED)],
}
"""Options beyond OpenAI's protocol."""
TEMPERATURE = 0.3


def split_examples(instructions: str) -> tuple[str, list[tuple[str, str]]]:
    """The instructions without examples, and the examples: lines `Caller: ...`, `You: ...`."""
    examples = [(said.strip(), reply.strip()) for said, reply in _EXAMPLE.findall(instructions)]
    return _EXAMPLE.sub("", instructions).strip(), examples


def opening(instructions: str) -> list[tuple[Role, str]]:
    """The first messages of every request, which the server prefills once."""
    text, examples = split_examples(instructions)
    messages: list[tuple[Role, str]] = [("system", text)]
    for said, reply in examples:
        messages += [("user", said), ("assistant", reply)]
    return messages


def unwanted(reply: str) -> bool:
    """Whether the reply has a word that does not belong in a demonstration."""
    return _UNSAID.search(reply) is not None
