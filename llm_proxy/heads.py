"""The heads of requests, remembered with what follows from them, for clients send the same one again and again."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from llm_proxy.grammar import RawHeaders, Target

T = TypeVar("T")

# What is kept of what strangers send is bounded, in number and in length.
MOST_REMEMBERED = 256
LONGEST_REMEMBERED = 4096
_END = b"\r\n\r\n"


class Message(Protocol):
    """A request's head, as its parser gives it."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> tuple[int, int]: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def raw_headers(self) -> RawHeaders: ...
    @property
    def should_close(self) -> bool: ...
    @property
    def upgrade(self) -> bool: ...
    @property
    def chunked(self) -> bool: ...


class Head:
    """A request's head, with what was made of it before.

    All that hangs on it follows from its bytes and from what stays the same while the process runs, so it holds for every
    request that begins with the same bytes.

    Attributes:
        message: as the parser gave it.
        length: of the body in bytes; None for one in chunks.
        target: what it asks for; None before it was checked.
        choice: what was chosen for it last, with what it was chosen from.
    """

    __slots__ = ("_made", "choice", "headers", "length", "message", "method", "raw_headers", "raw_path", "target", "version")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.method = message.method
        self.raw_path = message.path
        self.version = message.version
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.length = _length(message)
        self.target: Target | None = None
        self.choice: Any = None
        self._made: dict[Callable[[Head], object], object] = {}

    def recall(self, make: Callable[["Head"], T]) -> T:
        """What `make` makes of this head, made once; what it raises is not remembered."""
        made = self._made
        if make not in made:
            made[make] = make(self)
        return cast(T, made[make])

    def to_come(self, data: bytes) -> int | None:
        """How many bytes of its request are missing from `data`, which begins with it; None where that cannot be told.

        It cannot of chunks, where more follows than the request, or where empty lines before the head look like its end.
        """
        end = data.find(_END)
        if self.length is None or end < 0 or not data[:end].strip(b"\r\n"):
            return None
        missing = self.length - (len(data) - end - len(_END))
        return missing if missing >= 0 else None


def _length(message: Message) -> int | None:
    said = message.headers.get("Content-Length", "0")
    # What is no number is refused later, with its reason.
    return None if message.chunked or not (said.isascii() and said.isdigit()) else int(said)


class Heads:
    """Remembers heads by their bytes: those that come again stay, the others go when as many new ones have come."""

    def __init__(self) -> None:
        self._young: dict[bytes, Head] = {}
        self._old: dict[bytes, Head] = {}

    def of(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head of a request that `data` holds whole, and nothing after it, with its body; None when it is not known."""
        end = data.find(_END) + len(_END)
        begins = data[:end]
        head = self._young.get(begins)
        if head is None:
            if (head := self._old.get(begins)) is None:
                return None
            self._keep(begins, head)
        return (head, data[end:]) if len(data) - end == head.length else None

    def learn(self, data: bytes, head: Head) -> None:
        """Remember what the parser made of `data`, provided that it holds one request and nothing else."""
        end = data.find(_END) + len(_END)
        if end <= LONGEST_REMEMBERED and head.to_come(data) == 0:
            self._keep(data[:end], head)

    def _keep(self, begins: bytes, head: Head) -> None:
        if len(self._young) >= MOST_REMEMBERED:
            self._old, self._young = self._young, {}
        self._young[begins] = head
