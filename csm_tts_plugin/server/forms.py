"""Reads parts of `multipart/form-data` up to a limit."""

from __future__ import annotations

from aiohttp import BodyPartReader

from ..errors import AudioError


async def read_part(part: BodyPartReader, most: int) -> bytes:
    """The whole part. Raises AudioError if it has more than `most` bytes."""
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > most:
            raise AudioError(f"A part of the form has more than {most} bytes; send a smaller one.")
    return bytes(data)
