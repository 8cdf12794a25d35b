"""Entries as bytes, for a store outside of the process."""

import struct
import zlib

import orjson

from llm_proxy.cache import Entry, Part, Terms

# To be raised with every change of what `Entry` has: processes of two versions may share one store.
VERSION = 1

# The version, the CRC-32 of all that follows it, the length of the head.
_FRAME = struct.Struct(">BII")


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
                (terms.vary, terms.selecting, terms.variant, terms.part),
            )
        )
    except TypeError:
        return None
    return _FRAME.pack(VERSION, zlib.crc32(entry.body, zlib.crc32(head)), len(head)) + head + entry.body


def unpack(data: bytes) -> Entry | None:
    """The entry that was packed; None when this is not one, or one of another version."""
    if len(data) < _FRAME.size or data[0] != VERSION:
        return None
    _, checksum, length = _FRAME.unpack_from(data)
    if zlib.crc32(memoryview(data)[_FRAME.size :]) != checksum:
        return None
    end = _FRAME.size + length
    what, headers, (response_time, initial_age), seconds, rules, selected = orjson.loads(data[_FRAME.size : end])
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
