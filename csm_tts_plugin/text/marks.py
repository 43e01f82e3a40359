"""Names and patterns of text that an LLM writes and that must not be spoken.

Tags (HTML, SSML, sound effects of other voices), leftovers of chat templates, citations.
"""

from __future__ import annotations

import re
import unicodedata


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


INLINE_TAGS = _words(
    "a abbr b bdi bdo cite code del em emphasis font i ins kbd mark phoneme prosody q s samp "
    "say-as small span strike strong sub sup token tt u var voice w"
)
"""Tags inside or next to a word; removing them leaves no space."""
BLOCK_TAGS = _words(
    "amazon article aside audio blockquote body br break button center details div dl dd dt "
    "emotion fieldset figure footer form frame h1 h2 h3 h4 h5 h6 head header hr html iframe img "
    "input label li link main meta nav ol option p pre say script section select source speak "
    "speed spell style "
    "summary svg table tbody td textarea tfoot th thead title tr ul video volume wbr "
    "answer final message output reply response result text tool_call unk pad bos eos mask sep cls"
)
"""Tags that separate words: of HTML, of SSML, of other voices and of templates."""
HIDING_TAGS = _words("think thinking thought thoughts reasoning scratchpad script style")
"""If a line begins with one of these, the text up to its closing tag is hidden."""

ROLE_TOKENS = re.compile(
    r"<[|｜](?:im_start|start_header_id|start_of_role|role_start|start)[|｜]>|<start_of_turn>", re.I
)
"""After one of these a chat template writes the name of the role."""
ROLES = _words("system user assistant model tool ipython developer")

CONTROL = re.compile(
    r"<[|｜][^<>|｜\s]{0,64}[|｜]>|</?(?:s|bos|eos|pad|unk|mask|sep|cls)>|<</?SYS>>"
)
"""Control tokens of common models; removed everywhere."""
CUT_CONTROL = re.compile(r"<[|｜][^<>|｜\s]{0,64}[|｜]?")
"""A control token that the end of the text cuts off."""

BRACKETED = re.compile(
    r"/?INST|g?MASK|PAD|CLS|SEP|UNK|EOS|BOS|/?SYSTEM_PROMPT|/?AVAILABLE_TOOLS|/?TOOL_CALLS"
    r"|/?TOOL_RESULTS|BLANK_AUDIO|NO_SPEECH"
)
_SOUNDS = (
    "laugh laughs laughing laughter chuckle chuckles giggle giggles sigh sighs gasp gasps cough "
    "coughs groan groans yawn yawns sniffle sniffles breath breathes pause pauses silence music "
    "applause whisper whispers clears-throat"
)
SOUNDS = _words(_SOUNDS)
"""Sound effects of other voices; this one has none."""

_NUMBER = r"\^?\d{1,3}"
CITATION = re.compile(
    rf"{_NUMBER}(?:\s?[,;–-]\s?{_NUMBER})*|\^[\w-]{{1,32}}|[\d:,\s]{{1,16}}†[^\]】]{{0,64}}"
    r"|cite\s?[:_][^\]]{0,64}|citation needed|source needed",
    re.I,
)
"""The text inside the brackets of a citation."""

DIALLING = re.compile(
    r"\b(?:press(?:ing|es)?|dial(?:ing|s|ling)?|key(?:pad)?|keys?|enter(?:ing)?|hit(?:ting)?|type|"
    r"push(?:ing)?|code|number|option|button|text|tap)\b[^.!?\n]{0,40}$",
    re.I,
)
"""Words before telephone keys in the same sentence."""

UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters without shape or sound. Joiners stay: they shape letters and emoji."""


def is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def is_flush(char: str) -> bool:
    """Whether the character's script puts no spaces between words."""
    return (
        "\u0e00" <= char <= "\u0e7f" or "\u3040" <= char <= "\u9fff" or "\uac00" <= char < "\ud7b0"
    )


def in_word(char: str) -> bool:
    """Whether a delimiter next to `char` is inside a word."""
    return char.isalnum() and not is_flush(char)
