"""The house stands: imports point down, each module has its tests, tasks have names."""

import ast
import functools
import pathlib
from collections.abc import Callable, Iterator

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
    {"upstream", "history", "running", "heads", "backup", "retention"},
    {"context", "inbound"},
    {"middleware", "guard", "acts"},
    {"requests", "serving"},
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


def each(broken: Callable[[pathlib.Path], object]) -> list[str]:
    """The modules that break a rule, with what breaks it: a test for each of them and each rule would cost ten seconds."""
    return [f"{name_of(path)}: {found}" for path in MODULES if (found := broken(path))]


def test_imports_point_down() -> None:
    def upward(path: pathlib.Path) -> list[str]:
        own = name_of(path).split(".")
        if len(own) == 1:
            return []
        others = [(name, name.split(".")[1]) for name in imports(path) if name.startswith("llm_proxy.")]
        return [name for name, top in others if top in LEVEL and top != own[1] and LEVEL[top] >= LEVEL[own[1]]]

    assert not each(upward)


def test_the_domain_knows_no_web_framework() -> None:
    def web(path: pathlib.Path) -> list[str]:
        own = name_of(path).split(".")
        is_domain = len(own) > 1 and LEVEL[own[1]] < LEVEL["middleware"]
        return [name for name in imports(path) if is_domain and name.startswith("aiohttp.web")]

    assert not each(web)


def test_implementations_are_known_to_their_package_only() -> None:
    def foreign(path: pathlib.Path) -> list[str]:
        own = name_of(path)
        return [name for name in IMPLEMENTATIONS & set(imports(path)) if not own.startswith(name.rpartition(".")[0])]

    assert not each(foreign)


def test_tasks_are_started_in_one_place() -> None:
    def started(path: pathlib.Path) -> list[str]:
        calls = [node.func for node in nodes(path) if isinstance(node, ast.Call) and path.name != "tasks.py"]
        names = [call.attr for call in calls if isinstance(call, ast.Attribute)]
        return [name for name in names if name in ("create_task", "ensure_future")]

    assert not each(started)


def test_every_module_has_its_test_file() -> None:
    def missing(path: pathlib.Path) -> str | None:
        mirrored = TESTS / path.relative_to(ROOT).parent / f"test_{path.stem.strip('_')}.py"
        return None if path.stem == "__init__" or mirrored.exists() else str(mirrored.relative_to(TESTS.parent))

    assert not each(missing)


def test_every_module_says_in_one_sentence_what_it_is_for() -> None:
    def silent(path: pathlib.Path) -> bool:
        [module] = [node for node in nodes(path) if isinstance(node, ast.Module)]
        said = ast.get_docstring(module)
        return not (said and said.splitlines()[0].endswith("."))

    assert not each(silent)


def test_modules_and_functions_stay_small() -> None:
    def large(path: pathlib.Path) -> list[str]:
        functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        found = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
        return [*found, *(["the module"] if path.read_text().count("\n") > 400 else [])]

    assert not each(large)
