"""The admin site keeps strangers' pages out and gives away nothing but its own files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stage.house import House, open_house, settings_for
from stage.management import Management, managing
from stage.raw import exchange

from llm_proxy.admin import CSP, read_static

PROTECTED = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@pytest.fixture
async def site(house: House) -> AsyncIterator[Management]:
    """A visitor of the admin site."""
    async with managing(house, admin=True) as visitor:
        yield visitor


@pytest.mark.parametrize("path", ["/", "/admin", "/admin/"])
async def test_the_site_begins_at_its_first_page(site: Management, path: str) -> None:
    reply = await site.ask("GET", path, token=None)
    assert (reply.status, reply.headers["Location"]) == (303, "/admin/dashboard")


async def test_every_answer_is_protected_errors_included(site: Management) -> None:
    for method, path, status in (
        ("GET", "/", 303),
        ("GET", "/admin/", 303),
        ("GET", "/admin/login", 200),
        ("GET", "/admin/static/admin.css", 200),
        ("GET", "/admin/static/nothing", 404),
        ("GET", "/admin/nothing", 404),
        ("POST", "/admin/", 405),
        ("GET", "/health", 200),
        ("GET", "/health/detailed", 401),
        ("GET", "/metrics", 200),
    ):
        reply = await site.ask(method, path, token=None)
        assert reply.status == status, path
        assert {name: reply.headers.get(name) for name in PROTECTED} == PROTECTED, path
        assert "aiohttp" not in reply.headers["Server"]


def test_the_policy_lets_no_page_run_or_load_anything_from_elsewhere() -> None:
    assert "unsafe" not in CSP
    assert "default-src 'none'" in CSP
    assert "frame-ancestors 'none'" in CSP


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("admin.css", "text/css; charset=utf-8"),
        ("admin.js", "text/javascript; charset=utf-8"),
        ("requests.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("openapi.yaml", "application/yaml"),
    ],
)
async def test_files_are_served_as_what_they_are(site: Management, name: str, kind: str) -> None:
    reply = await site.ask("GET", f"/admin/static/{name}", token=None)
    assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
    assert reply.text


def test_every_file_of_the_folder_is_served() -> None:
    folder = Path(__file__).parents[2] / "web" / "static"
    assert set(read_static()) == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "path",
    [
        "/admin/static",
        "/admin/static/",
        "/admin/static/.",
        "/admin/static/..",
        "/admin/static/../templates/login.html",
        "/admin/static/%2e%2e/templates/login.html",
        "/admin/static/..%2ftemplates%2flogin.html",
        "/admin/static/..%5ctemplates",
        "/admin/static/%2e%2e%2f%2e%2e%2fsetup.cfg",
        "/admin/static/%252e%252e",
        "/admin/static//etc/passwd",
        "/admin/static/admin.css/",
        "/admin/static/admin.css%00.txt",
        "/admin/static/ADMIN.CSS",
        "/admin/static/__init__.py",
        "/admin/templates/login.html",
        "/admin/static/x/../admin.css",
    ],
)
async def test_nothing_else_can_be_had(house: House, path: str) -> None:
    assert house.sites.admin
    reply = await exchange(house.sites.admin, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert reply
    assert reply.status in (400, 404)
    assert reply.header(b"content-type") == b"application/json"


async def test_the_admin_site_has_no_management_api_and_forwards_nothing(site: Management) -> None:
    for path in ("/manage/projects", "/manage/openapi.yaml", "/v1/chat/completions", "/v1/models"):
        assert await site.refused("GET", path) == (404, "endpoint_not_found", None)


async def test_there_is_no_admin_site_where_it_is_not_wanted(tmp_path: Path) -> None:
    async with open_house(settings_for(tmp_path, ADMIN_UI_ENABLED="false")) as house:
        assert house.sites.admin is None
