"""What an act tells the page after it: sealed in a cookie, so that it survives one redirect in any instance."""

import base64
import binascii
import hashlib
import os
from dataclasses import asdict, dataclass

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
LONGEST_TEXT = 1000


@dataclass(frozen=True)
class News:
    """What has happened.

    Attributes:
        text: for the person who did it.
        is_bad: whether it did not go well.
        secret: a token that was made, to be shown this one time.
    """

    text: str
    is_bad: bool = False
    secret: str = ""


def _cipher(session_id: str) -> AESGCM:
    return AESGCM(hashlib.sha256(b"news" + session_id.encode(errors="surrogateescape")).digest())


def seal(news: News, session_id: str) -> str:
    """The news as the value of a cookie that means nothing in another session."""
    nonce, said = os.urandom(NONCE_BYTES), orjson.dumps({**asdict(news), "text": news.text[:LONGEST_TEXT]})
    return base64.urlsafe_b64encode(nonce + _cipher(session_id).encrypt(nonce, said, None)).decode()


def unseal(value: str, session_id: str) -> News | None:
    """The news in a cookie's value; None when it is none of this session's."""
    try:
        raw = base64.urlsafe_b64decode(value)
        return News(**orjson.loads(_cipher(session_id).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)))
    except (ValueError, binascii.Error, InvalidTag):
        return None
