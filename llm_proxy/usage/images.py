"""How many tokens a picture in a prompt is, by OpenAI's rule of tiles."""

import base64
import binascii
import re
import struct

BASE = 85
TILE = 170

_DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,")
# The size stands in the first bytes of every format but JPEG, where a camera's notes may come before it.
_LOOKED_AT = 128 * 1024
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_tokens(url: str, detail: str) -> int:
    """The tokens of a picture: 85 where its size is unknown or no detail is wanted, else 170 more for each tile."""
    size = size_of(url) if detail != "low" else None
    if size is None:
        return BASE
    width, height = _scaled(*size)
    return BASE + TILE * -(-width // 512) * -(-height // 512)


def _scaled(width: int, height: int) -> tuple[int, int]:
    """The size a picture is shrunk to: into a square of 2048, then until its shorter side is 768."""
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def size_of(url: str) -> tuple[int, int] | None:
    """Width and height of a picture that its URL contains; None of one that would have to be fetched."""
    match = _DATA_URL.match(url)
    if not match:
        return None
    text = url[match.end() : match.end() + _LOOKED_AT]
    try:
        size = _size(base64.b64decode(text[: len(text) // 4 * 4]))
    except (binascii.Error, ValueError, struct.error):
        return None
    return size if size and min(size) > 0 else None


def _size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _pair(">II", data, 16)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _pair("<HH", data, 6)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _pair(layout: str, data: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, at)
    return first, second


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at : at + 1] == b"\xff":
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker in _JPEG_SIZES:
            height, width = _pair(">HH", data, at + 5)
            return width, height
        at += 2 + length
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8 ":
        width, height = _pair("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None
