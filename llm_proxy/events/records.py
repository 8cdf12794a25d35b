"""The frame of one record of the log: length, CRC-32, sequence, payload."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Beyond this a length is taken for damage; no event comes near it.
LARGEST_PAYLOAD = 16 * 1024 * 1024

_HEAD = struct.Struct("<IIQ")
# What the checksum covers besides the payload, or a flipped bit in the head would go unseen.
_COVERED = struct.Struct("<IQ")
HEAD_SIZE = _HEAD.size

_crc32, _pack_head, _pack_covered = zlib.crc32, _HEAD.pack, _COVERED.pack


class Record(NamedTuple):
    """One record, with the offset at which the next one begins."""

    sequence: int
    payload: bytes
    end: int


def encode(sequence: int, payload: bytes) -> bytes:
    """The record as it stands in the log."""
    length = len(payload)
    return _pack_head(length, _crc32(payload, _crc32(_pack_covered(length, sequence))), sequence) + payload


def claimed_size(data: bytes) -> int:
    """How many bytes the record at the beginning says it has, 0 when no record begins like that."""
    if len(data) < HEAD_SIZE:
        return 0
    length = _HEAD.unpack_from(data)[0]
    return HEAD_SIZE + length if 0 < length <= LARGEST_PAYLOAD else 0


def decode(data: bytes, previous: int = 0, offset: int = 0) -> Iterator[Record]:
    """The sound records from the beginning on, up to the first that is damaged, cut short or out of sequence.

    Args:
        previous: the sequence of the record before them, 0 when there is none.
        offset: where the data begin.
    """
    start, size = 0, len(data)
    while start + HEAD_SIZE <= size:
        length, crc, sequence = _HEAD.unpack_from(data, start)
        end = start + HEAD_SIZE + length
        if not 0 < length <= LARGEST_PAYLOAD or end > size or (previous and sequence != previous + 1):
            return
        payload = data[start + HEAD_SIZE : end]
        if _crc32(payload, _crc32(_pack_covered(length, sequence))) != crc:
            return
        yield Record(sequence, payload, offset + end)
        start, previous = end, sequence
