"""The model's name in a call's JSON, replaced where a mapping renames it, every other byte left as it is."""

import json
import re
from typing import Protocol
from urllib.parse import quote_plus, unquote_to_bytes

from llm_proxy.errors import ApiError

_MODEL = b"model"
# What in a reply may hold a `model` besides the reply itself: OpenAI's responses, Anthropic's message_start.
_HOLDERS = frozenset({b"response", b"message"})
# No longer key is one of these, even with all of its letters written as \uXXXX.
_LONGEST_KEY = 6 * max(map(len, _HOLDERS))

_BLANK = re.compile(r"[ \t\r\n]*")
# Numbers are only passed over; Python would refuse those of thousands of digits.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)

# Possessive, so that nothing is remembered for a way back, however much they run over.
_IN_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_FLAT = rb'(?:[^"{}\[\]]++|"%b")' % _IN_STRING
_STRING = re.compile(_IN_STRING, re.DOTALL)
_STRUCTURE = re.compile(rb'["{}\[\],:]')
# Scalars, whole strings, whole lists and objects of these, up to what opens or closes another container, or to what goes on in
# the next bytes.
_UNLOOKED_AT = re.compile(rb"(?:%b|\[%b*+\]|\{%b*+\})*+" % (_FLAT, _FLAT, _FLAT), re.DOTALL)
# Whole members of an object that are scalars, other than the name, each with its comma: most of a stream.
_PLAIN_MEMBERS = re.compile(rb'(?:\s*+"(?!model")[^"\\]*+"\s*+:\s*+(?:"%b"|[-+.0-9A-Za-z]++)\s*+,)++' % _IN_STRING, re.DOTALL)
_BRACKET_OR_QUOTE = re.compile(rb'["{}\[\]]')


def rename_request(body: bytes, name: str) -> bytes:
    """A request's JSON with another name as its top-level `model`; the body as it is when it has none.

    Where the key comes twice, which is refused where a rule depends on the model, each gets the name, so that no reader finds
    another model.

    Raises:
        ApiError: `invalid_json`.
    """
    try:
        text = body.decode()
        spans = _model_spans(text)
    except (ValueError, RecursionError):
        raise ApiError("invalid_json", "The body is not a JSON object in UTF-8.") from None
    pieces, last = [], 0
    for start, end in spans:
        pieces += [text[last:start], json.dumps(name)]
        last = end
    return "".join([*pieces, text[last:]]).encode()


def rename_form(body: bytes, name: str) -> bytes:
    """The same for a form-urlencoded body."""
    fields = (field.partition(b"=") for field in body.split(b"&"))
    return b"&".join(
        b"%b=%b" % (key, quote_plus(name).encode()) if unquote_to_bytes(key.replace(b"+", b" ")) == _MODEL else key + sign + value
        for key, sign, value in fields
    )


def _model_spans(text: str) -> list[tuple[int, int]]:
    """Where in a JSON object the values of its top-level `model` stand."""
    at = _after(text, _blank(text, 0), "{")
    if text[at : at + 1] != "}":
        _after(text, at, '"')
    spans: list[tuple[int, int]] = []
    while text[at : at + 1] != "}":
        key, end = _DECODER.raw_decode(text, at)
        start = _after(text, _blank(text, end), ":")
        _, end = _DECODER.raw_decode(text, start)
        if key == "model":
            spans.append((start, end))
        at = _blank(text, end)
        if text[at : at + 1] != "}":
            at = _after(text, at, ",")
            _after(text, at, '"')
    return spans


def _blank(text: str, at: int) -> int:
    """Where the white space ends that begins here."""
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _after(text: str, at: int, sign: str) -> int:
    """Where something begins again after this sign."""
    if text[at : at + 1] != sign:
        raise ValueError(f"no {sign}")
    return _blank(text, at + 1)


class Renamer(Protocol):
    """Replaces the model's name in a reply as its bytes come, holding back nothing but the name itself."""

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these bytes, which is nothing while they are of a name."""


def reply_renamer(content_type: str, name: str) -> Renamer | None:
    """What puts the client's name in the place of the provider's; None where a reply of this type names no model.

    Args:
        content_type: of a reply without a content coding.
        name: the client's.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return EventRenamer(name)
    if kind.endswith(("/json", "+json", "json-seq", "ndjson", "jsonl")):
        return JsonRenamer(name)
    return None


class JsonRenamer:
    """Renames in JSON as it comes, whichever way the bytes are cut: one document, or several after each other.

    The values of `model`, `response.model` and `message.model` that are strings are replaced, each time they come. What is no
    JSON is passed on with what looks like such a value replaced.

    Args:
        name: the one that is put in.
    """

    __slots__ = ("_depth", "_escaped", "_expects", "_key", "_name", "_raw", "_string", "_watched")

    def __init__(self, name: str) -> None:
        self._name = json.dumps(name).encode()
        self.reset()

    def reset(self) -> None:
        """Another document begins, wherever the one before ended."""
        self._depth = 0
        # How deep the objects reach whose keys are read: 1 in the document itself, 2 in one of the holders.
        self._watched = 0
        self._key = b""
        self._expects = "value"
        # What the string is that is being read: a key, a name, or something else; empty outside of strings.
        self._string = ""
        self._escaped = False
        self._raw = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these bytes."""
        out: list[bytes] = []
        at = 0
        while at < len(data):
            if self._string:
                at = self._read_string(data, at, out)
            elif self._depth == self._watched:
                at = self._read_watched(data, at, out)
            else:
                at = self._pass_over(data, at, out)
        return b"".join(out)

    def _read_string(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Read on in a string, to its end when it is among the bytes."""
        start = at
        if self._escaped:
            self._escaped, at = False, at + 1
        found = _STRING.match(data, at)
        assert found is not None
        at = found.end()
        if at < len(data) and data[at] == 0x5C:
            # The last byte is a backslash, whose other half is still to come.
            self._escaped, at = True, at + 1
        if self._string == "key" and len(self._raw) <= _LONGEST_KEY:
            self._raw += data[start:at]
        ended = at < len(data)
        at += ended
        if self._string != "name":
            out.append(data[start:at])
        if ended:
            self._end_string(out)
        return at

    def _end_string(self, out: list[bytes]) -> None:
        if self._string == "key":
            self._key, self._expects = _plain(bytes(self._raw)), "colon"
            self._raw.clear()
        elif self._string == "name":
            out.append(self._name)
        self._string = ""

    def _read_watched(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Go on to the next sign that matters in an object whose keys are read, or before a document."""
        if self._expects == "key" and (plain := _PLAIN_MEMBERS.match(data, at)):
            out.append(plain[0])
            return plain.end()
        found = _STRUCTURE.search(data, at)
        end = found.end() if found else len(data)
        sign = found[0] if found else b""
        if sign == b'"' and self._begins_string() == "name":
            out.append(data[at : end - 1])
            return end
        out.append(data[at:end])
        if sign in (b"{", b"["):
            self._open(sign)
        elif sign in (b"}", b"]"):
            self._close()
        elif sign == b":":
            self._expects = "value"
        elif sign == b",":
            self._expects = "key"
        return end

    def _begins_string(self) -> str:
        if self._depth and self._expects == "key":
            self._string = "key"
        elif self._depth and self._expects == "value" and self._key == _MODEL:
            self._string = "name"
        else:
            self._string = "other"
        return self._string

    def _pass_over(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Go on to where a container that nothing is looked for in opens, closes or has a string that is not whole yet."""
        passed = _UNLOOKED_AT.match(data, at)
        assert passed is not None
        found = _BRACKET_OR_QUOTE.match(data, passed.end())
        end = found.end() if found else len(data)
        out.append(data[at:end])
        if found and found[0] == b'"':
            self._string = "other"
        elif found and found[0] in b"{[":
            self._depth += 1
        elif found:
            self._close()
        return end

    def _open(self, sign: bytes) -> None:
        holds = self._depth == 0 or (self._depth == 1 and self._expects == "value" and self._key in _HOLDERS)
        self._depth += 1
        if holds and sign == b"{":
            self._watched, self._expects = self._depth, "key"

    def _close(self) -> None:
        self._depth = max(self._depth - 1, 0)
        self._watched = min(self._watched, self._depth)


def _plain(raw: bytes) -> bytes:
    """A key without its escapes."""
    if b"\\" not in raw:
        return raw
    try:
        key = json.loads(b'"%b"' % raw)
    except ValueError:
        return raw
    return str(key).encode(errors="replace")


_FIELD = b"data:"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"[\r\n]")


class EventRenamer:
    """Renames in the data of an event stream, whichever way the bytes are cut.

    Nothing is held back but a name. The data of an event is one document, over as many lines as it has; the next event begins
    another, however this one ended.

    Args:
        name: the one that is put in.
    """

    __slots__ = ("_after_cr", "_begun", "_json", "_kind")

    def __init__(self, name: str) -> None:
        self._json = JsonRenamer(name)
        # The beginning of a line, while it may still be that of a field of data.
        self._begun = b""
        # What the line is, once that is known: data, or something else.
        self._kind = ""
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these bytes."""
        out: list[bytes] = []
        at = 0
        while at < len(data):
            found = _LINE_END.search(data, at)
            end = found.start() if found else len(data)
            if end > at:
                self._read_line(data[at:end], out)
            if found:
                out.append(found[0])
                self._end_line(found[0])
                end += 1
            at = end
        return b"".join(out)

    def _read_line(self, piece: bytes, out: list[bytes]) -> None:
        """Pass on a piece of one line."""
        self._after_cr = False
        if self._kind == "data":
            out.append(self._json.feed(piece))
        elif self._kind:
            out.append(piece)
        else:
            self._begin_line(piece, out)

    def _begin_line(self, piece: bytes, out: list[bytes]) -> None:
        """Pass on a piece of a line of which it is not known yet whether it is data."""
        passed, line = len(self._begun), self._begun + piece
        begins = _BOM + _FIELD if line[:1] == _BOM[:1] else _FIELD
        if line.startswith(begins):
            self._kind = "data"
            out += [line[passed : len(begins)], self._json.feed(line[len(begins) :])]
        else:
            self._kind = "" if begins.startswith(line) else "other"
            out.append(piece)
        self._begun = b"" if self._kind else line

    def _end_line(self, sign: bytes) -> None:
        """A line is over; when it was blank, so is the event. The LF of a CRLF ends none."""
        if sign == b"\n" and self._after_cr:
            self._after_cr = False
            return
        if not self._kind and not self._begun:
            self._json.reset()
        self._kind, self._begun = "", b""
        self._after_cr = sign == b"\r"
