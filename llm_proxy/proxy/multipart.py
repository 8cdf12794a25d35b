"""The part named `model` of a form, watched for as the bytes of a multipart/form-data body pass.

Whoever reads the form next may be more lenient than RFC 7578. Where two readers could see a different model, or one of
them a model at all where the other sees none, the body is refused; ordinary clients write nothing of the kind.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

from llm_proxy.errors import ApiError

LARGEST_HEAD = 16 * 1024
LARGEST_MODEL = 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_KIND = re.compile(rb"%b(?:/%b)?" % (_TOKEN, _TOKEN))
_PARAMETER = re.compile(rb'[ \t]*;[ \t]*(%b)=(?:(%b)|"((?:[^"\\]|\\.)*)")' % (_TOKEN, _TOKEN))
# RFC 2046 section 5.1.1 less the space, which some trim; with the rest of what a token may hold, which some clients use.
_BOUNDARY = re.compile(rb"[!#$%&'()*+,\-./0-9:=?A-Z^_`a-z|~]{1,70}")
# Whoever looks for a parameter without regard to quotes or escapes must not find another one inside a value.
_HIDDEN_NAME = re.compile(rb"name[*0-9]*[ \t]*=", re.IGNORECASE)
# In these, ASCII is ASCII; beyond it only UTF-8 is read as the provider would.
_CHARSETS = {b"utf-8": "utf-8", b"utf8": "utf-8", b"us-ascii": "ascii", b"iso-8859-1": "ascii", b"windows-1252": "ascii"}

_LINE = re.compile(rb"--|[ \t]{0,128}\r\n")
_BEGUN_LINE = re.compile(rb"-?|[ \t]{0,128}\r?")
_BAD_IN_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
# A header name that began with a dash could be taken for a boundary.
_HEADER = re.compile(rb"(?!-)(%b):(.*)" % _TOKEN)
_MODEL_HEADERS = frozenset({b"content-disposition", b"content-type", b"content-transfer-encoding", b"content-length"})
_PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})
_NOT_BLANK = re.compile(rb"[^ \t\r\n]")
# What one reader or another drops from a name: white space, quotes, escapes, angle brackets, a byte order mark.
_NOISE = re.compile("[\\s\\\\\"'<>\ufeff]+")


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type names, None when the type is not multipart/form-data.

    Raises:
        ApiError: `bad_request`, the type is multipart/form-data, without one boundary that every reader sees.
    """
    value = content_type.strip(" \t").encode("utf-8", "surrogateescape")
    if not value.lower().startswith(b"multipart/form-data"):
        return None
    kind, parameters = _parameters(value)
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or any(b"boundary" in key and key != b"boundary" for key in parameters):
        raise _refusal("its Content-Type must be multipart/form-data with one plain boundary parameter")
    if not _BOUNDARY.fullmatch(boundary):
        raise _refusal("its Content-Type needs a boundary of 1 to 70 characters, in quotes unless they are letters, digits or -")
    _encoding(parameters)
    return boundary


class _Model(NamedTuple):
    """How the value of a model part is written."""

    encoding: str
    length: int | None


class ModelScanner:
    """Finds the model in a form, whichever way its bytes are cut.

    Between two calls it keeps at most the head of a part, the value of the model, or as much as a boundary takes. Once
    `feed` has raised, the rest of the body is not to be fed. A body that ended before `finished` was cut off, perhaps
    within a part that some reader takes all the same.

    Args:
        boundary: as `boundary_of` gives it.

    Attributes:
        model: the value of the part named `model`, once its end was seen; of several, the first.
        duplicated: whether a second such part began.
        finished: whether the closing boundary was seen.
        place: where in the body the value of the model begins and ends, once `model` is known.
    """

    __slots__ = (
        "_at",
        "_begun",
        "_boundary",
        "_examined",
        "_passed",
        "_rest",
        "_step",
        "duplicated",
        "finished",
        "model",
        "place",
    )

    def __init__(self, boundary: bytes) -> None:
        self.model: str | None = None
        self.duplicated = False
        self.finished = False
        self._boundary = b"--" + boundary
        self._rest = b""
        self._passed = 0
        self.place = (0, 0)
        # What the next step begins with, and how much from there on an incomplete head was already searched.
        self._at = 0
        self._examined = 0
        self._begun = False
        # A step goes past what it knows; it is False when it needs more bytes.
        self._step: Callable[[bytes], bool] = self._opening

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            ApiError: `bad_request`, they are no multipart, or could be read in two ways.
        """
        data = self._rest + chunk
        self._at = 0
        while self._step(data):
            pass
        self._rest = data[self._at :]
        self._passed += self._at

    def _opening(self, data: bytes) -> bool:
        """Goes past the first boundary."""
        for opening in (self._boundary, b"\r\n" + self._boundary):
            if data.startswith(opening):
                self._at = len(opening)
                self._step = self._line
                return True
            if opening.startswith(data):
                return False
        raise _refusal("it does not begin with the boundary that its Content-Type names")

    def _line(self, data: bytes) -> bool:
        """Goes past the rest of a boundary's line."""
        line = _LINE.match(data, self._at)
        if line is None:
            if not _BEGUN_LINE.fullmatch(data, self._at):
                raise _refusal("a boundary must be followed by CRLF, or by -- after the last part")
            return False
        self._at = line.end()
        self.finished = line[0] == b"--"
        self._step = self._epilogue if self.finished else self._head
        return True

    def _head(self, data: bytes) -> bool:
        """Goes past the head of a part."""
        start = self._at + self._examined
        limit = self._at + LARGEST_HEAD + 4
        end = data.find(b"\r\n\r\n", max(self._at, start - 3), limit)
        known = min(len(data), limit) if end < 0 else end + 4
        # At once, not when the head is whole: a reader who takes LF for a line end would see the end of it earlier.
        if _BAD_IN_HEAD.search(data, max(self._at, start - 1), known):
            raise _refusal("a part's head has a control character, or a line that does not end in CRLF")
        if end < 0:
            if known == limit:
                raise _refusal(f"a part's head is larger than {LARGEST_HEAD} bytes")
            self._examined = known - self._at
            return False
        head = data[self._at : end]
        if self._boundary in head:
            raise _refusal("the boundary stands in a part's head")
        self._begin(_read_head(head))
        # The empty line's CRLF stays, so that a boundary right after it is seen, as some readers would.
        self._at, self._examined = end + 2, 0
        return True

    def _begin(self, model: _Model | None) -> None:
        if model and not self._begun:
            self._begun = True
            self._step = partial(self._value, model)
        else:
            self.duplicated = self.duplicated or model is not None
            self._step = self._data

    def _data(self, data: bytes) -> bool:
        """Goes past the data of a part that is not the model."""
        end = self._end_of_part(data, len(data))
        if end < 0:
            # One byte more than CRLF with a boundary begun, so that a boundary at the start is one right after a head.
            self._at = max(self._at, len(data) - len(self._boundary) - 2)
            return False
        self._pass_boundary(end)
        return True

    def _value(self, model: _Model, data: bytes) -> bool:
        """Goes past the value of the model."""
        limit = self._at + 2 + LARGEST_MODEL + len(self._boundary) + 2
        end = self._end_of_part(data, limit)
        if end < 0:
            if len(data) >= limit:
                raise _refusal(f"the value of model is larger than {LARGEST_MODEL} bytes")
            return False
        self.model = _read_value(model, data[self._at + 2 : end])
        self.place = (self._passed + self._at + 2, self._passed + end)
        self._pass_boundary(end)
        return True

    def _end_of_part(self, data: bytes, limit: int) -> int:
        """Where the CRLF before the next boundary is, -1 when there is none before the limit."""
        boundary = data.find(self._boundary, self._at, limit)
        if boundary < 0:
            return -1
        # RFC 2046 takes the boundary for data here, but some readers end the part at a bare LF, or wherever it stands.
        if data[boundary - 2 : boundary] != b"\r\n":
            raise _refusal("the boundary stands in a part's data, or after a line that does not end in CRLF")
        if boundary == self._at + 2:
            raise _refusal("a part's head must end in an empty line")
        return boundary - 2

    def _pass_boundary(self, end: int) -> None:
        self._at = end + 2 + len(self._boundary)
        self._step = self._line

    def _epilogue(self, data: bytes) -> bool:
        """Goes past what follows the closing boundary."""
        if _NOT_BLANK.search(data, self._at):
            raise _refusal("something follows the closing boundary")
        self._at = len(data)
        return False


def _read_head(head: bytes) -> _Model | None:
    """What the head says of the value when the part is the model, None when it is another part."""
    headers = _headers(head)
    kind, parameters = _parameters(headers.get(b"content-disposition", b""))
    if kind != b"form-data" or b"name" not in parameters:
        raise _refusal("a part must have the header Content-Disposition: form-data with a name")
    for key, value in parameters.items():
        if (b"name" in key and key != b"name" and not _is_filename(key)) or _HIDDEN_NAME.search(value):
            raise _refusal("a part's name must stand in one plain parameter called name")
    if headers.get(b"content-type", b"").lower().startswith((b"multipart/", b"message/")):
        raise _refusal("a part must not hold further parts, be it as a multipart or as a message")
    if not _is_model(parameters[b"name"]):
        return None
    if any(_is_filename(key) for key in parameters):
        raise _refusal("model is a field, so it has no filename")
    return _model_head(headers)


def _is_filename(key: bytes) -> bool:
    return key == b"filename" or key.startswith(b"filename*")


def _headers(head: bytes) -> Mapping[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in headers:
            raise _refusal("a line of a part's head is not a header, or a header came twice")
        headers[header[1].lower()] = header[2].strip(b" \t")
    return headers


def _is_model(raw: bytes) -> bool:
    """Whether the name, as it stands between its quotes, is `model`; what only some readers take for it is refused."""
    if raw == b"model":
        return True
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _refusal("the name of a part is not UTF-8") from None
    plain = _NOISE.sub("", unquote(_NOISE.sub("", name))).lower()
    if plain == "model":
        raise _refusal("a part's name is another spelling of model")
    # Some readers decode RFC 2047 in names; RFC 7578 section 4.6 lets `_charset_` change how other parts are read.
    if plain == "_charset_" or "=?" in plain:
        raise _refusal("a part's name says how to decode, which is not served")
    return False


def _model_head(headers: Mapping[bytes, bytes]) -> _Model:
    if any(name.startswith(b"content-") and name not in _MODEL_HEADERS for name in headers):
        raise _refusal("model has a header that may change how it is read")
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN_ENCODINGS:
        raise _refusal("model must not have a Content-Transfer-Encoding")
    kind, parameters = _parameters(headers.get(b"content-type", b"text/plain"))
    if kind != b"text/plain" or parameters.keys() - {b"charset"}:
        raise _refusal("model must be text/plain")
    length = headers.get(b"content-length")
    if length is not None and not re.fullmatch(rb"[0-9]{1,4}", length):
        raise _refusal("the Content-Length of model is wrong")
    return _Model(_encoding(parameters), None if length is None else int(length))


def _read_value(model: _Model, value: bytes) -> str:
    if model.length not in (None, len(value)):
        raise _refusal("the Content-Length of model is wrong")
    try:
        return value.decode(model.encoding)
    except UnicodeDecodeError:
        raise _refusal("the value of model is not UTF-8") from None


def _parameters(value: bytes) -> tuple[bytes, Mapping[bytes, bytes]]:
    """A header's value without its parameters, in small letters, with the parameters, whose quoted values keep their escapes."""
    kind = _KIND.match(value)
    at = kind.end() if kind else 0
    parameters: dict[bytes, bytes] = {}
    while parameter := _PARAMETER.match(value, at):
        at = parameter.end()
        key = parameter[1].lower()
        if key in parameters:
            raise _refusal("a parameter of a header came twice")
        parameters[key] = parameter[2] if parameter[3] is None else parameter[3]
    # A semicolon at the end is harmless, while with two in a row some readers lose the parameters.
    if kind is None or value[at:].strip(b" \t") not in (b"", b";"):
        raise _refusal("a header with parameters is missing, or is not written as RFC 9110 section 5.6.6 says")
    return kind[0].lower(), parameters


def _encoding(parameters: Mapping[bytes, bytes]) -> str:
    """The Python encoding to read text with under these parameters of a Content-Type."""
    encoding = _CHARSETS.get(parameters.get(b"charset", b"utf-8").lower())
    if encoding is None:
        raise _refusal("its charset is not served; use UTF-8")
    return encoding


def _refusal(problem: str) -> ApiError:
    return ApiError("bad_request", f"The form (multipart/form-data) cannot be used: {problem}.")
