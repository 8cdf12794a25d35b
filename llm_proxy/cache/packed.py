"""Entries as bytes, for a store outside of the process."""

import struct
import zlib

import orjson

from llm_proxy.cache import Entry, Part, Terms

# To be raised with every change of what `Entry` has: processes of two versions may share one store.
VERSION = 1

# The version, the length of the head; then the CRC-32 of these, the head, the body.
_START = struct.Struct(">BI")
_CHECKSUM = struct.Struct(">I")
_FRAME = _START.size + _CHECKSUM.size


def pack(entry: Entry) -> bytes | None:
    """An entry as bytes; None when it holds what JSON cannot say, such as a position beyond 64 bits."""
    terms = entry.terms
    try:
        head = orjson.dumps(
            (
                (entry.project, entry.method, entry.path, entry.status, entry.reason),
                [(name.decode("latin-1"), value.decode("latin-1")) for name, value in entry.headers],
                (entry.response_time, entry.initial_age),
                (terms.lifetime, terms.stale_while_revalidate, terms.stale_if_error),
                (terms.no_cache, terms.must_revalidate),
                (terms.vary, terms.selecting, terms.variant, terms.part and tuple(terms.part)),
            )
        )
    except TypeError:
        return None
    start = _START.pack(VERSION, len(head))
    return b"".join((start, _CHECKSUM.pack(_checksum(start, head, entry.body)), head, entry.body))


def unpack(data: bytes) -> Entry | None:
    """The entry that was packed; None when this is not one, or one of another version."""
    if len(data) < _FRAME or data[0] != VERSION:
        return None
    [checksum] = _CHECKSUM.unpack_from(data, _START.size)
    if _checksum(data[: _START.size], memoryview(data)[_FRAME:]) != checksum:
        return None
    end = _FRAME + _START.unpack_from(data)[1]
    what, headers, (response_time, initial_age), seconds, rules, selected = orjson.loads(data[_FRAME:end])
    project, method, path, status, reason = what
    vary, selecting, variant, part = selected
    selected_by = tuple(vary), tuple(selecting), variant, part and Part(*part)
    return Entry(
        project=project,
        method=method,
        path=path,
        status=status,
        reason=reason,
        headers=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
        body=data[end:],
        response_time=response_time,
        initial_age=initial_age,
        terms=Terms(*(*seconds, *rules, *selected_by)),
    )


def _checksum(*parts: bytes | memoryview) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum
