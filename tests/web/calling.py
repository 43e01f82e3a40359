"""One call from the browser, as a user makes it, with its observations for the tests."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tests.web.accessibility import faults_everywhere, tab_stops
from tests.web.browser import Browser, PageError, Tab
from tests.web.making_web import Microphone, Web

NETWORK_GONE_S = 5.0
LONG, BREAKING_IN, SHORT = 0, 2, 4
"""Recordings of the reader: 7.1 s, enough for a voice; 5.3 s to interrupt; 3.2 s for a turn."""
TRIES = 4
"""A reply may be over before the interruption; then the next reply is interrupted."""

# Measures the level at the loudspeaker independently of the page.
LEVEL_METER = """
(() => {
  const speaker = [...document.querySelectorAll("audio")].find((a) => a.srcObject && !a.paused);
  if (!speaker) return false;
  const context = new AudioContext(), node = context.createAnalyser();
  context.createMediaStreamSource(speaker.srcObject).connect(node);
  const samples = new Float32Array(node.fftSize);
  window.testMeter = { loudest: 0, loud_ms: 0 };
  setInterval(() => {
    node.getFloatTimeDomainData(samples);
    const level = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
    testMeter.loudest = Math.max(testMeter.loudest, level);
    if (level > 0.005) testMeter.loud_ms += 20;
  }, 20);
  return true;
})()
"""
NOTICES = """
new MutationObserver(() => {
  const title = document.querySelector("#notice").hidden ? "" : document.querySelector("#notice-title").textContent;
  const seen = (window.testNotices ??= []);
  if (title && seen.at(-1) !== title) seen.push(title);
}).observe(document.querySelector("#notice"), { attributes: true, childList: true, subtree: true, characterData: true });
"""  # noqa: E501
TURNS = """
[...document.querySelectorAll(".times")].map((box) => ({
  turn: Number(box.dataset.turn),
  interrupted: box.dataset.interrupted === "true",
  head: box.querySelector(".times-head").textContent,
  reply: box.closest("li").querySelector("p").textContent,
  parts: Object.fromEntries([...box.querySelectorAll(".parts > div")].map(
    (part) => [part.querySelector("dt").textContent, parseFloat(part.querySelector("dd").textContent)])),
  slices: box.querySelector(".bar").children.length,
}))
"""  # noqa: E501
SAID = """
[...document.querySelectorAll("#log > li")].map((item) => ({
  who: item.querySelector(".who").textContent, text: item.querySelector("p").textContent,
  busy: item.getAttribute("aria-busy"),
}))
"""
WAITING = "document.body.dataset.agent === 'listening'"
AGENT_ALOUD = "document.querySelector('#agent-speaking').dataset.on === 'true'"
YOU_ALOUD = "document.querySelector('#you-speaking').dataset.on === 'true'"


@dataclass
class Seen:
    """Observations of one call, in its order."""

    faults_before: dict[str, list[str]] = field(default_factory=dict)
    faults_in_call: dict[str, list[str]] = field(default_factory=dict)
    tab_stops: list[str] = field(default_factory=list)
    consent_at_first: bool = True
    voices: list[str] = field(default_factory=list)
    greeting_ms: float = 0.0
    reply_ms: float = 0.0
    broke_in_into: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    ms_after_network: float = 0.0
    turns: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    muted_words: str = ""
    focus_after: str = ""
    state_after: str = ""
    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    missed: list[str] = field(default_factory=list)
    """Steps that did not finish, and what they waited for."""


class Caller:
    """A simulated user of one page."""

    def __init__(self, tab: Tab, web: Web, microphone: Microphone, seen: Seen) -> None:
        self.tab = tab
        self._web = web
        self._microphone = microphone
        self._seen = seen
        self._began = time.monotonic()

    def note(self, what: str) -> None:
        """Prints a note for the log of a failed call."""
        print(f"{time.monotonic() - self._began:6.2f} s  {what}")

    async def unmute_and_say(self, recording: int) -> None:
        await self.mute()
        self._microphone.say(recording)
        await self.tab.click("#mute")
        self.note(f"unmuted to say {recording}")
        await self.tab.until(YOU_ALOUD)
        self.note("the caller is loud")

    async def mute(self) -> None:
        if await self.tab.evaluate("document.querySelector('#mute').ariaPressed") == "false":
            await self.tab.click("#mute")
        await self.tab.until("document.querySelector('#mute').ariaPressed === 'true'")
        self.note("muted")

    async def heard_ms(self) -> float:
        """Milliseconds of loud audio of the agent since the last call of this."""
        return float(
            await self.tab.evaluate("(ms => (testMeter.loud_ms = 0, ms))(testMeter.loud_ms)")
        )

    async def turns(self) -> list[dict[str, Any]]:
        return list(await self.tab.evaluate(TURNS))

    async def voice(self, wanted: str) -> None:
        await self.tab.until(f"document.querySelector('#voice').dataset.voice === '{wanted}'")
        self._seen.voices.append(
            await self.tab.evaluate("document.querySelector('#voice').innerText")
        )

    async def join(self) -> None:
        tab, seen = self.tab, self._seen
        seen.faults_before = await faults_everywhere(tab)
        seen.tab_stops = await tab_stops(tab)
        seen.consent_at_first = await tab.evaluate("document.querySelector('#consent').checked")
        await tab.click("#start")
        await tab.until("document.body.dataset.phase === 'call'")
        await tab.until(LEVEL_METER)
        await self.mute()
        seen.muted_words = await tab.evaluate("document.querySelector('#you-speaking').innerText")
        await self.voice("stock")
        await tab.until("testMeter.loud_ms > 300 && " + WAITING)
        seen.greeting_ms = await self.heard_ms()
        self.note("greeted")

    async def consent_and_talk(self) -> None:
        """Hears the first reply; interrupts a reply."""
        tab, seen = self.tab, self._seen
        await tab.click("#consent")
        await self.unmute_and_say(LONG)
        await self.voice("caller")
        await tab.until("testMeter.loud_ms > 500")
        seen.reply_ms = await self.heard_ms()
        self.note("the reply is heard")
        for told in range(TRIES):
            await tab.until(AGENT_ALOUD)
            await self.unmute_and_say(BREAKING_IN)
            await tab.until(f"document.querySelectorAll('.times').length > {told}")
            seen.broke_in_into = (await self.turns())[told]
            self.note(f"turn {told + 1}: {seen.broke_in_into['head']}")
            if seen.broke_in_into["interrupted"]:
                return

    async def lose_network(self) -> None:
        """Loses it while the agent replies; another turn then checks that the call goes on."""
        tab, seen, web = self.tab, self._seen, self._web
        await tab.until(AGENT_ALOUD)
        await self.mute()
        self.note("the network goes")
        web.freeze_network(True)
        try:
            await asyncio.gather(
                asyncio.sleep(NETWORK_GONE_S),
                tab.until("!document.querySelector('#notice').hidden"),
            )
        finally:
            web.freeze_network(False)
            self.note("the network is back")
        await tab.until("document.querySelector('#notice').hidden && " + WAITING)
        await self.heard_ms()
        await self.unmute_and_say(SHORT)
        await tab.until("testMeter.loud_ms > 500")
        seen.ms_after_network = await self.heard_ms()
        self.note("a reply after that is heard")

    async def withdraw_and_leave(self) -> None:
        """With the keyboard, in the middle of a reply."""
        tab, seen = self.tab, self._seen
        await tab.evaluate("document.querySelector('#consent').focus()")
        await tab.press(" ", 32, " ")
        await self.voice("stock")
        seen.faults_in_call = await faults_everywhere(tab)
        seen.turns, seen.said = await self.turns(), list(await tab.evaluate(SAID))
        seen.notices = list(await tab.evaluate("window.testNotices ?? []"))
        await tab.evaluate("document.querySelector('#hang-up').focus()")
        await tab.press("Enter", 13, "\r")
        await tab.until("document.body.dataset.phase === 'idle'")
        seen.focus_after = await tab.evaluate("document.activeElement.id")
        seen.state_after = await tab.evaluate("document.querySelector('#state').innerText")


async def whole_call(chromium: str, web: Web, microphone: Microphone) -> Seen:
    """A failed step is noted in `seen.missed`, and fails the tests of that step, not all."""
    seen = Seen()
    async with Browser(chromium, microphone.file) as browser:
        tab = await browser.tab()
        await tab.open(web.url)
        await tab.evaluate(NOTICES)
        caller = Caller(tab, web, microphone, seen)
        await caller.join()
        for step in (caller.consent_and_talk, caller.lose_network, caller.withdraw_and_leave):
            try:
                await step()
            except (PageError, TimeoutError) as error:
                seen.missed.append(f"{step.__name__}: {error!r}")
        seen.console, seen.hosts = tab.console, tab.hosts
    return seen
