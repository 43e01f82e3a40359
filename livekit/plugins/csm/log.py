import logging

logger = logging.getLogger("csm_tts_plugin")
