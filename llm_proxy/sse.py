"""The event stream format, split into events as the bytes come in."""

# Beyond this an event is passed over, so that a stream without blank lines cannot fill the memory.
LARGEST_EVENT = 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LF, _CR = 10, 13


class EventSplitter:
    """Splits a stream into its events, whichever way the bytes are cut.

    It works on bytes: the characters that matter are ASCII, which never occur inside a longer UTF-8 sequence. An event
    of more than 1 MiB (all its lines together) is passed over, and the next one is read again.
    """

    __slots__ = ("_after_blank", "_after_cr", "_lines", "_partial", "_seen_crlf", "_size", "_started")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        # Of the event at hand; once above LARGEST_EVENT it stays there, and nothing is kept, until the event ends.
        self._size = 0
        self._partial = bytearray()
        self._started = False
        self._after_blank = True
        self._after_cr = False
        self._seen_crlf = False

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events, so that a comment or an event may be put in here.

        A CR is a line end by itself, but where the stream has used CRLF before, its LF is still to come, and what is
        put in would tear the two apart.
        """
        return self._after_blank and not (self._after_cr and self._seen_crlf)

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """Takes bytes; gives name (empty when the stream names none) and data of each event they complete."""
        # Whole events of one `data: ...` each with two LFs, as most are, which takes a third of the time.
        if (
            chunk[:6] == b"data: "
            and chunk[-2:] == b"\n\n"
            and self._after_blank
            and b"\r" not in chunk
            and len(chunk) <= LARGEST_EVENT
        ):
            if chunk.count(b"\n") == 2:
                self._started, self._after_cr = True, False
                return [(b"", chunk[6:-2])]
            plain = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(plain):
                self._started, self._after_cr = True, False
                return [(b"", data) for data in plain]
        events: list[tuple[bytes, bytes]] = []
        lines, rest = self._cut(chunk)
        for line in lines:
            if line:
                self._keep(line)
            elif self._size:
                event = _event(self._lines)
                if event is not None:
                    events.append(event)
                self._lines, self._size = [], 0
        if rest:
            self._wait(rest)
        return events

    def _cut(self, chunk: bytes) -> tuple[list[bytes], bytes]:
        """The lines that the chunk completes, without their ends, with the rest of it that completes none."""
        if self._after_cr and chunk.startswith(b"\n"):
            self._after_cr, self._seen_crlf = False, True
            chunk = chunk[1:]
        if not chunk:
            return [], b""
        last = chunk[-1]
        self._after_cr = last == _CR
        self._seen_crlf = self._seen_crlf or b"\r\n" in chunk
        # Of bytes, unlike text, splitlines() knows exactly the three line ends of the format.
        lines = chunk.splitlines()
        rest = b"" if last in (_LF, _CR) else lines.pop()
        if lines:
            self._finish_first(lines)
        self._after_blank = not rest and not lines[-1]
        return lines, rest

    def _finish_first(self, lines: list[bytes]) -> None:
        """Puts what waited before the first of the lines; drops the byte order mark of the stream's first line."""
        if self._partial:
            lines[0] = bytes(self._partial + lines[0])
            self._partial.clear()
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)

    def _wait(self, rest: bytes) -> None:
        """Keeps the beginning of a line; of a line too long, only that it has begun."""
        self._partial += rest
        if self._size + len(self._partial) > LARGEST_EVENT + len(_BOM):
            self._pass_over()
            del self._partial[1:]

    def _keep(self, line: bytes) -> None:
        """Adds a line to the event at hand, unless that is too large."""
        self._size += len(line) + 1
        if self._size > LARGEST_EVENT:
            self._pass_over()
        else:
            self._lines.append(line)

    def _pass_over(self) -> None:
        self._lines, self._size = [], LARGEST_EVENT + 1


def _event(lines: list[bytes]) -> tuple[bytes, bytes] | None:
    """Name and data of the event that the lines make up, None when they hold no data."""
    name = b""
    data: list[bytes] = []
    for line in lines:
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return (name, b"\n".join(data)) if data else None
