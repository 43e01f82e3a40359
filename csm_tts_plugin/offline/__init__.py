"""Offline speech-to-text and an offline LLM, without keys: Whisper base and SmolLM2.

One child process per worker holds both models (`python -m csm_tts_plugin.offline`, supervised by
`process.OfflineProcess`). Jobs use it over loopback through `stt.OfflineSTT` and `llm.offline_llm`,
so that a call loads no model and needs no 0.5 GB of its own.
"""
