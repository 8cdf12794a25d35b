"""Whether a call may be made, by pure rules over profiles, heads and bodies."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn
from urllib.parse import parse_qsl, quote, unquote

import orjson

from llm_proxy.errors import ApiError
from llm_proxy.providers.profiles import TOKEN, Profile, matches_any

# The most specific refusal is the most useful one: it says that all before it was right.
_SPECIFIC = {"endpoint_not_found": 0, "method_not_allowed": 1, "param_not_allowed": 2}
_MOST_SPECIFIC = 3

# What a POST here costs depends on a model, which the provider would choose itself if the call named none; of a batch the
# models are in a file or in the depth of the body. An Azure path is looked up without its /openai.
_MODEL_ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/complete",
    "/v1/messages",
    "/v1/messages/batches",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/moderations",
    "/v1/images/*",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/batches",
    "/v1/batch/jobs",
    "/v1/fim/completions",
    "/v1/ocr",
    "/responses",
    "/batches",
)
_MODEL_PATHS = ("/v1/models/", "/openai/v1/models/", "/openai/models/")
_DEPLOYMENTS = "/openai/deployments/"

_MOST_FIELDS = 1000
_MOST_SHOWN = 300

_EXPOSED = ", ".join(
    (
        "X-Request-ID",
        "X-Upstream-Request-ID",
        "X-Correlation-ID",
        "X-PROXY-CACHE",
        "Cache-Status",
        "Server-Timing",
        "Retry-After",
        "retry-after-ms",
        "x-should-retry",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    )
)
_PREFLIGHT_SECONDS = 600
_MOST_REQUESTED_HEADERS = 64


def admit(
    profiles: Sequence[Profile],
    method: str,
    path: str,
    headers: Mapping[str, str],
    parameters: Mapping[str, object] | None = None,
) -> list[Profile]:
    """The profiles that let this call through, in the given order.

    Args:
        profiles: those of all candidates, at least one.
        method: in capitals.
        path: canonical, as it will be forwarded.
        headers: the request's, by names in any case.
        parameters: those of the body, once it is read; None asks of the head alone.

    Raises:
        ApiError: none is left; it is the refusal of the most specific kind that any profile gave.
    """
    admitted, refusals = [], []
    for profile in profiles:
        try:
            _check_head(profile, method, path, headers)
            if parameters is not None:
                check_parameters(profile, parameters)
            admitted.append(profile)
        except ApiError as refusal:
            refusals.append(refusal)
    if not admitted:
        _refuse(refusals, profiles, path)
    return admitted


def _refuse(refusals: Iterable[ApiError], profiles: Iterable[Profile], path: str) -> NoReturn:
    refusal = max(refusals, key=lambda refusal: _SPECIFIC.get(refusal.code, _MOST_SPECIFIC))
    if refusal.code == "method_not_allowed":
        methods = ", ".join(
            sorted({method for profile in profiles if profile.admits(path) for method in profile.allowed_methods})
        )
        raise ApiError(refusal.code, f"This endpoint takes {methods}.", headers={"Allow": methods})
    raise refusal


def _check_head(profile: Profile, method: str, path: str, headers: Mapping[str, str]) -> None:
    if not profile.admits(path):
        hint = "The base URL of your client must end in /v1." if profile.admits(f"/v1{path}") else "Check the path."
        raise ApiError("endpoint_not_found", f"This endpoint is not served here. {hint}")
    if method not in profile.allowed_methods:
        raise ApiError("method_not_allowed", "This endpoint does not take this method.")
    if profile.required_headers or profile.allowed_origins:
        _check_headers(profile, headers)


def _check_headers(profile: Profile, headers: Mapping[str, str]) -> None:
    for name in profile.required_headers:
        if name not in headers:
            code = "origin_required" if name == "origin" else "header_required"
            raise ApiError(code, f"A call of this endpoint needs the header {name}.", param=name)
    origin = headers.get("origin")
    if origin is not None and profile.allowed_origins and origin not in profile.allowed_origins:
        raise ApiError(
            "origin_not_allowed", "Calls from this origin are not allowed. The operator's allowed_origins says which are."
        )


def read_object(body: bytes, content_type: str, *, strict: bool) -> dict[str, object] | None:
    """The top-level fields of a JSON or form-urlencoded body, whatever charset its content type claims.

    Args:
        body: all of it, not compressed.
        content_type: the header's value, empty when it is missing.
        strict: a rule depends on what the body says. A reading that another parser could see differently is refused then;
            without it, what cannot be read is nobody's concern but the provider's.

    Returns:
        The fields; None when there is no body, when it is multipart, or, unless strict, when it cannot be read.

    Raises:
        ApiError: strict, and the body is not such an object in UTF-8, or it names a field twice.
    """
    if not body:
        return None
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or ("/" in kind and kind.endswith("+json")):
        return _strict_json(body) if strict else _lenient_json(body)
    if kind == "application/x-www-form-urlencoded":
        return _form(body, strict=strict)
    if strict and not kind.startswith("multipart/"):
        raise ApiError(
            "invalid_json", "The parameters of this call must be read. Send JSON, with Content-Type: application/json."
        )
    return None


def _lenient_json(body: bytes) -> dict[str, object] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _strict_json(body: bytes) -> dict[str, object]:
    pairs: list[tuple[str, object]] = []

    def keep(found: list[tuple[str, object]]) -> dict[str, object]:
        # Objects end from the inside outwards, so the last one seen is the top-level one.
        nonlocal pairs
        pairs = found
        return dict(found)

    try:
        value = json.loads(body.decode(), object_pairs_hook=keep, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError("invalid_json", "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "The body must be a JSON object.")
    _refuse_twice([key for key, _ in pairs])
    _refuse_unwritable(value.get("model"))
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's.


def _refuse_twice(keys: Sequence[str]) -> None:
    # Some providers, those in Go, take keys in any case: for them `Model` after `model` is the same key again.
    if len({key.casefold() for key in keys}) < len(keys):
        raise ApiError("duplicate_key", "The body names a parameter twice. Send each once.")


def _refuse_unwritable(model: object) -> None:
    try:
        _written(model).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair can be said in JSON, but no event or log can hold it.
        raise ApiError("invalid_json", "model: this is not text.", param="model") from None


def _form(body: bytes, *, strict: bool) -> dict[str, object] | None:
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        if strict:
            raise ApiError("bad_request", "The body is not form-urlencoded in UTF-8.") from None
        return None
    if strict:
        # Some readers part fields there too, and would find a `model` in another field's value.
        if b";" in body:
            raise ApiError("bad_request", "The form has a bare semicolon. Write it as %3B.")
        _refuse_twice([name for name, _ in pairs])
    return dict(pairs)


def check_parameters(profile: Profile, parameters: Mapping[str, object]) -> None:
    """Refuse a parameter whose value the profile does not list; an absent one passes, any other value must fit.

    Raises:
        ApiError: `param_not_allowed`, naming the parameter.
    """
    if not profile.param_whitelist:
        return
    values = {name.casefold(): value for name, value in parameters.items()}
    for name, globs in profile.param_whitelist.items():
        folded = name.casefold()
        if folded in values and not _fits(globs, _written(values[folded])):
            raise ApiError("param_not_allowed", f"{name}: this value is not allowed. Allowed: {_listed(globs)}.", param=name)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fits(globs: Iterable[str], text: str) -> bool:
    return any(glob_matches(glob, text) for glob in globs)


def _listed(globs: Iterable[str]) -> str:
    text = ", ".join(globs)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def glob_matches(glob: str, text: str) -> bool:
    """Whether a text fits a glob, in which `*` is any text and nothing else is special.

    It takes the leftmost fit of each piece, so that no text, however long, makes it slow as a regular expression could be.
    """
    first, *others = glob.split("*")
    if not others:
        return glob == text
    *middle, last = others
    start, end = len(first), len(text) - len(last)
    if start > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for piece in middle:
        found = text.find(piece, start, end)
        if found < 0:
            return False
        start = found + len(piece)
    return True


def model_of(path: str, parameters: Mapping[str, object] | None) -> str | None:
    """The model that a call names, in the client's words.

    The path goes before the body: where it names a model (`/v1/models/{id}`, `/openai/deployments/{model}/...`) the provider
    obeys it and ignores what the body says. A `model` in the body that is not text is given as JSON writes it, so that it is
    checked and not taken for absent; null is absent.
    """
    for prefix in _MODEL_PATHS:
        if path.startswith(prefix):
            return unquote(path.removeprefix(prefix)) or None
    if path.startswith(_DEPLOYMENTS):
        return unquote(path.removeprefix(_DEPLOYMENTS).partition("/")[0]) or None
    if not parameters:
        return None
    model = parameters.get("model")
    if model is None:
        # A provider in Go takes `Model` for it.
        model = next((value for name, value in parameters.items() if name.casefold() == "model"), None)
    return None if model is None else _written(model)


def with_model(path: str, model: str) -> str:
    """A path with another model in the place where `model_of` finds one; the path as it is when it names none."""
    for prefix in _MODEL_PATHS:
        if path.startswith(prefix) and path != prefix:
            return prefix + quote(model, safe="/:")
    if path.startswith(_DEPLOYMENTS):
        named, slash, rest = path.removeprefix(_DEPLOYMENTS).partition("/")
        return f"{_DEPLOYMENTS}{quote(model, safe=':')}{slash}{rest}" if named else path
    return path


def needs_model(method: str, path: str) -> bool:
    """Whether a call runs a model, or a batch of such calls, so that naming none leaves the choice to others."""
    return method == "POST" and _runs_model(path)


@functools.lru_cache(maxsize=1024)
def _runs_model(path: str) -> bool:
    return matches_any(_MODEL_ENDPOINTS, path.removeprefix("/openai"))


def allows(allowed: Sequence[str], model: str) -> bool:
    """Whether a token with this list may use a model; an empty list is for all."""
    return not allowed or _fits(allowed, model)


def check_model(allowed: Sequence[str], model: str | None, *, required: bool = False) -> None:
    """Refuse a model that a token may not use.

    A call that names no model passes, as listing files or reading a stored answer must be possible with any token. Where the
    provider would choose a model for such a call (`needs_model`), `required` closes the way around the list.

    Args:
        allowed: names or globs; empty for all models.
        model: what the call names, None for nothing. Where `allowed` is not empty it must come from a strict reading.
        required: a call that names none is refused.

    Raises:
        ApiError: `model_not_allowed`.
    """
    if (model is None and not required) or allows(allowed, model or ""):
        return
    problem = (
        "This token may use certain models only, and the call names none"
        if model is None
        else "This token may not use this model"
    )
    raise ApiError("model_not_allowed", f"{problem}. Allowed: {_listed(allowed)}.", param="model")


def cors_headers(profiles: Iterable[Profile], origin: str) -> dict[str, str]:
    """What an answer or refusal says to a browser, from the union of all profiles' origins.

    Where no profile lists an origin it says nothing: calls from browsers are off until the operator names who may.

    Args:
        profiles: all there are.
        origin: the request's `Origin`, empty when it has none.
    """
    origins = {listed for profile in profiles for listed in profile.allowed_origins}
    if not origins:
        return {}
    headers = {"Vary": "Origin"}
    if origin in origins:
        headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}
    return headers


def preflight(profiles: Iterable[Profile], origin: str, *, requested_headers: str = "") -> dict[str, str]:
    """The headers of the 204 to a preflight, from the union of all profiles.

    The path is not asked: a preflight has no token, and a stranger may not find out what is served.

    Args:
        profiles: all there are.
        origin: the request's `Origin`.
        requested_headers: the request's `Access-Control-Request-Headers`.
    """
    profiles = list(profiles)
    headers = cors_headers(profiles, origin)
    if "Access-Control-Allow-Origin" not in headers:
        return headers
    methods = {method for profile in profiles if origin in profile.allowed_origins for method in profile.allowed_methods}
    headers |= {"Access-Control-Allow-Methods": ", ".join(sorted(methods)), "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS)}
    names = [name.strip() for name in requested_headers.split(",")]
    if len(names) <= _MOST_REQUESTED_HEADERS and all(map(TOKEN.fullmatch, names)):
        headers["Access-Control-Allow-Headers"] = ", ".join(names)
    return headers
