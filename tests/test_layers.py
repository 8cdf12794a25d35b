"""The house stands: imports point down, each module has its tests, tasks have names."""

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

import llm_proxy

ROOT = pathlib.Path(llm_proxy.__file__).parent
TESTS = pathlib.Path(__file__).parent

# From the ground up; what stands on one floor does not import its neighbours.
FLOORS = (
    {"errors"},
    {"secret", "clock", "ids", "spreadsheet", "counters"},
    {"settings"},
    {
        "db",
        "vault",
        "metrics",
        "logs",
        "systemd",
        "dialects",
        "grammar",
        "peers",
        "tasks",
        "deadlines",
        "redis_client",
        "sse",
        "failures",
        "spreadsheet",
    },
    {"changes", "redis_link", "news"},
    {"projects", "tokens", "audit", "usage", "operators", "sessions"},
    {"limits", "cache", "events", "providers", "master_keys", "token_counts", "token_cache", "chats"},
    {"upstream", "history", "running"},
    {"context"},
    {"middleware", "guard", "acts"},
    {"requests"},
    {"health", "connection", "admin_v1"},
    {"proxy", "manage", "admin", "wire"},
    {"server", "dispatcher", "fake_provider"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# Only their own package knows of these; everybody else goes through its interface.
IMPLEMENTATIONS = {
    "llm_proxy.db.sqlite",
    "llm_proxy.db.group",
    "llm_proxy.db.postgres",
    "llm_proxy.db.pool",
    "llm_proxy.upstream.pool",
    "llm_proxy.limits.memory",
    "llm_proxy.limits.redis",
    "llm_proxy.cache.memory",
    "llm_proxy.cache.redis",
    "llm_proxy.events.sinks.file",
    "llm_proxy.events.sinks.lunary",
    "llm_proxy.events.sinks.helicone",
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: pathlib.Path) -> str:
    return ".".join(("llm_proxy", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@functools.cache
def nodes(path: pathlib.Path) -> list[ast.AST]:
    """All of a module's syntax tree, the module itself first."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: pathlib.Path) -> Iterator[str]:
    """The full names a module imports, those inside functions too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: pathlib.Path) -> None:
    own = name_of(path).split(".")
    if len(own) == 1:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "llm_proxy" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != own[1]:
            assert LEVEL[parts[1]] < LEVEL[own[1]], f"{'.'.join(own)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_domain_knows_no_web_framework(path: pathlib.Path) -> None:
    own = name_of(path).split(".")
    if len(own) > 1 and LEVEL[own[1]] < LEVEL["middleware"]:
        assert not {name for name in imports(path) if name.startswith("aiohttp.web")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_implementations_are_known_to_their_package_only(path: pathlib.Path) -> None:
    own = name_of(path)
    for name in IMPLEMENTATIONS & set(imports(path)):
        assert own.startswith(name.rpartition(".")[0]), f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_tasks_are_started_in_one_place(path: pathlib.Path) -> None:
    if path.name != "tasks.py":
        calls = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Attribute) and call.attr in ("create_task", "ensure_future")]


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=name_of)
def test_every_module_has_its_test_file(path: pathlib.Path) -> None:
    mirrored = TESTS / path.relative_to(ROOT).parent / f"test_{path.stem.strip('_')}.py"
    assert mirrored.exists(), f"{mirrored.relative_to(TESTS.parent)} is missing"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: pathlib.Path) -> None:
    [module] = [node for node in nodes(path) if isinstance(node, ast.Module)]
    said = ast.get_docstring(module)
    assert said and said.splitlines()[0].endswith("."), "the first line of a module is one sentence"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_stay_small(path: pathlib.Path) -> None:
    assert path.read_text().count("\n") <= 400
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
