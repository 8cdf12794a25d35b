"""deploy/containers: the image holds what the program needs, compose starts what can start."""

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from stage import image
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN

from llm_proxy.server import CLOSING_SECONDS
from llm_proxy.settings import TABLE, Settings, check_serving, check_sinks, parse_duration

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((image.FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("proxy", "dispatcher")
TOOLS = Path(sys.executable).parent
MONITORING = ROOT / "deploy" / "monitoring"
DOT_ENV = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN, "ENCRYPTION_KEY": ENCRYPTION_KEY, "POSTGRES_PASSWORD": "5d0c"}


def tool(*command: str | Path) -> None:
    """Run a tool that pip installed; what it complains of fails the test."""
    done = subprocess.run([TOOLS / command[0], *command[1:]], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", image.DOCKERFILE)


def test_compose_keeps_to_its_schema() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", image.FOLDER / "compose.yaml")


def copied() -> list[str]:
    """What the build copies into itself, each file or folder at the place where it is in the project."""
    pairs = [found.words for found in image.stages()[0] if found.name == "COPY"]
    assert all(target in ("./", source[0]) for *source, target in pairs)
    return [name for *names, _ in pairs for name in names]


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    lines = [line for line in (image.FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied())
    # What may lie in a folder that is copied, the last lines keep out.
    assert {"**/__pycache__", "**/.env"} == {line for line in lines[1:] if not line.startswith("!")}


def test_what_the_build_copies_makes_a_whole_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in copied():
        source, target = ROOT / name, tree / name
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(
            source, target
        )
    code = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tree, check=True, timeout=60, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        inside = {name for name in packed.namelist() if ".dist-info/" not in name}
    command = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "llm_proxy",
        "config",
        "sql",
        "web",
        "deploy/systemd",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    named = [name.replace("deploy/systemd/", "units/") for name in listed.stdout.split()]
    assert inside == {name if name.startswith("llm_proxy/") else f"llm_proxy/{name}" for name in named}


def test_the_packages_that_are_installed_first_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    [run] = [found.words for found in image.stages()[0] if "requirements.txt" in found.text]
    code = run[run.index("-c") + 1]
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert said.split("\n") == [*config["options"]["install_requires"].split("\n"), ""]
    assert len(said.split()) > 10


def test_the_image_runs_without_root_and_writes_to_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    user, group = image.last("USER").text.split(":")
    assert int(user) > 1000 and user == group
    [made] = [found.words for found in image.stages()[-1] if found.name == "RUN"]
    assert made == ["install", "-d", "-o", user, "-g", group, "-m", "0700", "/data"]
    assert image.last("WORKDIR").text == "/data" and image.last("VOLUME").words == ["/data"]
    settings = image.settings_of(monkeypatch, {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN})
    check_serving(settings)
    written = [field.name for field in TABLE if field.metadata["default"].startswith("data/")]
    assert written and all(str(getattr(settings, name)).startswith("/data/") for name in written)
    assert set(image.last("EXPOSE").words) == {port(settings.listen_addr), port(settings.admin_ui_listen_addr)}


def port(address: str) -> str:
    return address.rpartition(":")[2]


def test_the_image_starts_and_watches_the_program_itself() -> None:
    [entry] = image.last("ENTRYPOINT").words
    assert f"{entry} =" in (ROOT / "setup.cfg").read_text()
    assert image.parsed(image.last("CMD").words).command.name == "command"
    check = image.last("HEALTHCHECK")
    [program, *arguments] = json.loads(check.text.partition("CMD ")[2])
    assert program == entry and arguments == ["health"]
    # Without a shell in front, signals reach it.
    assert all(image.last(name).text.startswith("[") for name in ("ENTRYPOINT", "CMD"))


def filled(text: str, values: dict[str, str]) -> str:
    """What compose makes of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found.groups()
        if not values.get(name) and sign == ":?":
            raise LookupError(f"{name} {rest}")
        return values.get(name) or (rest if sign == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def variables(fleet: bool) -> dict[str, str]:
    """What compose knows: .env as the guide makes it, then fleet.env."""
    more = dotenv_values(image.FOLDER / "fleet.env", interpolate=False) if fleet else {}
    return {**DOT_ENV, **{name: filled(value or "", DOT_ENV) for name, value in more.items()}}


@pytest.fixture(params=[("proxy", False), ("proxy", True), ("dispatcher", True)], ids=["alone", "fleet", "dispatcher"])
def started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Settings]:
    """A service of ours with the settings it starts with."""
    name, fleet = request.param
    values = variables(fleet)
    given = {name: filled(str(value), values) for name, value in SERVICES[name]["environment"].items()}
    return name, image.settings_of(monkeypatch, {**DOT_ENV, **given})


def test_every_service_of_ours_gets_settings_it_can_start_with(started: tuple[str, Settings]) -> None:
    name, settings = started
    fleet = settings.db_driver == "postgres"
    arguments = [filled(word, variables(fleet)) for word in SERVICES[name].get("command", image.last("CMD").words)]
    context = image.parsed(arguments)
    if name == "dispatcher":
        check_sinks(settings, (context.params["service"],))
        health = SERVICES[name]["healthcheck"]["test"]
        assert health[:2] == ["CMD", "llm-proxy"] and port(health[-1]) == port(context.params["addr"])
        image.parsed(health[2:])
    else:
        check_serving(settings)
        published = [filled(text, {}).split(":")[-1] for text in SERVICES[name]["ports"]]
        assert published == [port(settings.listen_addr), port(settings.admin_ui_listen_addr)]
        # The admin site is the machine's own, as it is without a container.
        assert SERVICES[name]["ports"][1].startswith("127.0.0.1:")
    assert settings.ships == settings.distributed_rate_limit_enabled == (settings.http_cache_backend == "redis") == fleet
    for url, default in ((settings.database_url, "5432"), (settings.redis_url, "6379")):
        if fleet:
            host = re.split(r"[/@]", url.reveal())[-2].split(":")
            assert host in (["postgres", default], ["redis", default])
    grace = parse_duration(SERVICES[name]["stop_grace_period"])
    assert grace >= settings.drain_delay + settings.shutdown_timeout + CLOSING_SECONDS
    # What .env says of it must not be overruled.
    assert "SHUTDOWN_TIMEOUT" not in SERVICES[name]["environment"]


def test_the_guide_makes_an_env_file_that_compose_and_the_program_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = re.findall(r"^\(umask .*?> \.env\)$", (ROOT / "deploy" / "CONTAINERS.md").read_text(), re.MULTILINE | re.DOTALL)
    # Not where the program would find it by itself.
    folder = tmp_path / "containers"
    folder.mkdir()
    subprocess.run(["sh", "-euc", line], cwd=folder, check=True)
    made = {name: value or "" for name, value in dotenv_values(folder / ".env", interpolate=False).items()}
    assert set(made) == set(DOT_ENV) and (folder / ".env").stat().st_mode & 0o777 == 0o600
    given = {name: filled(str(value), made) for name, value in SERVICES["proxy"]["environment"].items()}
    check_serving(image.settings_of(monkeypatch, {**made, **given}))


def test_a_missing_secret_stops_compose_with_its_name() -> None:
    with pytest.raises(LookupError, match=r"MANAGEMENT_TOKEN is missing in \.env"):
        for value in SERVICES["proxy"]["environment"].values():
            filled(value, {})


def test_by_default_the_proxy_is_alone_and_nothing_is_missing_in_any_profile() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    fleet, monitoring = {name: ["fleet"] for name in ("dispatcher", "postgres", "redis")}, ["monitoring"]
    assert profiles == {"proxy": [], **fleet, "prometheus": monitoring, "grafana": monitoring}
    assert variables(fleet=True)["COMPOSE_PROFILES"] == "fleet"
    for profile in ((), ("fleet",), ("monitoring",), ("fleet", "monitoring")):
        there = {name for name, service in SERVICES.items() if not service.get("profiles") or {*service["profiles"]} & {*profile}}
        for name in there:
            needed = SERVICES[name].get("depends_on", {})
            must = needed if isinstance(needed, list) else [on for on, how in needed.items() if how.get("required", True)]
            assert set(must) <= there, (profile, name)
            waits = [] if isinstance(needed, list) else needed
            assert all("healthcheck" in SERVICES[on] for on in waits if waits[on]["condition"] == "service_healthy")


def test_postgres_counts_as_healthy_once_it_can_be_reached() -> None:
    # While it makes its database, a server of its own listens on a socket in the file system only.
    test = SERVICES["postgres"]["healthcheck"]["test"]
    assert test[test.index("-h") + 1] == "127.0.0.1"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert "data:/data" in service["volumes"] and not {"privileged", "user", "network_mode"} & set(service)
    assert (image.FOLDER / service["build"]["context"]).resolve() == ROOT
    assert ROOT / service["build"]["dockerfile"] == image.DOCKERFILE


def test_every_volume_and_every_mounted_file_is_there() -> None:
    named = set()
    for service in SERVICES.values():
        for source in (volume.split(":")[0] for volume in service["volumes"]):
            if source.startswith("."):
                assert (image.FOLDER / source).exists(), source
            else:
                named.add(source)
        # Anything may be behind `latest` one day; ours is built here.
        assert service["image"] == COMPOSE["x-program"]["image"] or re.search(r":v?[0-9]", service["image"])
    assert named == set(COMPOSE["volumes"])


def test_prometheus_and_grafana_find_each_other_and_us(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = files_in("prometheus")
    config = yaml.safe_load(mounted["/etc/prometheus/prometheus.yml"].read_text())
    assert [mounted[f"/etc/prometheus/{name}"] for name in config["rule_files"]] == [MONITORING / "alerts.yaml"]
    settings = image.settings_of(monkeypatch, DOT_ENV)
    ports = {"proxy": int(port(settings.admin_ui_listen_addr)), "dispatcher": 8082}
    found = [found for job in config["scrape_configs"] for found in job["dns_sd_configs"]]
    assert {name: each["port"] for each in found for name in each["names"]} == ports
    assert settings.metrics_path == "/metrics"
    mounted = files_in("grafana")
    [source] = provisioned(mounted, "datasources")
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = provisioned(mounted, "dashboards")
    board = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert board.startswith(f"{provider['options']['path']}/") and mounted[board] == MONITORING / "dashboard.json"


def files_in(name: str) -> dict[str, Path]:
    """What of ours is mounted into a service, by its place there."""
    parts = [volume.split(":") for volume in SERVICES[name]["volumes"] if volume.startswith(".")]
    return {target: (image.FOLDER / source).resolve() for source, target, _ in parts}


def provisioned(mounted: dict[str, Path], what: str) -> list[dict[str, Any]]:
    """What Grafana reads in a folder of its provisioning."""
    [path] = mounted[f"/etc/grafana/provisioning/{what}"].iterdir()
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text())["providers" if what == "dashboards" else what]
    return found
