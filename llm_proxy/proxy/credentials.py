"""The credential that a client presents, in any of the headers its SDK may use."""

from llm_proxy.errors import ApiError
from llm_proxy.grammar import RawHeaders
from llm_proxy.tokens import unknown_token

BEARER = b"bearer "


def presented_token(headers: RawHeaders) -> str:
    """The one token of `Authorization: Bearer`, `x-api-key` and `api-key`.

    Args:
        headers: checked by `grammar.check_head`, thus ASCII.

    Raises:
        ApiError: `invalid_token` when there is none, `conflicting_credentials` when there are two.
    """
    found: set[bytes] = set()
    for name, value in headers:
        match name.lower():
            case b"authorization":
                found.add(value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else b"")
            case b"x-api-key" | b"api-key":
                found.add(value.strip())
    if len(found) > 1:
        raise ApiError("conflicting_credentials", "Two headers carry different credentials. Send the token in one of them.")
    token = found.pop().decode("ascii") if found else ""
    if not token:
        raise unknown_token()
    return token
