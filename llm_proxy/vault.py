"""Secrets at rest: provider keys encrypted, tokens hashed."""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llm_proxy.errors import LLMProxyError
from llm_proxy.secret import Secret

FAMILY = "enc:"
PREFIX = f"{FAMILY}v2:"
NONCE_BYTES = 12
# How what is stored begins: with the id of its key, which tells nothing of the key.
_KEYED = re.compile(rf"(?:{PREFIX}|hmac:)([0-9a-f]{{8}}):")


class Undecipherable(LLMProxyError):
    """A stored secret cannot be decrypted with the keys at hand."""


class Place(NamedTuple):
    """Where a ciphertext belongs; it is authenticated, so that none can be moved elsewhere."""

    table: str
    row: str
    column: str


class Key(NamedTuple):
    """One encryption key with what is derived from it."""

    id: str
    cipher: AESGCM
    token_key: bytes


def _derive(secret: Secret) -> Key:
    raw = base64.b64decode(secret.reveal())
    id = hashlib.sha256(b"llm-proxy key id" + raw).hexdigest()[:8]
    return Key(id, AESGCM(raw), hmac.digest(raw, b"llm-proxy token hash", "sha256"))


class Vault:
    """Seals with the newest key, opens with any.

    Args:
        keys: base64 32-byte keys, newest first; with none, secrets are stored plain and tokens hashed without a key.
    """

    def __init__(self, keys: Sequence[Secret]) -> None:
        self._keys = [_derive(key) for key in keys]
        self._by_id = {key.id: key for key in self._keys}

    @property
    def key_ids(self) -> list[str]:
        """What tells the keys apart, newest first; it may be shown."""
        return [key.id for key in self._keys]

    def seal(self, secret: Secret, place: Place) -> str:
        """What to store for a secret: AES-256-GCM under a fresh nonce, bound to its place."""
        if not self._keys:
            return secret.reveal()
        key, nonce = self._keys[0], os.urandom(NONCE_BYTES)
        sealed = key.cipher.encrypt(nonce, secret.reveal().encode(), _associated(place, key.id))
        return f"{PREFIX}{key.id}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, stored: str, place: Place) -> Secret:
        """The secret of a stored value.

        Raises:
            Undecipherable: its key is missing, or it was damaged or moved.
        """
        if not stored.startswith(PREFIX):
            return Secret(self._plain(stored))
        key_id, _, text = stored.removeprefix(PREFIX).partition(":")
        key = self._by_id.get(key_id)
        if key is None:
            raise Undecipherable(f"it is encrypted with the key {key_id}, which ENCRYPTION_KEY does not hold")
        try:
            raw = base64.b64decode(text, validate=True)
            return Secret(key.cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _associated(place, key_id)).decode())
        except (ValueError, InvalidTag):
            raise Undecipherable("it was damaged, or moved here from another row") from None

    def _plain(self, stored: str) -> str:
        """A value stored without encryption; what is left of a damaged ciphertext must not pass for one, and be sent upstream."""
        if stored.startswith(FAMILY) or any(f":{key.id}:" in stored for key in self._keys):
            raise Undecipherable("it was damaged, or another version of this program wrote it")
        return stored

    def is_current(self, stored: str) -> bool:
        """Whether a stored value needs no new encryption."""
        return not self._keys or stored.startswith(f"{PREFIX}{self._keys[0].id}:")

    def token_hashes(self, token: str) -> list[str]:
        """Every form under which a token may be stored, the one for new rows first."""
        raw = token.encode()
        keyed = [f"hmac:{key.id}:{hmac.digest(key.token_key, raw, 'sha256').hex()}" for key in self._keys]
        return [*keyed, f"sha256:{hashlib.sha256(raw).hexdigest()}"]


def key_id_of(stored: str) -> str | None:
    """The id of the key that a ciphertext or a hash was made with, None for what was made without."""
    found = _KEYED.match(stored)
    return found[1] if found else None


def _associated(place: Place, key_id: str) -> bytes:
    return "\0".join((*place, key_id)).encode()
