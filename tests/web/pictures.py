"""Photographs the page in a call, for the README: `python -m tests.web.pictures [folder]`.

Starts `make web`, calls it from Chromium with recorded speech, and leaves web-desktop.png (light)
and web-phone.png (dark).
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from scripts.setup_tools import ROOT
from tests.web.accessibility import show_as
from tests.web.browser import Browser, Tab, find_chromium
from tests.web.calling import BREAKING_IN, LEVEL_METER, LONG, SHORT, WAITING, Caller, Seen
from tests.web.making_web import Microphone, Web

SPEAKING = "testMeter.loud_ms > 600"
"""The agent is audible; replies may be as short as a second."""


async def photograph(tab: Tab, file: Path) -> None:
    """96 colours are enough for a page, and need a third of the bytes."""
    answer = await tab.call("Page.captureScreenshot", format="png")
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
    picture.quantize(96, dither=Image.Dither.NONE).save(file, optimize=True)


async def call(chromium: str, web: Web, microphone: Microphone, out: Path) -> None:
    async with Browser(chromium, microphone.file) as browser:
        tab = await browser.tab()
        caller = Caller(tab, web, microphone, Seen())
        await show_as(tab, width=1120, height=780, dark=False)
        await tab.open(web.url)
        await tab.click("#start")
        await tab.until(LEVEL_METER)
        await tab.until("testMeter.loud_ms > 500 && " + WAITING)
        await tab.click("#consent")
        await caller.unmute_and_say(LONG)
        await tab.until(f"document.querySelectorAll('.times').length > 0 && {WAITING}")
        await caller.unmute_and_say(BREAKING_IN)
        await caller.heard_ms()
        await tab.until(SPEAKING)
        await photograph(tab, out / "web-desktop.png")
        await show_as(tab, width=390, height=844, dark=True)
        await tab.until("document.body.clientWidth === 390 && " + WAITING)
        await caller.unmute_and_say(SHORT)
        await caller.heard_ms()
        await tab.until(SPEAKING)
        await photograph(tab, out / "web-phone.png")


def main() -> int:
    chromium = find_chromium()
    if chromium is None:
        print("There is no Chromium here: apt-get install chromium.", file=sys.stderr)
        return 1
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with tempfile.TemporaryDirectory() as logs, Web(Path(logs)) as web:
        asyncio.run(call(chromium, web, Microphone(Path(logs) / "microphone.wav"), out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
