"""What the proxy learns of a reply while its bytes pass by untouched."""

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator

import orjson

from llm_proxy.sse import EventSplitter
from llm_proxy.usage import NO_USAGE, StreamUsage, Usage, read_model, read_usage

KEEP = 256 * 1024
TAIL = 16 * 1024
# Of a stream, so much is collected before it is looked at: many events at once cost little more than one.
BATCH = 4096

# Inspection of a coded reply ends here: what is larger is no reply that usage could be read from, or a bomb.
LARGEST_INFLATED = 8 * 1024 * 1024
# A line costs as much to split as some hundred bytes to inflate; a provider's stream of 8 MiB has fewer than this.
MOST_INFLATED_LINES = 250_000
# A member costs a new decoder and yields perhaps nothing, so that the bounds on output would never be reached.
MOST_MEMBERS = 1000

_PIECE = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS
_UNCODED = frozenset({"", "identity"})
_CODED = frozenset({"gzip", "x-gzip", "deflate"})

_KEY = re.compile(rb'"(?:usage|model)"\s*:')
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){1,256}")')
# Each try costs a parse of the tail.
_MOST_TRIES = 8


class Inflater:
    """Decodes gzip or deflate as it comes in, within bounds.

    Args:
        coding: `gzip`, `x-gzip` or `deflate`, the last with the zlib wrapper or without.
        limit: how many bytes are inflated in all.

    Attributes:
        stopped: whether it gave up, at a bound or at the first error; nothing comes out any more.
    """

    __slots__ = ("_gzip", "_left", "_members_left", "_stream", "stopped")

    def __init__(self, coding: str, limit: int) -> None:
        self.stopped = False
        self._gzip = coding != "deflate"
        self._members_left = MOST_MEMBERS if self._gzip else 1
        self._left = limit
        self._stream: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The bytes that the chunk becomes, in pieces."""
        if self.stopped:
            return
        try:
            yield from self._inflate(chunk)
        except zlib.error:
            self.stopped = True

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        filled = False
        # A piece that fills its room may have left output inside zlib that waits for no further input.
        while data or filled:
            stream = self._stream = self._stream or self._next_member(data[0])
            room = min(_PIECE, self._left)
            if self._members_left < 0 or room == 0:
                self.stopped = True
                return
            piece = stream.decompress(data, room)
            self._left -= len(piece)
            filled = len(piece) == room
            data = stream.unconsumed_tail
            if stream.eof:
                data, filled, self._stream = stream.unused_data, False, None
            if piece:
                yield piece

    def _next_member(self, first: int) -> "zlib._Decompress":
        """A decoder for what begins with this byte: after a zlib header's 8 raw deflate would need stray padding bits."""
        self._members_left -= 1
        if self._gzip:
            return zlib.decompressobj(_GZIP)
        return zlib.decompressobj(_ZLIB if first & 0x0F == 8 else _RAW)


def _form(content_type: str, content_encoding: str) -> tuple[str, bool, bool, bool]:
    """A reply's coding, with whether it is a stream of events, JSON, text of any kind."""
    kind = content_type.partition(";")[0].strip().lower()
    is_event_stream, is_json = kind == "text/event-stream", kind == "application/json" or kind.endswith("+json")
    return content_encoding.strip().lower(), is_event_stream, is_json, is_event_stream or is_json or kind.startswith("text/")


# The same few come with most replies.
LONGEST_REMEMBERED = 100
_remembered_form = functools.lru_cache(maxsize=256)(_form)


class Tee:
    """Watches one reply as it passes; whatever comes, it neither changes a byte nor raises.

    Args:
        content_type: the reply's Content-Type, empty when there is none.
        content_encoding: the reply's Content-Encoding. gzip and deflate are looked into; of any other coding, and of
            several, nothing is learned.
        keep: how many bytes of the decoded reply are kept.

    Attributes:
        on_data: given the data of each event of a stream; None while nobody wants it.
        is_event_stream: whether the reply is a stream of events, coded or not.
        is_text: whether it is a stream of events, JSON or other text.
        is_uncoded: whether its bytes are what they say, so that an event may be added.
    """

    __slots__ = (
        "_inflater",
        "_is_json",
        "_keep",
        "_kept",
        "_lines_left",
        "_said",
        "_splitter",
        "_stream",
        "_tail",
        "_unseen",
        "is_event_stream",
        "is_text",
        "is_uncoded",
        "on_data",
    )

    def __init__(self, content_type: str, content_encoding: str, keep: int = KEEP) -> None:
        read = _remembered_form if len(content_type) + len(content_encoding) <= LONGEST_REMEMBERED else _form
        coding, self.is_event_stream, self._is_json, self.is_text = read(content_type, content_encoding)
        self.is_uncoded = coding in _UNCODED
        self.on_data: Callable[[bytes], None] | None = None
        self._keep = keep
        self._kept = bytearray()
        self._tail = bytearray()
        self._unseen = bytearray()
        self._said: tuple[Usage | None, str | None] | None = None
        if self.is_event_stream:
            self._splitter = EventSplitter()
            self._stream = StreamUsage()
        self._lines_left = MOST_INFLATED_LINES
        self._inflater = None if self.is_uncoded else self._inflater_for(coding)

    def _inflater_for(self, coding: str) -> Inflater | None:
        if coding not in _CODED:
            return None
        return Inflater(coding, LARGEST_INFLATED if self.is_event_stream or self._is_json else self._keep)

    @property
    def at_boundary(self) -> bool:
        """Whether something may be put in here between two events; never in a coded stream."""
        self._look()
        return self.is_event_stream and self.is_uncoded and self._splitter.at_boundary

    @property
    def finished(self) -> bool:
        """Whether a stream of events reached the end that its dialect has for a whole reply."""
        self._look()
        return self.is_event_stream and self._stream.finished

    @property
    def model(self) -> str | None:
        """The model that the provider says answered, as far as is known."""
        self._look()
        return self._stream.model if self.is_event_stream else self._json()[1]

    @property
    def kept(self) -> bytes:
        """The beginning of the decoded reply."""
        self._look()
        return bytes(self._kept)

    def payloads(self) -> Iterable[bytes]:
        """The JSON texts that the reply is made of, split when they are asked for; none when it was not kept whole."""
        kept = self.kept
        if len(kept) >= self._keep:
            kept = b""
        if not self.is_event_stream:
            return [kept] if self._is_json else []
        return (data for _, data in EventSplitter().feed(kept))

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the reply; those of a stream are looked at many events at a time, or when somebody asks."""
        if not self.is_event_stream:
            self._decode(chunk)
            return
        unseen = self._unseen
        unseen += chunk
        if len(unseen) >= BATCH:
            self._look()

    def _look(self) -> None:
        if self._unseen:
            batch = bytes(self._unseen)
            self._unseen.clear()
            self._decode(batch)

    def _decode(self, chunk: bytes) -> None:
        if self.is_uncoded:
            self._take(chunk)
        elif self._inflater is not None:
            for piece in self._inflater.feed(chunk):
                if self.is_event_stream and self._too_many_lines(piece):
                    self._inflater.stopped = True
                    return
                self._take(piece)

    def usage(self) -> Usage:
        """The usage that the provider has stated so far; `NO_USAGE` when it has stated none."""
        self._look()
        return (self._stream.result() if self.is_event_stream else self._json()[0]) or NO_USAGE

    def _take(self, data: bytes) -> None:
        room = self._keep - len(self._kept)
        if room > 0:
            self._kept += data[:room]
        if self.is_event_stream:
            events = self._splitter.feed(data)
            self._stream.feed_all(events)
            if self.on_data is not None:
                for _, payload in events:
                    self.on_data(payload)
        elif self._is_json:
            self._said = None
            if len(data) > room:
                self._take_tail(data[max(room, 0) :])

    def _too_many_lines(self, piece: bytes) -> bool:
        self._lines_left -= piece.count(b"\n") + piece.count(b"\r")
        return self._lines_left < 0

    def _take_tail(self, data: bytes) -> None:
        """Keeps the end of what did not fit; trimmed only now and then, for moving the bytes costs."""
        self._tail += data
        if len(self._tail) > 4 * TAIL:
            del self._tail[:-TAIL]

    def _json(self) -> tuple[Usage | None, str | None]:
        """Usage and model that a JSON reply states, read once for all who ask."""
        if self._said is None:
            reply = self._parsed() if self._is_json else None
            self._said = read_usage(reply), read_model(reply)
        return self._said

    def _parsed(self) -> object:
        """The reply; of a long one, those members that can be read from its two ends."""
        if not self._tail:
            return _parse(self._kept)
        return first_model(self._kept) | last_members((self._kept + self._tail)[-TAIL:])


def _parse(text: bytes | bytearray) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def first_model(head: bytes | bytearray) -> dict[str, object]:
    """The first `model` in the beginning of a JSON object, as an object of its own."""
    match = _MODEL.search(head)
    return {"model": _parse(match[1])} if match else {}


def last_members(tail: bytes | bytearray) -> dict[str, object]:
    """The members of a JSON object from `usage` or `model` on, read from the end of its text.

    A key is one of the outermost object's own exactly when the text from there on, with a brace before it, is JSON.
    """
    for match in list(_KEY.finditer(tail))[-_MOST_TRIES:]:
        members = _parse(b"{" + tail[match.start() :])
        if isinstance(members, dict):
            return members
    return {}
