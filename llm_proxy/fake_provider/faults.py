"""What goes wrong at the fake provider, on demand."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_proxy.fake_provider.refusals import Refused

Body = bytes | Iterator[bytes]

LARGEST_FAULT = 10**6


@dataclass(frozen=True)
class Faults:
    """What goes wrong; a request overrides a field by the header `X-Fake-` with the field's name, such as `X-Fake-Bad-JSON: 1`.

    Attributes:
        delay: seconds of silence before the head.
        status: answer with this status and an error body.
        cut: close the connection after so many chunks, never with a clean end; 0 closes it before the head.
        drip: seconds between the chunks of a stream.
        bad_json: cut the JSON of the body, or of each event, in half.
        stall: send so many chunks, then nothing until the client leaves; 0 sends the head alone.
        words: the length of the answer, 0 for as long as it comes.
        gzip: compress the reply when the client accepts gzip.
        retry_after: the `Retry-After` of errors.
    """

    delay: float = 0
    status: int = 0
    cut: int | None = None
    drip: float = 0
    bad_json: bool = False
    stall: int | None = None
    words: int = 0
    gzip: bool = False
    retry_after: str = ""


NO_FAULTS = Faults()

FAULT_KINDS: Mapping[str, type] = {"delay": float, "drip": float, "retry_after": str}


def read_faults(headers: Mapping[str, str], defaults: Faults) -> Faults:
    """The faults of one request: its `X-Fake-*` headers over the defaults."""
    changes: dict[str, Any] = {}
    for name, text in headers.items():
        if name[:7].lower() == "x-fake-":
            changes.update([_fault(name[7:].lower().replace("-", "_"), text)])
    return replace(defaults, **changes) if changes else defaults


def _fault(key: str, text: str) -> tuple[str, Any]:
    try:
        value = FAULT_KINDS.get(key, int)(text)
    except ValueError:
        value = -1
    if key not in Faults.__dataclass_fields__ or not (isinstance(value, str) or 0 <= value <= LARGEST_FAULT):
        raise Refused(400, f"The fake provider has no fault {key}, or not with such a value.")
    return key, value


def compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks under gzip, each readable as soon as it has come."""
    compressor = zlib.compressobj(wbits=31)
    for chunk in chunks:
        yield compressor.compress(chunk) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


def disturbed(body: Body, faults: Faults, asked: Mapping[str, str], headers: dict[str, str]) -> Body:
    """The body as the faults leave it.

    Args:
        asked: the headers of the request.
        headers: those of the reply, which are told of a content coding.
    """
    if faults.bad_json:
        body = body[: len(body) // 2] if isinstance(body, bytes) else (frame[: len(frame) // 2] + b"\n\n" for frame in body)
    if faults.gzip and "gzip" in asked.get("Accept-Encoding", ""):
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        body = b"".join(compressed([body])) if isinstance(body, bytes) else compressed(body)
    return body
