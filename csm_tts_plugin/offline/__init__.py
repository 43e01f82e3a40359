"""Ears and a mind for calls without keys: Whisper base and SmolLM2, once per worker.

One child process of the worker holds both models (`python -m csm_tts_plugin.offline`, kept alive by
`process.OfflineProcess`); jobs speak to it over loopback through `stt.OfflineSTT` and
`llm.offline_llm`, so that a call costs neither a second of loading nor half a gigabyte.
"""
