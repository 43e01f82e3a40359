"""CSM speech where LiveKit looks for plugins; the code is in `csm_tts_plugin`."""

from livekit.agents import Plugin

from csm_tts_plugin.tts import TTS, ChunkedStream, SynthesizeStream
from csm_tts_plugin.voices.voice import Consent, Voice

from .log import logger
from .version import __version__

__all__ = ["TTS", "ChunkedStream", "Consent", "SynthesizeStream", "Voice", "__version__"]


class CSMPlugin(Plugin):
    """Weights are not among the files to download: the engine fetches them when it starts."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__, logger)


Plugin.register_plugin(CSMPlugin())
