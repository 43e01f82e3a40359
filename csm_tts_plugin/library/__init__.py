"""The API of csm-streaming-tf on this engine."""
