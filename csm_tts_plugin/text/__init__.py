"""Cleans streamed text and splits it into sentences to speak. Uses only the standard library."""
