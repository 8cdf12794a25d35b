"""Pictures are counted by OpenAI's tiles where their size is known, and no bytes of one can do harm."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.usage.images import BASE, image_tokens, size_of


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x06\0\0\0"


def jpeg(width: int, height: int, notes: int = 0) -> bytes:
    app = b"\xff\xe1" + struct.pack(">H", notes + 2) + bytes(notes)
    return b"\xff\xd8" + app + b"\xff\xc4\x00\x04\0\0" + b"\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width) + bytes(10)


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(png(1024, 768), (1024, 768), id="png"),
        pytest.param(b"GIF89a" + struct.pack("<HH", 320, 200), (320, 200), id="gif"),
        pytest.param(jpeg(640, 480), (640, 480), id="jpeg"),
        pytest.param(jpeg(640, 480, notes=60_000), (640, 480), id="jpeg-after-long-notes"),
        pytest.param(
            webp(b"VP8X", bytes(4) + (799).to_bytes(3, "little") + (599).to_bytes(3, "little")), (800, 600), id="webp-x"
        ),
        pytest.param(webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 300, 400)), (300, 400), id="webp-lossy"),
        pytest.param(webp(b"VP8L", b"\x2f" + (99 | 49 << 14).to_bytes(4, "little")), (100, 50), id="webp-lossless"),
        pytest.param(png(0, 10), None, id="no-width"),
        pytest.param(png(9, 9)[:18], None, id="cut-short"),
        pytest.param(b"BM" + bytes(40), None, id="another-format"),
    ],
)
def test_the_size_of_a_picture_is_read_from_its_bytes(data: bytes, size: tuple[int, int] | None) -> None:
    assert size_of(url(data)) == size


# The figures are OpenAI's own examples, but for the last ones.
@pytest.mark.parametrize(
    ("picture", "detail", "tokens"),
    [
        pytest.param(url(png(1024, 1024)), "high", 765, id="1024-square"),
        pytest.param(url(png(2048, 4096)), "high", 1105, id="tall"),
        pytest.param(url(png(4096, 8192)), "low", 85, id="low"),
        pytest.param(url(png(1024, 1024)), "auto", 765, id="auto"),
        pytest.param(url(png(100, 100)), "None", 255, id="one-tile"),
        pytest.param("https://example.test/a.png", "high", BASE, id="not-fetched"),
        pytest.param("data:image/png;base64,%%%%", "high", BASE, id="no-base64"),
    ],
)
def test_pictures_are_counted_by_tiles(picture: str, detail: str, tokens: int) -> None:
    assert image_tokens(picture, detail) == tokens


@given(
    st.sampled_from([png(9, 9), jpeg(9, 9, 3), webp(b"VP8X", bytes(10)), b"GIF89a"]), st.binary(max_size=40), st.integers(0, 60)
)
def test_no_bytes_make_it_fail(whole: bytes, more: bytes, at: int) -> None:
    assert image_tokens(url(whole[:at] + more), "high") >= BASE
