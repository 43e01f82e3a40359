"""Turns the caller's words and consent into the voice of the replies. Independent of LiveKit."""
