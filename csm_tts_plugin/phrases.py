"""What a caller's words mean for the use of their voice: a yes, a no, a stop, a wish.

Deliberately small and deterministic, for consent must not hang on a model's mood. In doubt it is
not a yes; and what might be a stop is one, for that harms nobody. English, as the voice is.
"""

from __future__ import annotations

import re
from enum import Enum, auto


class Answer(Enum):
    YES = auto()
    NO = auto()
    UNCLEAR = auto()


_VOICE = r"my (?:own )?voice"
_STOP = re.compile(
    # Over a telephone "stop using" is heard as "start using", which nobody needs to say.
    r"\b(?:stop|start using|quit|don't|never|no longer|not|without)\b"
    rf"(?: [\w']+){{0,5}}? {_VOICE}\b"
    rf"|\b(?:delete|forget|erase|remove|drop|discard) {_VOICE}\b"
    r"|\b(?:stop|quit|don't|no longer|not)(?: [\w']+){0,2}?"
    r" (?:cloning|copying|imitating|mimicking|clone|copy|imitate|mimic|sounding like|sound like|"
    r"talking like|talk like) me\b"
    r"|\b(?:use|take|with|back to|(?:speak|talk|answer|reply) in)"
    r" your (?:own|normal|usual|old|other|stock|first) voice\b"
)
_WISH = re.compile(
    r"(?:(?:please|yes|yeah|okay|ok|so|now|then|and|well|you can|you may|you could|go ahead and|"
    r"i want you to|i'd like you to|i would like you to|feel free to|let's|just) )*"
    r"(?:(?:use|clone|copy|take)|(?:speak|talk|answer|reply|go on|continue)(?: to)?(?: me)?"
    rf" (?:in|with)) {_VOICE}"
    r"(?: (?:again|now|please|then|instead|if you like|for your replies))*"
)

_FILLER = r"(?:um+|uh+|er+|hm+|mhm|oh|ah|well|so|and|i think|i guess|actually) "
_FINE = r"(?:fine|okay|ok|all right|alright|good)"
_YES = re.compile(
    rf"(?:{_FILLER})*(?:yes|yeah|yep|yup|yea|sure|certainly|absolutely|definitely|of course|"
    r"by all means|go ahead|go for it|please do|you (?:may|can)(?: (?:use|do|go|speak|try)\b|$)|"
    rf"i agree|i consent|(?:that's|that is|it's|it is|sounds)? ?{_FINE}|i'd (?:like|love) that|"
    r"i would (?:like|love) that|i yes)\b"
)
_YES_WORDS = 12
"""A longer turn tells something else, however it begins."""
_NO = re.compile(
    r"\b(?:no|nope|nah|not|never|don't|won't|can't|cannot|isn't|wouldn't|rather|refuse|decline|"
    r"disagree|stop|object|mind|forbid|deny|unless|later|wait)\b"
)
_NO_THAT_IS_NONE = re.compile(
    r"\b(?:no problem|not a problem|no objections?|(?:don't|wouldn't) mind(?: at all)?|why not|"
    r"no worries)\b"
)
_HEDGE = re.compile(
    r"\b(?:but|if|what|why|how|when|who|which|depends|maybe|perhaps|question|only)\b"
)


def wants_stop(text: str) -> bool:
    """Whether the caller does not want their voice used, asked or not."""
    return _STOP.search(_plain(text)) is not None


def wishes_voice(text: str) -> bool:
    """Whether a whole sentence asks for one's own voice: no question, no condition, no story."""
    if wants_stop(text):
        return False
    sentences = re.split(r"[.!;]+\s*", text)
    return any(_WISH.fullmatch(_plain(one)) for one in sentences if "?" not in one)


def answer_of(text: str) -> Answer:
    """To the question whether one's voice may be used, which has just been asked."""
    plain = _NO_THAT_IS_NONE.sub("yes", _plain(text))
    no = _NO.search(plain) is not None
    yes = _YES.match(plain) is not None and len(plain.split()) <= _YES_WORDS
    hedged = _HEDGE.search(plain) is not None or "?" in text
    if wants_stop(text) or (no and not yes):
        return Answer.NO
    return Answer.YES if yes and not no and not hedged else Answer.UNCLEAR


def _plain(text: str) -> str:
    """Lower case, one space between words, apostrophes only inside of them."""
    lower = text.lower().replace("\u2019", "'").replace("do not", "don't")
    return " ".join(re.findall(r"\w+(?:'\w+)*", lower))
