"""Identifiers: UUIDv7 (RFC 9562), which sort by the time they were made."""

import re
import uuid

import uuid_utils.compat

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def new_uuid() -> uuid.UUID:
    """A fresh UUIDv7."""
    return uuid_utils.compat.uuid7()


def new_id() -> str:
    """A fresh UUIDv7 in its usual text form."""
    return str(uuid_utils.uuid7())


def valid_request_id(text: str | None) -> str | None:
    """The text, when a caller may choose it as a request or correlation id, else None."""
    return text if text and _REQUEST_ID.fullmatch(text) else None


def made_at_ms(id: uuid.UUID) -> int:
    """When a UUIDv7 was made, in milliseconds since the epoch."""
    return id.int >> 80
