"""Cookies of the admin site."""

import secrets

from aiohttp import web

from llm_proxy.middleware import PEER

SESSION, LOGIN, NEWS = "llm_proxy_session", "llm_proxy_login", "llm_proxy_news"


def _is_secure(request: web.Request) -> bool:
    return request[PEER].scheme == "https"


def _named(request: web.Request, name: str) -> str:
    """Under TLS the name has a prefix with which browsers take no cookie that came without TLS."""
    return f"__Secure-{name}" if _is_secure(request) else name


def read(request: web.Request, name: str) -> str:
    """A cookie's value, empty when there is none."""
    return request.cookies.get(_named(request, name), "")


def write(request: web.Request, response: web.StreamResponse, name: str, value: str, max_age: int | None = None) -> None:
    """Set a cookie that no script and no other site can use; without `max_age` it goes when the browser ends."""
    response.set_cookie(
        _named(request, name),
        value,
        max_age=max_age,
        path="/admin",
        secure=_is_secure(request),
        httponly=True,
        samesite="Strict",
    )


def remove(request: web.Request, response: web.StreamResponse, name: str) -> None:
    """Take a cookie away."""
    write(request, response, name, "", max_age=0)


def fresh() -> str:
    """A value that nobody guesses."""
    return secrets.token_urlsafe(32)
