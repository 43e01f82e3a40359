"""Sentences for the corpus: a small grammar, replies of an assistant, word lists for coverage."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
_REPLIES = (
    "Sure, I can help you with {a} and {b}.",
    "I am sorry, I did not catch that, could you say {a} again?",
    "It sounds like you want to talk about {a}.",
    "The {a} opens at {n} and closes at {n2}.",
    "That costs {n} dollars, or {n2} with {a}.",
    "Your order {n} is on its way, {name}.",
    "Let me check the {a} for you, one moment please.",
    "You could try {a}, {b}, or even {c}.",
    "I think {a} is a great idea, {name}!",
    "Well, {a} is often used for {b} in {c}.",
    "Have you ever been to {name} in {month}?",
    "We have {n} {a} left, and {n2} more on {day}.",
    "My name is {name}, and I am calling about {a}.",
    "In {n4}, {name} and {name2} went to {c}.",
    "First, open the {a}, then turn the {b} to the left.",
    "There are many kinds of {a}, such as {b} and {c}.",
    "I'm afraid I don't know anything about {a}.",
    "It's usually best to ask a {a} before you {b}.",
    "What kind of {a} do you like most?",
    "Is there anything else you'd like to know about {a}?",
    "You're welcome, have a wonderful {day}, {name}!",
    "Because of the {a}, we can't {b} until {day}.",
    "On {day}, {month} {d}, it will be {n} degrees.",
    "Of course! What would you like to do with your {a}?",
    "{name} said that {a} is better than {b}.",
    "That's wonderful, I'm glad your {a} works again.",
    "Please tell me your {a}, and I'll look it up.",
    "Yes, {a}.",
    "No, not {a}, but {b}.",
    "{a}?",
    "Oh, I see, so it's about {a}.",
)
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|the weekend"
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_NAMES = (
    "Anna|Ben|Carlos|Diana|Emma|Frank|Grace|Henry|Isabel|Jack|Karen|Lucas|Maria|Nathan|Olivia|"
    "Peter|Quentin|Rachel|Samuel|Teresa|Victor|Wendy|Xavier|Yvonne|Zachary|London|Paris|Berlin|"
    "Chicago|Boston|Madrid|Tokyo|Sydney|Dublin|Toronto|Edinburgh|California|Florida|Texas"
)
_SLOTS = {
    "who": _PEOPLE, "did": _PAST, "thing": _THINGS, "thing2": _THINGS,
    "kind": _KINDS, "kind2": _KINDS, "where": _PLACES,
}  # fmt: skip


def words() -> list[str]:
    """English words that the lexicon has, the most frequent first."""
    lines = (Path(__file__).parent / "lexicon.txt").read_text().splitlines()
    return [line.split(" ", 1)[0] for line in lines]


def grammatical(random_: random.Random) -> str:
    """A sentence of the small grammar."""
    filled = {slot: random_.choice(choices.split("|")) for slot, choices in _SLOTS.items()}
    text = random_.choice(_FRAMES).format(**filled)
    return text[0].upper() + text[1:]


def word_list(random_: random.Random, vocabulary: list[str]) -> str:
    """One to ten random words, weighted by frequency, which cover all sequences of sounds."""
    count = random_.randint(1, 10)
    ranks = [random_.random() ** 2.2 * len(vocabulary) for _ in range(count)]
    chosen = [vocabulary[int(rank)] for rank in ranks]
    if len(chosen) > 3 and random_.random() < 0.3:
        chosen[random_.randint(1, len(chosen) - 2)] += ","
    return " ".join(chosen) + random_.choice("...?")


def reply(random_: random.Random, vocabulary: list[str]) -> str:
    """An assistant's reply, filled with random words."""

    def word() -> str:
        return vocabulary[int(random_.random() ** 2.2 * len(vocabulary))]

    def words_() -> str:
        return " ".join(word() for _ in range(random_.choice((1, 1, 2, 3))))

    text = random_.choice(_REPLIES).format(
        a=words_(), b=words_(), c=word(), day=random_.choice(_DAYS.split("|")),
        month=random_.choice(_MONTHS.split("|")), d=random_.randint(1, 31),
        name=random_.choice(_NAMES.split("|")), name2=random_.choice(_NAMES.split("|")),
        n=random_.choice((random_.randint(1, 31), random_.randint(1, 999))),
        n2=random_.randint(2, 120), n4=random_.randint(1500, 2100),
    )  # fmt: skip
    return text[0].upper() + text[1:]


def any_sentence(random_: random.Random, vocabulary: list[str], free: list[str]) -> str:
    """A sentence of any kind; 40 % are from `free` if it is not empty."""
    kind = random_.random()
    if free and kind < 0.4:
        return random_.choice(free)
    if kind < 0.65:
        return reply(random_, vocabulary)
    return grammatical(random_) if kind < 0.75 else word_list(random_, vocabulary)


def sentences(seed: int, vocabulary: list[str], free: list[str]) -> Iterator[str]:
    """Endless sentences, determined by the seed, without those held out for evaluation."""
    random_ = random.Random(seed)
    kept = set(held_out(200))
    while True:
        text = any_sentence(random_, vocabulary, free)
        if text not in kept:
            yield text


def held_out(count: int) -> list[str]:
    """Sentences that are not in the training data, although all their words are."""
    random_ = random.Random(2026)
    return [grammatical(random_) for _ in range(count)]
