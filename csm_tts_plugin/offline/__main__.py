"""The child process that holds Whisper and SmolLM2 for all calls of a worker.

`POST /transcribe` takes 16-bit little-endian mono PCM at 16 kHz and answers `{"text": ...}`. The
LLM listens on its own port and uses OpenAI's protocol. After both are loaded, one line of JSON on
stdout gives the ports. The process ends when its stdin closes, and therefore with its worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..audio.resample import from_pcm16
from ..config import AgentConfig
from ..errors import AudioError, CsmError
from . import models, prompt

if TYPE_CHECKING:
    from .whisper import Transcriber

HOST = "127.0.0.1"
LONGEST_S = 61
"""Longest turn: 60 s and the rest of a frame."""
_BYTES_PER_SECOND = 2 * 16_000
_LLM_NAME = "smollm2"
_LLM_CONTEXT = 1024


def load_whisper() -> Transcriber:
    from .whisper import Transcriber

    transcriber = Transcriber(models.whisper_folder(), threads=min(2, os.cpu_count() or 1))
    transcriber.warm_up()
    return transcriber


def start_llm(port: int) -> Any:
    """Starts an OpenAI-compatible server with its own threads. Raises CsmError.

    The model uses one thread. Next to Whisper and the engine a second one makes it slower, because
    its threads wait for each other by spinning.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(models.smollm2_file())
    params.model_alias = {_LLM_NAME}
    params.hostnames = [HOST]
    params.port = port
    params.n_ctx = _LLM_CONTEXT
    params.n_predict = prompt.MAX_TOKENS
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 2
    params.cache_ram_mib = 0
    params.verbosity = 1
    return xllamacpp.Server(params)


def read_ahead(port: int, instructions: str) -> None:
    """Prefills the instructions, so that the first caller does not wait for it."""
    asked = [*prompt.opening(instructions), ("user", "Hello.")]
    messages = [{"role": role, "content": text} for role, text in asked]
    body = {"messages": messages, "max_tokens": 1, **prompt.SAMPLING}
    request = urllib.request.Request(
        f"http://{HOST}:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60):
            pass
    except OSError as error:
        print(f"the LLM did not prefill its instructions ({error})", file=sys.stderr)


def transcription_routes(transcriber: Transcriber) -> web.Application:
    """Runs one transcription at a time, outside of the event loop."""
    executor = ThreadPoolExecutor(1, "whisper")

    async def transcribe(request: web.Request) -> web.Response:
        data = await request.read()
        try:
            samples = from_pcm16(data)
        except AudioError as error:
            raise web.HTTPBadRequest(text=error.message) from None
        language = request.query.get("language", "en")
        loop = asyncio.get_running_loop()

        def run() -> str:
            """Returns "" if the client has disconnected, because the caller went on speaking."""
            wanted = request.transport is not None and not request.transport.is_closing()
            return transcriber.transcribe(samples, language) if wanted else ""

        return web.json_response({"text": await loop.run_in_executor(executor, run)})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=LONGEST_S * _BYTES_PER_SECOND)
    app.add_routes([web.post("/transcribe", transcribe), web.get("/health", health)])
    return app


async def serve(stt_port: int | None, llm_port: int | None) -> None:
    """Port 0: any free one; None: do not load this model."""
    loop = asyncio.get_running_loop()
    ports: dict[str, int] = {}
    llm = None
    if llm_port is not None:
        llm = await loop.run_in_executor(None, start_llm, llm_port)
        ports["llm"] = int(llm.listening_address.rsplit(":", 1)[1])
    if stt_port is not None:
        runner = web.AppRunner(
            transcription_routes(await loop.run_in_executor(None, load_whisper)), access_log=None
        )
        await runner.setup()
        await web.TCPSite(runner, HOST, stt_port).start()
        ports["stt"] = runner.addresses[0][1]
    print(json.dumps(ports), flush=True)
    if llm is not None:
        loop.run_in_executor(None, read_ahead, ports["llm"], AgentConfig.from_env().instructions)
    ended = asyncio.Event()
    threading.Thread(target=_until_parent_ends, args=(loop, ended), daemon=True).start()
    await ended.wait()
    # The LLM's server cannot be destroyed while it answers: it would wait forever, and this
    # process would outlive its worker. There is nothing to save.
    os._exit(0)


def _until_parent_ends(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    sys.stdin.buffer.read()
    loop.call_soon_threadsafe(ended.set)


def main() -> int:
    parser = argparse.ArgumentParser(description="offline models for the calls of a worker")
    parser.add_argument("--stt-port", type=int)
    parser.add_argument("--llm-port", type=int)
    args = parser.parse_args()
    try:
        asyncio.run(serve(args.stt_port, args.llm_port))
    except CsmError as error:
        print(json.dumps({"error": error.message}), flush=True)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
