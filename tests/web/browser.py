"""Headless Chromium over its DevTools protocol, as far as these tests need it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
]
STEP_S = 0.05


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class PageError(Exception):
    """A test's script failed in the page, or a condition was not met in time."""


class Tab:
    """One page. `requests`, `console` and `failures` hold what it did since it was opened."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        self.console: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **parameters)

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited when it is a promise. Raises PageError."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise PageError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    async def until(self, condition: str, limit_s: float = 120.0) -> Any:
        """Waits until an expression is true, and returns it. Raises PageError after `limit_s`."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                if value := await self.evaluate(condition):
                    return value
            except PageError:
                if time.monotonic() + STEP_S > end:
                    raise
            await asyncio.sleep(STEP_S)
        shown = await self.evaluate("document.body.innerText")
        raise PageError(f"not within {limit_s:.0f} s: {condition}\nThe page:\n{shown}")

    async def until_here(
        self, condition: Callable[[], bool], what: str, limit_s: float = 120.0
    ) -> None:
        """Waits for a condition in the test's process. Raises PageError after `limit_s`."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                raise PageError(f"not within {limit_s:.0f} s: {what}")
            await asyncio.sleep(STEP_S)

    async def click(self, selector: str) -> None:
        """With the mouse, as a person does: browsers allow audio only after that."""
        await self.evaluate(
            f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})"
        )
        x, y = await self.evaluate(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def heard(self, method: str, parameters: dict[str, Any]) -> None:
        """Handles an event of the browser."""
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Network.webSocketCreated":
                self.requests.append(parameters["url"])
            case "Runtime.consoleAPICalled":
                words = " ".join(str(a.get("value", a)) for a in parameters["args"])
                self.console.append(f"{parameters['type']}: {words}")
            case "Runtime.exceptionThrown":
                self.console.append(f"error: {json.dumps(parameters['exceptionDetails'])[:1000]}")
            case "Log.entryAdded":
                entry = parameters["entry"]
                self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")

    @property
    def hosts(self) -> set[str]:
        """Every host and port of a request; `data` and `blob` URLs do not count."""
        urls = map(urlsplit, self.requests)
        return {url.netloc for url in urls if url.scheme not in ("data", "blob")}


class Browser:
    """`async with Browser(path, microphone) as browser:`; `microphone` is a WAV file.

    The file is played once, from its beginning, each time the page opens the microphone.
    """

    def __init__(self, path: str, microphone: Path) -> None:
        self._path = path
        self._flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
        if os.geteuid() == 0:
            self._flags.append("--no-sandbox")
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}
        self._asked = 0

    async def __aenter__(self) -> Browser:
        self._start()
        try:
            self._http = aiohttp.ClientSession()
            self._socket = await self._http.ws_connect(await self._address(), max_msg_size=0)
        except BaseException:
            self._end()
            raise
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await self._http.close()
        await asyncio.to_thread(self._end)

    async def tab(self, microphone: str = "granted") -> Tab:
        """A new page in its own browser context; `microphone` is "granted" or "denied" there."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        await self.call(
            "Browser.setPermission",
            permission={"name": "microphone"}, setting=microphone, browserContextId=context,
        )  # fmt: skip
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        tab = Tab(self, attached["sessionId"])
        self._tabs[attached["sessionId"]] = tab
        return tab

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        message = {"id": self._asked, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(answer, 60)

    def _start(self) -> None:
        self._data = Path(tempfile.mkdtemp(prefix="csm-browser-"))
        self._process = subprocess.Popen(
            [self._path, *self._flags, f"--user-data-dir={self._data}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if (waiting := self._answers.pop(found.get("id"), None)) is not None:
                if waiting.done():
                    continue
                if "error" in found:
                    waiting.set_exception(PageError(found["error"]["message"]))
                else:
                    waiting.set_result(found["result"])
            elif (tab := self._tabs.get(found.get("sessionId", ""))) is not None:
                tab.heard(found["method"], found["params"])

    async def _address(self) -> str:
        """The address that Chromium writes into its folder. Raises PageError when it does not."""
        file, end = self._data / "DevToolsActivePort", time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            lines = file.read_text().split() if file.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(STEP_S)
        raise PageError(f"chromium does not start (exit code {self._process.poll()})")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._data, ignore_errors=True)
