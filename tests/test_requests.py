"""What a management request may say, tried on every route that takes a body or a list's parameters."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage.house import House
from stage.management import Management

from llm_proxy.errors import ApiError
from llm_proxy.requests import read_object

LISTS = ("/manage/projects", "/manage/tokens", "/manage/audit", "/manage/projects/{project}/providers")
WRITES = (
    ("POST", "/manage/projects"),
    ("PATCH", "/manage/projects/{project}"),
    ("POST", "/manage/projects/{project}/tokens/revoke"),
    ("POST", "/manage/projects/{project}/providers"),
    ("PATCH", "/manage/projects/{project}/providers/{provider}"),
    ("POST", "/manage/tokens"),
    ("PATCH", "/manage/tokens/{token}"),
    ("POST", "/admin/v1/providers"),
    ("POST", "/admin/v1/master-keys"),
    ("POST", "/admin/v1/config/reload"),
    ("POST", "/admin/v1/health/check"),
)
BAD_PARAMETERS = [
    ("limit=0", "limit"),
    ("limit=201", "limit"),
    ("limit=-1", "limit"),
    ("limit=+1", "limit"),
    ("limit=1.0", "limit"),
    ("limit=1e2", "limit"),
    ("limit=x", "limit"),
    ("limit=", "limit"),
    ("limit=%D9%A1", "limit"),
    ("limit=00000000199999", "limit"),
    ("limit=1&limit=1", "limit"),
    ("after=", "after"),
    ("after=%27%20OR%201=1", "after"),
    ("after=../x", "after"),
    ("colour=red", "colour"),
    ("offset=10", "offset"),
    ("LIMIT=1", "LIMIT"),
]
BAD_FILTERS = [
    ("/manage/projects", "name=", "name"),
    ("/manage/projects", "is_active=", "is_active"),
    ("/manage/projects", "is_active=1", "is_active"),
    ("/manage/projects", "is_active=True", "is_active"),
    ("/manage/tokens", "project_id=", "project_id"),
    ("/manage/tokens", "status=", "status"),
    ("/manage/tokens", "status=dead", "status"),
    ("/manage/audit", "action=", "action"),
    ("/manage/audit", "search=", "search"),
    ("/manage/audit", "outcome=fine", "outcome"),
    ("/manage/audit", "start_time=yesterday", "start_time"),
    ("/manage/audit", "start_time=2026-01-01T00:00:00", "start_time"),
    ("/manage/audit", "end_time=1767225600", "end_time"),
    ("/manage/audit", "end_time=", "end_time"),
]

Fill = Callable[[str], str]


@pytest.fixture
async def fill(api: Management) -> Fill:
    """Puts the ids of a project, a provider and a token into a path."""
    project = await api.project(api_key="sk-first-0123456789abcdef")
    [provider] = (await api.done("GET", f"/manage/projects/{project}/providers"))["data"]
    token = await api.token(project)
    return lambda path: path.format(project=project, provider=provider["id"], token=token["id"])


def refusal_of(raw: bytes) -> tuple[str, str | None]:
    """Code and param with which a body is refused."""
    with pytest.raises(ApiError) as caught:
        read_object(raw)
    return caught.value.code, caught.value.param


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json", "body"),
        (b"nonsense", "invalid_json", "body"),
        (b"{'name': 1}", "invalid_json", "body"),
        (b'{"name": 1,}', "invalid_json", "body"),
        (b'{"name": NaN}', "invalid_json", "body"),
        (b'{"name": -Infinity}', "invalid_json", "body"),
        (b'{"name": ' + b"9" * 5000 + b"}", "invalid_json", "body"),
        (b'{"name": "\xff"}', "invalid_json", "body"),
        (b'\xef\xbb\xbf{"name": 1}', "invalid_json", "body"),
        ('{"name": 1}'.encode("utf-16"), "invalid_json", "body"),
        (b'{"name": "\\ud800"}', "invalid_json", "body"),
        (b'{"\\udc00": 1}', "invalid_json", "body"),
        (b'{"name": "\x00"}', "invalid_json", "body"),
        (b'{"name": "a\nb"}', "invalid_json", "body"),
        (b"[]", "invalid_json", "body"),
        (b"null", "invalid_json", "body"),
        (b'"name"', "invalid_json", "body"),
        (b"{}" * 2, "invalid_field", "body"),
        (b'{"name": 1} x', "invalid_field", "body"),
        (b'{"name": 1}\x00', "invalid_field", "body"),
        (b'{"name": 1, "name": 1}', "duplicate_key", "name"),
        (b'{"name": 1, "n\\u0061me": 2}', "duplicate_key", "name"),
        (b'{"metadata": {"deep": 1, "deep": 2}}', "duplicate_key", "deep"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "duplicate_key", "?"),
        (b'{"a": ' * 100_000, "invalid_json", "body"),
        (b"[" * 100_000, "invalid_json", "body"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_json", "body"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else "",
)
def test_a_body_that_can_be_read_in_two_ways_or_none_is_refused(raw: bytes, code: str, param: str) -> None:
    assert refusal_of(raw) == (code, param)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", {}),
        (b" \r\n\t", {}),
        (b"{}", {}),
        (b' {"name": "\\u00e4\xc3\xa4"} \n', {"name": "ää"}),
        (b'{"a": {"x": 1}, "b": {"x": 1}}', {"a": {"x": 1}, "b": {"x": 1}}),
        (b'{"a": 12345678901234567890123}', {"a": 12345678901234567890123}),
    ],
)
def test_an_object_is_read_as_it_is_written(raw: bytes, found: dict[str, Any]) -> None:
    assert read_object(raw) == found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.booleans())
def test_whatever_json_writes_is_read_back(value: dict[str, Any], ascii: bool) -> None:
    assert read_object(json.dumps(value, ensure_ascii=ascii).encode()) == value


@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    try:
        assert isinstance(read_object(raw), dict)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_every_write_holds_to_the_rules_of_bodies(api: Management, fill: Fill, method: str, path: str) -> None:
    path = fill(path)
    for raw, code, param in (
        (b'{"colour": "red"}', "invalid_field", "colour"),
        (json.dumps({"x" * 5000: 1}).encode(), "invalid_field", "x" * 100),
        (b'{"name": "a", "name": "b"}', "duplicate_key", "name"),
        (b"{} {}", "invalid_field", "body"),
        (b"[]", "invalid_json", "body"),
        (b'{"a": ' * 100_000, "invalid_json", "body"),
    ):
        assert await api.refused(method, path, raw=raw) == (400, code, param)
    assert await api.refused(method, path, raw=b" " * (1024 * 1024 + 1)) == (413, "request_too_large", None)
    gzipped = {"Content-Encoding": "gzip"}
    assert await api.refused(method, path, raw=b"{}", headers=gzipped) == (400, "encoded_body", "body")


async def test_a_body_that_is_not_json_is_refused_whatever_it_claims_to_be(api: Management) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert await api.refused("POST", "/manage/projects", raw=b"name=demo", headers=headers) == (400, "invalid_json", "body")
    assert (await api.ask("POST", "/manage/projects", raw=b'{"name": "demo"}', headers=headers)).status == 201


async def test_a_wrong_parameter_of_a_list_is_refused(api: Management, fill: Fill) -> None:
    for path in LISTS:
        for query, param in BAD_PARAMETERS:
            assert await api.refused("GET", f"{fill(path)}?{query}") == (400, "invalid_field", param), (path, query)


async def test_a_cursor_that_is_no_id_does_not_let_the_list_through(api: Management, fill: Fill) -> None:
    for path in LISTS[:3]:
        assert await api.refused("GET", f"{path}?after=zzz") == (400, "invalid_field", "after"), path


async def test_a_wrong_filter_is_refused_rather_than_ignored(api: Management) -> None:
    for path, query, param in BAD_FILTERS:
        assert await api.refused("GET", f"{path}?{query}") == (400, "invalid_field", param), query


async def test_lists_are_empty_before_anything_was_made(each_api: Management) -> None:
    for path in LISTS[:3]:
        assert await each_api.done("GET", path) == {"object": "list", "data": [], "has_more": False, "next": None}


async def make_project(api: Management, number: int) -> str:
    """A project."""
    return await api.project(f"project {number}")


async def make_token(api: Management, number: int) -> str:
    """A token of a project that all share."""
    found = (await api.done("GET", "/manage/projects", params={"name": "shared"}))["data"]
    return str((await api.token(found[0]["id"] if found else await api.project("shared"), name=str(number)))["id"])


async def make_audit_event(api: Management, number: int) -> str:
    """An audit event, by an act that leaves one."""
    await api.project(f"audited {number}")
    return str((await api.audit(limit="1"))[0]["id"])


@pytest.mark.parametrize(
    ("path", "make"),
    [("/manage/projects", make_project), ("/manage/tokens", make_token), ("/manage/audit", make_audit_event)],
    ids=["projects", "tokens", "audit"],
)
async def test_paging_visits_everything_once_while_rows_are_added(each_api: Management, path: str, make: Any) -> None:
    there = [await make(each_api, number) for number in range(7)]
    visited: list[str] = []
    after: dict[str, str] = {}
    for number in range(100, 200):
        page = await each_api.done("GET", path, params={"limit": "2", **after})
        assert len(page["data"]) <= 2
        visited += [one["id"] for one in page["data"]]
        await make(each_api, number)
        assert page["has_more"] is (page["next"] is not None)
        if not page["has_more"]:
            break
        assert page["next"] == visited[-1]
        after = {"after": page["next"]}
    assert len(visited) == len(set(visited))
    assert set(there) <= set(visited)
    assert visited == sorted(visited, reverse=True)


async def test_a_page_holds_fifty_entries_unless_told_otherwise_and_two_hundred_at_most(api: Management, house: House) -> None:
    await asyncio.gather(*(api.project(f"p{number}") for number in range(205)))
    sizes = {None: 50, "1": 1, "200": 200}
    for limit, size in sizes.items():
        page = await api.done("GET", "/manage/projects", params={"limit": limit} if limit else {})
        assert (len(page["data"]), page["has_more"]) == (size, True)
