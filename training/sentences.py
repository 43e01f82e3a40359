"""Sentences to speak: plain grammar over everyday words, and word lists for coverage."""

from __future__ import annotations

import random
from pathlib import Path

_PEOPLE = "I|you|we|they|he|she|my sister|the teacher|my brother|our friend|the doctor|everyone"
_PAST = (
    "found|saw|made|wanted|took|remembered|forgot|liked|opened|closed|carried|painted|watched|"
    "bought|lost|needed|cleaned|built|showed|moved|used|checked|changed|kept|brought|heard"
)
_THINGS = (
    "garden|letter|table|house|door|window|picture|song|story|book|answer|question|phone|car|"
    "road|river|city|market|school|kitchen|coffee|water|paper|bag|box|key|train|plan|room|game|"
    "message|number|name|street|church|flower|bird|dog|horse|shirt|clock|light|voice|party"
)
_KINDS = (
    "old|new|small|big|red|green|blue|quiet|warm|cold|heavy|light|good|bad|long|short|clean|"
    "beautiful|little|different|simple|strange|early|late|empty|open|happy|famous|modern|dark"
)
_PLACES = (
    "in the morning|near the river|at the station|behind the house|after dinner|on friday|"
    "before lunch|in the city|by the window|at home|next week|last year|every day|at school|"
    "in the garden|with my friends|for a long time|without a word|under the table|on the road"
)
_FRAMES = (
    "{who} {did} the {kind} {thing} {where}.",
    "{who} {did} a {kind} {thing}.",
    "{who} {did} the {thing} and the {thing2}.",
    "The {thing} is {kind} and the {thing2} is {kind2}.",
    "The {kind} {thing} was {where}.",
    "Where is the {kind} {thing}?",
    "Why is the {thing} so {kind}?",
    "Can you tell me about the {thing}?",
    "Did you see the {thing} {where}?",
    "Please open the {kind} {thing}.",
    "I would like to talk about the {thing}.",
    "There is a {thing} {where}, and it is {kind}.",
    "Yes, the {thing} is {kind}.",
    "No, I do not know the {thing}.",
    "Thank you, that is a {kind} {thing}.",
    "Hello, how can I help you with the {thing}?",
    "If you want, we can look at the {thing} {where}.",
    "That is a good question, let me think about the {thing}.",
)
_SLOTS = {
    "who": _PEOPLE, "did": _PAST, "thing": _THINGS, "thing2": _THINGS,
    "kind": _KINDS, "kind2": _KINDS, "where": _PLACES,
}  # fmt: skip


def words() -> list[str]:
    """Everyday English words, the most frequent first."""
    return (Path(__file__).parent / "words.txt").read_text().split()


def grammatical(random_: random.Random) -> str:
    """A sentence of the small grammar."""
    filled = {slot: random_.choice(choices.split("|")) for slot, choices in _SLOTS.items()}
    text = random_.choice(_FRAMES).format(**filled)
    return text[0].upper() + text[1:]


def word_list(random_: random.Random, vocabulary: list[str]) -> str:
    """One to nine words, frequent ones more often; makes no sense, covers sounds in all orders."""
    weights = [(rank + 40) ** -0.6 for rank in range(len(vocabulary))]
    chosen = random_.choices(vocabulary, weights, k=random_.randint(1, 9))
    if len(chosen) > 3 and random_.random() < 0.3:
        chosen[random_.randint(1, len(chosen) - 2)] += ","
    return " ".join(chosen) + random_.choice("...?")


def sentences(seed: int, count: int, vocabulary: list[str]) -> list[str]:
    """`count` sentences, the same for the same seed; none of those kept for evaluation."""
    random_ = random.Random(seed)
    kept = set(held_out(200))
    made: list[str] = []
    while len(made) < count:
        grammar = random_.random() < 0.4
        text = grammatical(random_) if grammar else word_list(random_, vocabulary)
        if text not in kept:
            made.append(text)
    return made


def held_out(count: int) -> list[str]:
    """Sentences that training never hears; every word of theirs it does."""
    random_ = random.Random(2026)
    return [grammatical(random_) for _ in range(count)]
