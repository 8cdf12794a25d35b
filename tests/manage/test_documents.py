"""The description of the API is true: every operation of it is driven, and nothing is left out of it."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jsonschema import Draft202012Validator
from multidict import CIMultiDictProxy
from stage.house import House, open_house, settings_for
from stage.management import Management, Reply, managing
from stage.postgres import Postgres

from llm_proxy import __version__
from llm_proxy.admin import ACTS, PAGES, STREAMS
from llm_proxy.admin import create_app as create_admin_app
from llm_proxy.admin.visits import ProxySite
from llm_proxy.errors import RULES
from llm_proxy.operators import Operators
from llm_proxy.projects import DEFAULT_ID
from llm_proxy.server import create_proxy_app

DESCRIPTION = resources.files("llm_proxy.web").joinpath("static/openapi.yaml").read_bytes()
# Every process that runs tests reads it when it collects them; in Python alone that takes a third of a second.
DOCUMENT = yaml.load(DESCRIPTION, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
UNKNOWN = "0199c5f2-7d3a-7c1e-8f00-0123456789ab"
KEY = "sk-first-0123456789abcdef"
TAKEN_KEY = "a-master-key-that-is-taken"
ADDRESS = {"X-Forwarded-For": "203.0.113.9"}
METRICS_TOKEN = "metrics-token-that-is-long-enough-for-anyone"
BAD: list[tuple[str, dict[str, Any]]] = [
    ("ProjectCreate", {}),
    ("ProjectCreate", {"name": ""}),
    ("ProjectCreate", {"name": "a\nb"}),
    ("ProjectCreate", {"name": "demo", "id": UNKNOWN}),
    ("ProjectCreate", {"name": "demo", "api_base": "https://example.com"}),
    ("ProjectUpdate", {"is_active": None}),
    ("ProjectUpdate", {"provider_type": "openai"}),
    ("ProviderCreate", {}),
    ("ProviderCreate", {"api_key": KEY, "id": "a/b"}),
    ("ProviderCreate", {"api_key": KEY, "weight": -1}),
    ("ProviderCreate", {"api_key": KEY, "model_mapping": []}),
    ("ProviderUpdate", {"model_mapping": {"gpt-4": {"name": "x"}}}),
    ("PoolProviderCreate", {"provider_key": "a"}),
    ("PoolProviderCreate", {"api_key": KEY, "model_mapping": {"gpt-4": 1}}),
    ("PoolProviderUpdate", {"weight": 0.5}),
    ("EnabledStatus", {}),
    ("EnabledStatus", {"is_enabled": 1}),
    ("MasterKeyCreate", {"key": "my-own-master-key-0009"}),
    ("MasterKeyCreate", {"name": "a", "key": "too short"}),
    ("MasterKeyUpdate", {"allowed_models": None}),
    ("MasterKeyUpdate", {"expires_at": None}),
    ("Rotation", {"grace_seconds": -1}),
    ("HealthCheckAsk", {"provider_ids": []}),
    ("HealthCheckAsk", {"timeout_secs": 0}),
    ("ProviderUpdate", {"provider_params": {"a": {}}}),
    ("TokenCreate", {}),
    ("TokenCreate", {"project_id": UNKNOWN, "max_requests": 0}),
    ("TokenCreate", {"project_id": UNKNOWN, "duration_minutes": 525_601}),
    ("TokenCreate", {"project_id": UNKNOWN, "duration_minutes": 1, "expires_at": None}),
    ("TokenUpdate", {"allowed_models": None}),
    ("Purge", {}),
    ("Purge", {"all": False}),
    ("Purge", {"method": "GET"}),
    ("Purge", {"path": "v1/models"}),
    ("Purge", {"all": True, "prefix": "/"}),
    ("TokenUpdate", {"rate_limit": -1}),
    ("ProjectCreate", {"name": "demo", "max_parallel": 0.5}),
]


class Operation(NamedTuple):
    """One method at one path."""

    method: str
    path: str
    described: dict[str, Any]

    def answers(self, status: str) -> bool:
        """Whether the description knows this status here."""
        return status in self.described["responses"]


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` refers to, or the node itself."""
    while "$ref" in node:
        found = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def operations() -> Iterator[Operation]:
    """All that the description has, a path's common parameters put into each."""
    for path, item in DOCUMENT["paths"].items():
        common = item.get("parameters", [])
        for method in ("get", "post", "put", "patch", "delete"):
            if method in item:
                parameters = [resolved(one) for one in [*common, *item[method].get("parameters", [])]]
                yield Operation(method.upper(), path, {**item[method], "parameters": parameters})


OPERATIONS = list(operations())
MANAGED = [one for one in OPERATIONS if "security" not in one.described]


def problems(schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a value."""
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def check(operation: Operation, reply: Reply, status: int) -> None:
    """An answer is as the description says: status, headers, kind, body."""
    name = f"{operation.method} {operation.path}: {reply.status} {reply.text[:500]}"
    assert reply.status == status, name
    described = resolved(operation.described["responses"][str(status)])
    check_headers(described.get("headers", {}), reply.headers)
    if "content" not in described:
        assert reply.text == "", name
        return
    kind = reply.headers["Content-Type"].partition(";")[0]
    schema = described["content"][kind]["schema"]
    assert problems(schema, reply.data if kind == "application/json" else reply.text) == [], name


def check_headers(described: dict[str, Any], headers: CIMultiDictProxy[str]) -> None:
    """Every header that is described is there, and is what it should be."""
    for name, header in described.items():
        schema = resolved(header)["schema"]
        value: object = int(headers[name]) if schema.get("type") == "integer" else headers[name]
        assert problems(schema, value) == [], name


class Scene(NamedTuple):
    """Things to work on, made anew for each request."""

    project: str
    provider: str
    token: str
    event: str
    pooled: str
    master_key: str

    def place(self, operation: Operation) -> str:
        """The path with real ids."""
        ids = {
            "/manage/tokens/": self.token,
            "/manage/audit/": self.event,
            "/admin/v1/providers/": self.pooled,
            "/admin/v1/health/providers/": self.pooled,
            "/admin/v1/": self.master_key,
        }
        id = next((id for prefix, id in ids.items() if operation.path.startswith(prefix)), self.project)
        return operation.path.replace("{id}", id).replace("{provider_id}", self.provider)


async def set_scene(api: Management) -> Scene:
    """A project with a provider and a token."""
    project = await api.project(secrets.token_hex(8), api_key=KEY)
    [provider] = (await api.done("GET", f"/manage/projects/{project}/providers"))["data"]
    token = await api.token(project, max_requests=9, allowed_models=["gpt-4o"], metadata={"a": 1})
    # Nothing listens there, so that a check of it calls nobody.
    place = {"provider_type": "custom", "api_base": "http://127.0.0.1:9", "api_key": KEY}
    pooled = await api.done("POST", "/admin/v1/providers", place)
    master_key = await api.done("POST", "/admin/v1/master-keys", {"name": "scene"})
    [event] = await api.audit(limit="1")
    return Scene(project, provider["id"], token["id"], event["id"], pooled["id"], master_key["id"])


def nowhere(id: str) -> Scene:
    """A scene in which everything has this id."""
    return Scene(id, id, id, id, id, id)


def bodies(operation: Operation, scene: Scene) -> list[Any]:
    """The request bodies that the description gives as examples; None where there are none."""
    content = operation.described.get("requestBody", {}).get("content", {})
    examples = [example["value"] for example in content.get("application/json", {}).get("examples", {}).values()]
    of_scene = {"project_id": scene.project, "provider_ids": [scene.pooled]}
    return [{**body, **{name: of_scene[name] for name in of_scene if name in body}} for body in examples] or [None]


def queries(operation: Operation, scene: Scene) -> list[dict[str, str]]:
    """No parameters, each of them alone, all of them together."""
    of_scene = {"project_id": scene.project, "token_id": scene.token}
    found: dict[str, str] = {}
    for parameter in operation.described["parameters"]:
        name = parameter["name"]
        if parameter["in"] == "query":
            example = parameter.get("example", scene.provider if "/ProviderId" in str(parameter["schema"]) else UNKNOWN)
            found[name] = of_scene.get(name, json.dumps(example) if isinstance(example, bool) else str(example))
    return [{}, *({name: value} for name, value in found.items()), *([found] if found else [])]


@pytest.fixture
async def behind_proxy(tmp_path: Path) -> AsyncIterator[House]:
    """A house whose clients' addresses come with X-Forwarded-For."""
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES="127.0.0.1")) as house:
        yield house


async def test_every_operation_answers_as_described(api: Management) -> None:
    for operation in OPERATIONS:
        [status] = [int(status) for status in operation.described["responses"] if status.startswith("2")]
        scene = await set_scene(api)
        for query in queries(operation, scene):
            for body in bodies(operation, scene):
                check(operation, await api.ask(operation.method, scene.place(operation), body, params=query), status)


async def test_the_admin_site_answers_as_described(house: House, api: Management) -> None:
    async with managing(house, admin=True) as admin:
        for operation in OPERATIONS:
            if not operation.path.startswith("/manage"):
                [status] = [int(status) for status in operation.described["responses"] if status.startswith("2")]
                scene = await set_scene(api)
                for body in bodies(operation, scene):
                    check(operation, await admin.ask(operation.method, scene.place(operation), body), status)
                if operation in MANAGED:
                    check(operation, await admin.ask(operation.method, scene.place(operation), token=None), 401)
                    await forgiven(house)


async def forgiven(house: House) -> None:
    """Let the house forget who failed."""
    house.context.operators = Operators(house.context.settings.management_token)


async def test_the_metrics_have_both_forms_described(api: Management) -> None:
    [operation] = [one for one in OPERATIONS if one.path == "/metrics"]
    reply = await api.ask("GET", "/metrics", headers={"Accept": "application/json"})
    assert reply.data is not None
    check(operation, reply, 200)


async def test_strangers_are_answered_as_described(behind_proxy: House) -> None:
    assert len(MANAGED) >= 20
    async with managing(behind_proxy) as api:
        for number, operation in enumerate(MANAGED):
            path = nowhere("p").place(operation)
            reply = await api.ask(operation.method, path, token=None, headers={"X-Forwarded-For": f"203.0.113.{number}"})
            check(operation, reply, 401)
        for _ in range(10):
            await api.ask("GET", "/manage/version", token="guess", headers=ADDRESS)
        for operation in MANAGED:
            check(operation, await api.ask(operation.method, nowhere("p").place(operation), headers=ADDRESS), 429)


async def test_what_is_not_there_is_answered_as_described(behind_proxy: House) -> None:
    async with managing(behind_proxy) as api:
        for operation in OPERATIONS:
            if operation.answers("404"):
                body: Any = {} if operation.method == "PATCH" else None
                if operation.path == "/manage/tokens":
                    body = {"project_id": UNKNOWN}
                elif operation.path.endswith("/status"):
                    body = {"is_enabled": True}
                elif operation.path.endswith("/providers") and operation.method == "POST":
                    body = {"api_key": KEY}
                path = nowhere(UNKNOWN).place(operation)
                check(operation, await api.ask(operation.method, path, body, headers=ADDRESS), 404)


async def test_bad_bodies_and_queries_are_answered_as_described(api: Management) -> None:
    scene = await set_scene(api)
    for operation in OPERATIONS:
        path = scene.place(operation)
        if operation.answers("400") and operation.method == "GET":
            check(operation, await api.ask("GET", f"{path}?colour=red"), 400)
        elif operation.answers("400"):
            for raw in (b'{"colour": 1}', b"{", b"{} {}", b'{"name": 1, "name": 2}', b'{"name": "\\ud800"}'):
                check(operation, await api.ask(operation.method, path, raw=raw), 400)
            check(operation, await api.ask(operation.method, path, raw=b" " * (2**20 + 1)), 413)
        assert operation.answers("400") == operation.answers("413") or operation.method == "GET"


async def test_conflicts_are_answered_as_described(api: Management) -> None:
    scene, taken = await set_scene(api), {"name": "taken"}
    await api.done("POST", "/manage/projects", taken)
    conflicts: dict[str, Any] = {
        "createProject": taken,
        "updateProject": taken,
        "createProvider": {"id": scene.provider, "api_key": KEY},
        "createPoolProvider": {"provider_key": scene.provider, "api_key": KEY},
        **{f"create{name}": {"name": "same", "id": scene.master_key} for name in ("MasterKey", "Credential")},
        **{f"update{name}": {"key": TAKEN_KEY} for name in ("MasterKey", "Credential")},
    }
    await api.done("POST", "/admin/v1/master-keys", {"name": "other", "key": TAKEN_KEY})
    # These have tests of their own, since they take more than a body.
    elsewhere = {"deleteProject", "reloadConfig"}
    described = [one for one in OPERATIONS if one.answers("409") and one.described["operationId"] not in elsewhere]
    assert {one.described["operationId"] for one in described} == set(conflicts)
    for operation in described:
        body = conflicts[operation.described["operationId"]]
        check(operation, await api.ask(operation.method, scene.place(operation), body), 409)
    await api.done("POST", f"/manage/projects/{scene.project}/providers", {"api_key": KEY})
    [update] = [one for one in described if one.method == "PATCH"]
    check(update, await api.ask("PATCH", scene.place(update), {"api_key": KEY}), 409)
    [delete] = [one for one in OPERATIONS if one.described["operationId"] == "deleteProject"]
    check(delete, await api.ask("DELETE", f"/manage/projects/{DEFAULT_ID}"), 409)


async def test_a_guarded_metrics_route_is_answered_as_described(tmp_path: Path) -> None:
    guarded = [one for one in OPERATIONS if one.path.startswith("/metrics")]
    async with open_house(settings_for(tmp_path, METRICS_TOKEN=METRICS_TOKEN)) as house, managing(house) as api:
        for operation in guarded:
            check(operation, await api.ask("GET", operation.path), 401)
            check(operation, await api.ask("GET", operation.path, token=METRICS_TOKEN), 200)


async def test_with_the_database_away_every_operation_answers_as_described(
    tmp_path: Path, postgres: Postgres, postgres_url: str
) -> None:
    async with open_house(settings_for(tmp_path, DATABASE_URL=postgres_url)) as house, managing(house) as api:
        scene = await set_scene(api)
        postgres.stop()
        try:
            asked = [api.ask(one.method, scene.place(one), bodies(one, scene)[0]) for one in OPERATIONS]
            replies = await asyncio.gather(*asked)
        finally:
            postgres.start()
        for operation, reply in zip(OPERATIONS, replies, strict=True):
            check(operation, reply, 503 if operation.answers("503") else 200)


def routes_of(app: Any) -> set[tuple[str, str]]:
    """Method and path of every route of an application."""
    return {(route.method, route.resource.canonical) for route in app.router.routes() if route.method != "HEAD"}


async def test_the_description_has_every_route_and_no_other(house: House) -> None:
    described = {(one.method, one.path) for one in OPERATIONS}
    assert routes_of(create_proxy_app(house.context)) == described
    pages = {("GET", path) for path in ("/", "/admin", "/admin/", "/admin/static/{name}", "/admin/login")}
    pages |= {("POST", "/admin/login"), *(("GET", f"/admin/{path}") for path, _ in (*PAGES, *STREAMS))}
    pages |= {("POST", f"/admin/{path}") for path, _ in ACTS}
    app = create_admin_app(house.context, ProxySite(house.url, wildcard=False))
    assert routes_of(app) - pages == {one for one in described if not one[1].startswith("/manage")}


async def test_both_sites_serve_the_description_to_anyone(house: House, api: Management) -> None:
    async with managing(house, admin=True) as admin:
        for reply in (
            await api.ask("GET", "/manage/openapi.yaml", token=None),
            await admin.ask("GET", "/admin/static/openapi.yaml"),
        ):
            assert (reply.status, reply.headers["Content-Type"]) == (200, "application/yaml")
            assert reply.text.encode() == DESCRIPTION


async def test_the_version_is_told_to_the_operator(each_api: Management, each_house: House) -> None:
    found = await each_api.done("GET", "/manage/version")
    assert found["version"] == DOCUMENT["info"]["version"] == __version__
    assert found["database"] == each_house.context.settings.db_driver
    assert re.fullmatch(r"\d{4}_\w+", found["schema"])


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in the description."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(inner)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = {node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)}
    there = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    assert used == {one for one in there if "/securitySchemes/" not in one}


def test_every_operation_says_what_it_is() -> None:
    ids = [one.described["operationId"] for one in OPERATIONS]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for operation in OPERATIONS:
        assert operation.described["summary"].endswith("."), operation
        assert set(operation.described["tags"]) <= tags
        assert all(parameter["description"] for parameter in operation.described["parameters"])
        assert set(re.findall(r"{(\w+)}", operation.path)) == {
            parameter["name"] for parameter in operation.described["parameters"] if parameter["in"] == "path"
        }


def test_every_example_fits_its_schema() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", []):
            assert problems(schema, example) == [], name
    for node in nodes(DOCUMENT["paths"]):
        for example in node.get("examples", {}).values() if "schema" in node else ():
            assert problems(node["schema"], example["value"]) == []
    for response in DOCUMENT["components"]["responses"].values():
        for content in response.get("content", {}).values():
            for example in content.get("examples", {}).values():
                assert problems(content["schema"], example["value"]) == []


def test_every_code_is_one_of_ours() -> None:
    assert set(DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"]) <= set(RULES)


async def test_the_description_refuses_what_the_server_refuses(api: Management) -> None:
    scene = await set_scene(api)
    for schema, bad in BAD:
        reference = {"$ref": f"#/components/schemas/{schema}"}
        assert problems(reference, bad), bad
        body = {**bad, "project_id": scene.project} if "project_id" in bad else bad
        for operation in [one for one in OPERATIONS if reference in nodes(one.described.get("requestBody", {}))]:
            check(operation, await api.ask(operation.method, scene.place(operation), body), 400)
