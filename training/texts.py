"""Sentences like those of an LLM in a call: SmolLM2 answers generated questions of callers.

Appends to `texts.txt` under --work, one sentence per line, without duplicates. Needs `xllamacpp`
and the model of `make setup`. With --wordnet it needs neither: it appends the 47,000 example
sentences of WordNet, which cover many words and senses (`apt-get install wordnet-base`).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .sentences import words

SYSTEM = "You are a friendly voice on the phone. Answer in one or two short sentences."
ASK = (
    "Tell me about {a}.",
    "What do you think of {a} and {b}?",
    "I have been thinking about {a} today.",
    "Hello, I am calling about the {a}.",
    "Can you help me with my {a}?",
    "Why is {a} so {b}?",
    "My {a} does not work any more.",
    "How do I get from {a} to {b}?",
    "What should I say about {a}?",
    "Good morning, do you have any {a}?",
    "I would like to book a {a} for {n} people.",
    "My friend said that {a} is better than {b}.",
    "Give me some advice about {a}.",
    "Tell me a short story about a {a} and a {b}.",
    "When does the {a} open on {d}?",
    "I lost my {a} yesterday near the {b}.",
    "How much is the {a}?",
    "Please explain {a} simply.",
    "What is the weather like, and is it good for {a}?",
    "Who is {a}?",
    "I feel a bit {a} today.",
    "Could you repeat the part about the {a}?",
    "My order number is {n}, where is my {a}?",
    "What did people say about {a} in {b}?",
    "I am not sure whether I want the {a} or the {b}.",
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SHORTEST, LONGEST = 12, 120
"""Limits of a sentence in characters; the engine splits longer ones."""
_AT_ONCE = 12
_ALLOWED = re.compile(r"[A-Za-z0-9 ,.!?;:'%$&()-]+")


def question(random_: random.Random, vocabulary: list[str]) -> str:
    """A caller's question with words of the vocabulary, weighted by frequency."""

    def pick() -> str:
        if random_.random() < 0.4:
            return vocabulary[int(random_.random() ** 2.2 * 6000)]
        return vocabulary[random_.randrange(150, min(len(vocabulary), 12_000))]

    line = random_.choice(ASK)
    return line.format(a=pick(), b=pick(), n=random_.randint(2, 400), d=random_.choice(DAYS))


def split(text: str) -> list[str]:
    """The sentences of an answer that can be used unchanged."""
    text = text.replace("*", "").replace("’", "'").replace('"', "")
    parts = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip())
    fits = (SHORTEST, LONGEST)
    return [
        p
        for p in parts
        if fits[0] <= len(p) <= fits[1] and _ALLOWED.fullmatch(p) and p[-1] in ".!?"
    ]


def examples(folder: Path) -> list[str]:
    """The example sentences of WordNet that can be used unchanged, in a fixed random order."""
    found = set()
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            for quoted in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = " ".join(quoted.split()).strip(" ;,")
                text = text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")
                found.update(split(text))
    ordered = sorted(found)
    random.Random(1).shuffle(ordered)
    return ordered


def load(work: Path) -> list[str]:
    """The sentences written so far."""
    path = work / "texts.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


class Writer:
    """SmolLM2, served by llama.cpp in this process."""

    def __init__(self, model: Path, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.n_parallel, params.n_ctx = _AT_ONCE, _AT_ONCE * 256
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib, params.verbosity, params.n_threads_http = 0, 1, _AT_ONCE + 1
        self._server = xllamacpp.Server(params)

    def answer(self, text: str) -> str:
        """The answer to a caller's question."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 70, "temperature": 0.9, "top_p": 0.95,
                "repeat_penalty": 1.1}  # fmt: skip
        request = urllib.request.Request(
            self._server.listening_address + "/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--count", type=int, default=4000, help="sentences in all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    model = Path(".tools/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--model", type=Path, default=model)
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's data files; uses no LLM")
    args = parser.parse_args()
    if args.wordnet:
        have = set(load(args.work))
        with (args.work / "texts.txt").open("a") as file:
            file.writelines(s + "\n" for s in examples(args.wordnet) if s not in have)
        return
    writer, vocabulary = Writer(args.model, args.threads), words()
    have = set(load(args.work))
    random_, began = random.Random(args.seed * 1_000_003 + len(have)), time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool, (args.work / "texts.txt").open("a") as file:
        while len(have) < args.count:
            lines = [question(random_, vocabulary) for _ in range(10 * _AT_ONCE)]
            for answer in pool.map(writer.answer, lines):
                fresh = [s for s in split(answer) if s not in have]
                have.update(fresh)
                file.writelines(s + "\n" for s in fresh)
            file.flush()
            print(f"{len(have)} sentences  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
