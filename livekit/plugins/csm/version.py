from csm_tts_plugin.version import __version__

__all__ = ["__version__"]
