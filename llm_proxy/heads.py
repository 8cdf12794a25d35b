"""The heads of requests, remembered with what follows from them, for clients send the same one again and again."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from multidict import CIMultiDictProxy

from llm_proxy.grammar import RawHeaders, Target

T = TypeVar("T")

# What is kept of what strangers send is bounded, in number and in length.
MOST_REMEMBERED = 256
LONGEST_REMEMBERED = 4096
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,17})\r\n")


class Start(NamedTuple):
    """How the bytes of a request start.

    Attributes:
        key: the head without the length that it states, by which requests differ that are alike otherwise.
        end: where the head ends.
        length: of the body in bytes, as the head states it; None when it states none.
    """

    key: tuple[bytes, bytes]
    end: int
    length: int | None

    def missing(self, data: bytes) -> int:
        """How many bytes of the request are missing from `data`; less than none, where more has come."""
        return self.end + (self.length or 0) - len(data)

    def agrees(self, message: "Message") -> bool:
        """Whether the parser saw the same in these bytes: where the body ends."""
        said = None if self.length is None else str(self.length)
        return message.headers.get("Content-Length") == said and not message.chunked


def start_of(data: bytes) -> Start | None:
    """The start of a request; None where a head has not come whole, or empty lines before it look like its end."""
    end = data.find(_END) + len(_END)
    if end < len(_END) or data[:1] in b"\r\n":
        return None
    stated = _LENGTH.search(data, 0, end)
    if stated is None:
        # No other head has this key: where a length was taken out, the end of its line is left.
        return Start((data[:end], b""), end, None)
    return Start((data[: stated.start(1)], data[stated.end(1) : end]), end, int(stated[1]))


class Message(Protocol):
    """A request's head, as its parser gives it."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> tuple[int, int]: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def raw_headers(self) -> RawHeaders: ...
    @property
    def should_close(self) -> bool: ...
    @property
    def upgrade(self) -> bool: ...
    @property
    def chunked(self) -> bool: ...


def length_of(message: Message) -> int | None:
    """The length of a body as its head states it; None when it states none, or nonsense, which is refused later."""
    said = message.headers.get("Content-Length", "")
    return int(said) if said.isascii() and said.isdigit() else None


class Head:
    """A request's head, with what was made of it before.

    All that hangs on it follows from its bytes, those of a Content-Length left out, and from what stays the same while the
    process runs, so it holds for every request that begins with the same bytes. Whoever needs the length must not look here.

    Attributes:
        message: as the parser gave it.
        target: what it asks for; None before it was checked.
        choice: what was chosen for it last, with what it was chosen from.
    """

    __slots__ = ("_made", "choice", "headers", "message", "method", "raw_headers", "raw_path", "target", "version")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.method = message.method
        self.raw_path = message.path
        self.version = message.version
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.target: Target | None = None
        self.choice: Any = None
        self._made: dict[Callable[[Head], object], object] = {}

    def recall(self, make: Callable[["Head"], T]) -> T:
        """What `make` makes of this head, made once; what it raises is not remembered."""
        made = self._made
        if make not in made:
            made[make] = make(self)
        return cast(T, made[make])


class Heads:
    """Remembers heads by their bytes: those that come again stay, the others go when as many new ones have come."""

    def __init__(self) -> None:
        self._young: dict[tuple[bytes, bytes], Head] = {}
        self._old: dict[tuple[bytes, bytes], Head] = {}

    def get(self, start: Start) -> Head | None:
        """The head of a request that starts so; None when it is not known."""
        head = self._young.get(start.key)
        if head is None and (head := self._old.get(start.key)) is not None:
            self._keep(start, head)
        return head

    def same(self, start: Start, head: Head) -> Head:
        """The head that is known for this start; `head`, from now on, where none was."""
        known = self.get(start)
        if known is None and start.end <= LONGEST_REMEMBERED:
            self._keep(start, head)
        return known or head

    def _keep(self, start: Start, head: Head) -> None:
        if len(self._young) >= MOST_REMEMBERED:
            self._old, self._young = self._young, {}
        self._young[start.key] = head
