"""The body of a call: read whole where policy and failover need it, else streamed."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiohttp import web

from llm_proxy.errors import ApiError, ClientGone
from llm_proxy.inbound import Inbound
from llm_proxy.proxy.multipart import ModelScanner, boundary_of

# What is not JSON or a form is held up to here; beyond it is streamed.
HELD_BYTES = 1024 * 1024


@dataclass
class Body:
    """A request's body.

    Attributes:
        held: the bytes read so far; all of them when `rest` is None.
        rest: the pieces still to come.
        length: the whole length when it is known.
        scanner: watches the parts of a form for the model.
        size: how many bytes have come.
        finished: nothing is left to read.
    """

    held: bytes = b""
    rest: AsyncIterator[bytes] | None = None
    length: int | None = None
    scanner: ModelScanner | None = None
    size: int = 0
    finished: bool = True

    def content(self, on_error: Callable[[ApiError], None], held: bytes | None = None) -> bytes | AsyncIterator[bytes] | None:
        """What is sent to the provider, with `held` in place of what was read, where that is given.

        Args:
            on_error: told what is wrong with a body that is on its way.
        """
        held = self.held if held is None else held
        if self.rest is None:
            return held if held or self.length is not None else None
        return _stream(on_error, held, self.rest)

    def take(self, piece: bytes, limit: int) -> None:
        """Count and watch a piece that has come.

        Raises:
            ApiError: `request_too_large`; `duplicate_key`, the form names the model twice; `bad_request`, it is no form.
        """
        self.size += len(piece)
        if self.size > limit:
            raise _too_large(limit)
        if self.scanner:
            self.scanner.feed(piece)
            if self.scanner.duplicated:
                raise ApiError("duplicate_key", "The form names `model` twice.", param="model")

    def end(self) -> None:
        """Nothing more comes.

        Raises:
            ApiError: `bad_request`, the form was cut off, perhaps within a part that its reader takes all the same.
        """
        if self.scanner and not self.scanner.finished:
            raise ApiError("bad_request", "The form (multipart/form-data) ends without its closing boundary.")
        self.finished = True


async def _stream(on_error: Callable[[ApiError], None], held: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield held
    try:
        async for piece in rest:
            yield piece
    except ApiError as error:
        on_error(error)
        raise


def is_read_whole(content_type: str) -> bool:
    """Whether a body of this type is read whole before the call goes on."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json") or kind == "application/x-www-form-urlencoded"


def check_length(request: Inbound, limit: int) -> int | None:
    """The length that a request claims for its body, None when it claims none.

    Raises:
        ApiError: `request_too_large`.
    """
    if request.length is not None and request.length > limit:
        raise _too_large(limit)
    return request.length


def _too_large(limit: int) -> ApiError:
    return ApiError("request_too_large", f"The body is larger than {limit} bytes (MAX_REQUEST_BYTES).")


async def read_body(request: Inbound, limit: int, *, restricted: bool, needed: bool = True) -> Body:
    """Read the body as far as it must be read before the call goes on.

    Args:
        limit: the largest body in bytes.
        restricted: a rule depends on the model, so a form's parts are watched for it.
        needed: the call must not go on before the model is known; an upload has none.

    Raises:
        ApiError: `request_too_large`, `bad_request`, `request_timeout`, `model_must_come_first`, `duplicate_key`.
    """
    length = check_length(request, limit)
    if not request.can_read_body:
        return Body(length=length)
    content_type = request.headers.get("Content-Type", "")
    scanner = _scanner(content_type) if restricted else None
    if scanner is None and length and _is_there(request, length):
        return Body(request.content.read_nowait(), length=length, size=length)
    body = Body(length=length, scanner=scanner, finished=False)
    pieces, held, whole = _pieces(request, body, limit), bytearray(), is_read_whole(content_type)
    async for piece in pieces:
        held += piece
        if len(held) > HELD_BYTES and not whole:
            break
    else:
        body.length = len(held)
    body.held = bytes(held)
    body.rest = None if body.finished else pieces
    if needed and body.scanner and body.scanner.model is None and not body.finished:
        raise ApiError(
            "model_must_come_first",
            "Put the form field `model` before the file: it was not among the first MiB, and this call depends on it.",
        )
    return body


def _is_there(request: Inbound, length: int) -> bool:
    """Whether all of a body has come already, as it mostly has, and may be held."""
    content = request.content
    return content.total_bytes == length <= HELD_BYTES and content.exception() is None


def _scanner(content_type: str) -> ModelScanner | None:
    boundary = boundary_of(content_type)
    return ModelScanner(boundary) if boundary else None


async def _pieces(request: Inbound, body: Body, limit: int) -> AsyncIterator[bytes]:
    try:
        while piece := await request.content.readany():
            body.take(piece, limit)
            yield piece
    except (web.RequestPayloadError, web.PayloadAccessError) as error:
        raise ApiError("bad_request", "The body is not framed as its headers say.") from error
    except ConnectionError as error:
        raise ClientGone("The client closed its connection.") from error
    body.end()
