"""The child process that holds Whisper and SmolLM2 for all calls of a worker.

`POST /transcribe` takes 16-bit little-endian mono PCM at 16 kHz and answers `{"text": ...}`; the
LLM listens on a port of its own, in OpenAI's protocol. When both are loaded, one line of JSON on
standard output names the ports. It ends when its standard input does: with the worker, however that
died.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..audio.resample import from_pcm16
from ..errors import AudioError, CsmError
from . import models

if TYPE_CHECKING:
    from .whisper import Transcriber

HOST = "127.0.0.1"
LONGEST_S = 60
_BYTES_PER_SECOND = 2 * 16_000
_LLM_NAME = "smollm2"
_LLM_TOKENS = 40
_LLM_CONTEXT = 1024


def load_whisper() -> Transcriber:
    from .whisper import Transcriber

    transcriber = Transcriber(models.whisper_folder(), threads=min(2, os.cpu_count() or 1))
    transcriber.warm_up()
    return transcriber


def start_llm(port: int) -> Any:
    """An OpenAI-compatible server on threads of its own. Raises CsmError.

    One thread for the model: beside Whisper and the voice a second one makes it slower, because its
    threads wait for each other by spinning.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(models.smollm2_file())
    params.model_alias = {_LLM_NAME}
    params.hostnames = [HOST]
    params.port = port
    params.n_ctx = _LLM_CONTEXT
    params.n_predict = _LLM_TOKENS
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 2
    params.cache_ram_mib = 0
    params.verbosity = 1
    return xllamacpp.Server(params)


def ears(transcriber: Transcriber) -> web.Application:
    """One transcription at a time, off the event loop; others wait their turn."""
    executor = ThreadPoolExecutor(1, "whisper")

    async def transcribe(request: web.Request) -> web.Response:
        data = await request.read()
        try:
            samples = from_pcm16(data)
        except AudioError as error:
            raise web.HTTPBadRequest(text=error.message) from None
        language = request.query.get("language", "en")
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(executor, transcriber.transcribe, samples, language)
        return web.json_response({"text": text})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=LONGEST_S * _BYTES_PER_SECOND)
    app.add_routes([web.post("/transcribe", transcribe), web.get("/health", health)])
    return app


async def serve(stt_port: int | None, llm_port: int | None) -> None:
    """A port of 0 is any free one, None leaves that model out."""
    loop = asyncio.get_running_loop()
    ports: dict[str, int] = {}
    llm = None
    if llm_port is not None:
        llm = await loop.run_in_executor(None, start_llm, llm_port)
        ports["llm"] = int(llm.listening_address.rsplit(":", 1)[1])
    if stt_port is not None:
        runner = web.AppRunner(
            ears(await loop.run_in_executor(None, load_whisper)), access_log=None
        )
        await runner.setup()
        await web.TCPSite(runner, HOST, stt_port).start()
        ports["stt"] = runner.addresses[0][1]
    print(json.dumps(ports), flush=True)
    ended = asyncio.Event()
    threading.Thread(target=_until_parent_ends, args=(loop, ended), daemon=True).start()
    await ended.wait()
    del llm


def _until_parent_ends(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    sys.stdin.buffer.read()
    loop.call_soon_threadsafe(ended.set)


def main() -> int:
    parser = argparse.ArgumentParser(description="Whisper and SmolLM2 for the calls of a worker")
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
