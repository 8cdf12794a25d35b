"""deploy/kubernetes: what kustomize makes of it is valid, and fits the program and itself."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage import image, manifests
from stage.manifests import Manifest, of_kind, templates

from llm_proxy.db import migrate
from llm_proxy.providers.profile_file import load_profiles, packaged_path
from llm_proxy.server import CLOSING_SECONDS
from llm_proxy.settings import TABLE, Settings, check_serving, check_sinks

# The oldest Kubernetes that anybody still maintains, nearly; the newest that the tool knows.
VERSIONS = ("1.30", "1.37")
# The customary max_connections of PostgreSQL, less those that it keeps for superusers.
CONNECTIONS = 100 - 3
ALL = {overlay: manifests.read(manifests.file_of(overlay).read_text()) for overlay in manifests.OVERLAYS}
SERVING = [overlay for overlay in ALL if overlay != "production/migration"]
PODS = [pytest.param(overlay, name, id=f"{overlay} {name}") for overlay, found in ALL.items() for name in templates(found)]
OURS = [case for case in PODS if case.values[1] != "prometheus"]

every_overlay_that_serves = pytest.mark.parametrize("overlay", SERVING)
every_pod = pytest.mark.parametrize(("overlay", "name"), PODS)
every_pod_of_ours = pytest.mark.parametrize(("overlay", "name"), OURS)


def test_the_rendered_manifests_are_those_of_the_files() -> None:
    first = {path.read_text().partition("\n")[0] + "\n" for path in map(manifests.file_of, ALL)}
    assert first == {manifests.first_line()}, "run scripts/render-manifests, which needs kubectl"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="SKIPPED: kubectl missing, so deploy/kubernetes is not rendered anew")
@pytest.mark.parametrize("overlay", ALL)
def test_kustomize_makes_these_manifests(overlay: str) -> None:
    assert manifests.read(manifests.render(overlay)) == ALL[overlay]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_manifest(version: str) -> None:
    tool = Path(sys.executable).parent / "kubernetes-validate"
    files = [str(manifests.file_of(overlay)) for overlay in ALL]
    done = subprocess.run([tool, "--strict", "-k", version, *files], capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout.splitlines()
    assert done.returncode == 0, said
    # What Kubernetes does not bring with it has its own test here.
    unknown = [line for line in said if "passed for resource" not in line]
    assert unknown and all("schema for kind ServiceMonitor" in line for line in unknown), unknown
    assert len(said) == sum(map(len, ALL.values()))


def container_of(overlay: str, name: str) -> Manifest:
    """The only container of a pod."""
    [found] = templates(ALL[overlay])[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def env_of(overlay: str, name: str) -> dict[str, str]:
    """The environment that Kubernetes gives a container."""
    container = container_of(overlay, name)
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(ALL[overlay], "ConfigMap")}
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        env |= maps[source["configMapRef"]["name"]]
    return env | {one["name"]: one["value"] for one in container.get("env", [])}


@pytest.fixture
def settings_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The settings that a pod of an overlay starts with; its Secret is as the guide makes it."""

    def read(overlay: str, name: str) -> Settings:
        production = overlay != "dev"
        env = env_of(overlay, name)
        secret = templates(ALL[overlay])[name]["spec"]["volumes"][-1]
        assert (secret["name"], secret["secret"]["secretName"]) == ("secrets", "llm-proxy")
        mounts = {mount["name"]: mount["mountPath"] for mount in container_of(overlay, name)["volumeMounts"]}
        assert mounts["secrets"] == env["CREDENTIALS_DIRECTORY"]
        for key, value in image.SECRETS.items():
            if production or key in ("MANAGEMENT_TOKEN", "ENCRYPTION_KEY"):
                (tmp_path / key).write_text(value)
        return image.settings_of(monkeypatch, {**env, "CREDENTIALS_DIRECTORY": str(tmp_path)})

    return read


@every_pod_of_ours
def test_every_pod_starts_with_its_settings(settings_for: Any, overlay: str, name: str) -> None:
    settings = settings_for(overlay, name)
    known = {field.name.upper() for field in TABLE} | {"CREDENTIALS_DIRECTORY"}
    assert set(env_of(overlay, name)) <= known
    command = image.parsed(container_of(overlay, name).get("args", image.last("CMD").words))
    if name == "llm-proxy":
        check_serving(settings)
    elif name == "llm-proxy-dispatcher":
        check_sinks(settings, (command.params["service"],))
        ports = container_of(overlay, name)["ports"]
        assert settings.redis_url and command.params["addr"] == f":{ports[0]['containerPort']}"
    else:
        assert command.info_name and "Apply" in str(command.command.help)
    assert settings.db_driver == ("sqlite" if overlay == "dev" else "postgres")
    assert settings.ships == (overlay == "production-with-events" and name != "llm-proxy-migration")


def test_the_guide_makes_the_secret_that_pods_read() -> None:
    given = re.findall(r"--from-literal=(\w+)=", (manifests.ROOT / "deploy" / "KUBERNETES.md").read_text())
    first = ["MANAGEMENT_TOKEN", "ENCRYPTION_KEY"]
    assert given == [*first, *first, *[name for name in image.SECRETS if name not in first]]


@every_pod
def test_every_pod_keeps_to_the_restricted_standard(overlay: str, name: str) -> None:
    spec, container = templates(ALL[overlay])[name]["spec"], container_of(overlay, name)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}
    # Or variables such as LLM_PROXY_PORT come in, which look like misspelt settings.
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert container["resources"]["requests"].keys() == {"cpu", "memory"} and "memory" in container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


@every_pod_of_ours
def test_every_pod_of_ours_is_the_image_of_the_dockerfile(overlay: str, name: str) -> None:
    images = {container_of(*case.values)["image"] for case in OURS}
    assert len(images) == 1
    user = int(image.last("USER").text.split(":")[0])
    context = templates(ALL[overlay])[name]["spec"]["securityContext"]
    assert {context["runAsUser"], context["runAsGroup"], context["fsGroup"]} == {user}


def seconds_to_stop(settings: Settings, container: Manifest) -> float:
    """How long a stop may take, from the moment that Kubernetes wants it."""
    before = container["lifecycle"]["preStop"]["exec"]["command"] if "lifecycle" in container else ["sleep", "0"]
    assert before[0] == "sleep"
    return float(before[1]) + settings.drain_delay + settings.shutdown_timeout + CLOSING_SECONDS


@every_overlay_that_serves
def test_kubernetes_waits_for_a_stop_to_its_end(settings_for: Any, overlay: str) -> None:
    for name, template in templates(ALL[overlay]).items():
        if name.startswith("llm-proxy"):
            needed = seconds_to_stop(settings_for(overlay, name), container_of(overlay, name))
            assert needed <= template["spec"]["terminationGracePeriodSeconds"], name
    settings = settings_for(overlay, "llm-proxy")
    # What asks /ready must have seen 503 before connections are refused.
    probe = container_of(overlay, "llm-proxy")["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= settings.drain_delay


@every_pod_of_ours
def test_probes_ask_what_is_served_there(settings_for: Any, overlay: str, name: str) -> None:
    container = container_of(overlay, name)
    probes = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
    if name == "llm-proxy-migration":
        return
    dispatcher = name == "llm-proxy-dispatcher"
    # A database that is away must not have pods killed: only /ready may say so.
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "livenessProbe": "/health" if dispatcher else "/live",
        "readinessProbe": "/ready",
        **({} if dispatcher else {"startupProbe": "/live"}),
    }
    settings = settings_for(overlay, name)
    ports = {port["name"]: f":{port['containerPort']}" for port in container["ports"]}
    if not dispatcher:
        assert ports == {"proxy": settings.listen_addr, "admin": settings.admin_ui_listen_addr}
        # Probes come by the pod's address.
        assert settings.allowed_hosts == ()
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] > migrate.LOCK_SECONDS
    assert {probe["port"] for probe in probes.values()} <= set(ports)


def chosen(labels: dict[str, str], selector: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def ports_of(overlay: str, selector: dict[str, str]) -> dict[str, int]:
    """The named ports of the pods that a selector chooses; it must choose those of one maker only."""
    [name] = [name for name, found in templates(ALL[overlay]).items() if chosen(found["metadata"]["labels"], selector)]
    return {port["name"]: port["containerPort"] for port in container_of(overlay, name)["ports"]}


def services(overlay: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in of_kind(ALL[overlay], "Service")}


@every_overlay_that_serves
def test_services_lead_to_ports_that_are_there(overlay: str) -> None:
    for service in services(overlay).values():
        there = ports_of(overlay, service["spec"]["selector"])
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == there


@every_overlay_that_serves
def test_what_scales_and_guards_pods_finds_them(settings_for: Any, overlay: str) -> None:
    found = ALL[overlay]
    for policy in of_kind(found, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            there = ports_of(overlay, policy["spec"]["podSelector"]["matchLabels"])
            assert {port["port"] for port in rule["ports"]} <= set(there)
    for budget in of_kind(found, "PodDisruptionBudget"):
        assert ports_of(overlay, budget["spec"]["selector"]["matchLabels"])
    for scaler in of_kind(found, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        [scaled] = [each for each in of_kind(found, target["kind"]) if each["metadata"]["name"] == target["name"]]
        assert "replicas" not in scaled["spec"]
        # Beside the pool it listens; a rollout has some pods more.
        pods = scaler["spec"]["maxReplicas"] + scaled["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        pool = settings_for(overlay, target["name"]).database_pool_size + 1
        assert pods * pool < CONNECTIONS
    kinds = {manifest["kind"] for manifest in found}
    if overlay != "dev":
        assert {"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "Ingress"} <= kinds


# What the Prometheus Operator adds to every series; a label of ours of the same name would become `exported_...`.
ADDED = {"namespace", "service", "pod", "container", "endpoint", "job", "instance"}


def our_labels() -> set[str]:
    """The labels in the table of metrics, which tests compare with the program."""
    text = (manifests.ROOT / "deploy" / "monitoring" / "README.md").read_text()
    columns = re.findall(r"^\| `llm_proxy_[^|]*\|([^|]*)\|", text, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", "".join(columns)))


def test_prometheus_finds_every_pod_and_keeps_our_labels() -> None:
    monitors = list(of_kind(ALL["production-with-events"], "ServiceMonitor"))
    assert len(monitors) == 2 and len(our_labels()) > 5
    for monitor in monitors:
        selector = monitor["spec"]["selector"]["matchLabels"]
        [service] = [each for each in services("production-with-events").values() if chosen(each["metadata"]["labels"], selector)]
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint.keys() == {"port", "path", "interval", "authorization", "relabelings"}
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert endpoint["path"] == Settings().metrics_path
        key = endpoint["authorization"]["credentials"]
        assert key == {"name": "llm-proxy", "key": "METRICS_TOKEN"} and key["key"] in image.SECRETS
        dropped = {each["regex"] for each in endpoint["relabelings"] if each["action"] == "labeldrop"}
        assert our_labels() & ADDED == dropped
        assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]


def ingress_paths() -> Iterator[tuple[str, str, str]]:
    """Path, Service and port of every rule."""
    for ingress in of_kind(ALL["production"], "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield path["path"], service["name"], service["port"]["name"]


def test_the_ingress_serves_every_endpoint_and_keeps_metrics_inside() -> None:
    paths = {path: port for path, _, port in ingress_paths()}
    assert {name for _, name, _ in ingress_paths()} == {"llm-proxy"}
    endpoints = {end for profile in load_profiles(packaged_path()).apis.values() for end in profile.allowed_endpoints}
    needed = [*endpoints, "/health", "/health/detailed", "/ready", "/live", "/manage/projects", "/admin/v1/providers"]
    assert [each for each in needed if not any(each == path or each.startswith(f"{path}/") for path in paths)] == []
    assert not any(Settings().metrics_path.startswith(path) for path in paths)
    assert {path for path, port in paths.items() if port == "admin"} == {"/admin"}


def test_the_ingress_takes_heads_of_answers_as_long_as_our_nginx_does() -> None:
    ours = re.search(r"proxy_buffer_size (\w+);", (manifests.ROOT / "deploy" / "gateway" / "nginx.conf").read_text())
    applications, _ = of_kind(ALL["production"], "Ingress")
    assert ours and applications["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-buffer-size"] == ours[1]


def test_browsers_stay_with_a_pod_and_applications_get_no_cookie() -> None:
    applications, operators = (found["metadata"]["annotations"] for found in of_kind(ALL["production"], "Ingress"))
    cookie = {"affinity": "cookie", "session-cookie-path": "/admin"}
    assert {f"nginx.ingress.kubernetes.io/{name}": value for name, value in cookie.items()}.items() <= operators.items()
    assert not [name for name in applications if "affinity" in name or "cookie" in name]


def test_the_guide_waits_for_a_migration_to_its_end() -> None:
    [job] = of_kind(ALL["production/migration"], "Job")
    [minutes] = re.findall(r"--timeout=(\d+)m job/llm-proxy-migration", (manifests.ROOT / "deploy" / "KUBERNETES.md").read_text())
    assert 60 * int(minutes) > job["spec"]["activeDeadlineSeconds"]


def test_dns_is_reached_in_the_cluster_and_on_the_node() -> None:
    [policy] = [found for found in of_kind(ALL["production"], "NetworkPolicy") if "egress" in found["spec"]]
    [dns] = [rule for rule in policy["spec"]["egress"] if {port["port"] for port in rule["ports"]} == {53}]
    assert {port["protocol"] for port in dns["ports"]} == {"UDP", "TCP"}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]


def test_the_prometheus_of_dev_has_our_alerts_and_asks_our_admin_site() -> None:
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(ALL["dev"], "ConfigMap")}
    volumes = {each["name"]: each for each in templates(ALL["dev"])["prometheus"]["spec"]["volumes"]}
    files = {}
    for mount in container_of("dev", "prometheus")["volumeMounts"]:
        for name, text in maps.get(volumes[mount["name"]].get("configMap", {}).get("name"), {}).items():
            files[f"{mount['mountPath']}/{name}"] = text
    [argument] = [each for each in container_of("dev", "prometheus")["args"] if each.startswith("--config.file=")]
    config = yaml.safe_load(files[argument.partition("=")[2]])
    assert files[config["rule_files"][0]] == (manifests.ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text()
    [target] = config["scrape_configs"][0]["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert int(port) in [each["port"] for each in services("dev")[name]["spec"]["ports"] if each["name"] == "admin"]


def test_the_single_pod_of_dev_keeps_its_data_and_is_never_there_twice() -> None:
    [claim] = of_kind(ALL["dev"], "PersistentVolumeClaim")
    [proxy] = [found for found in of_kind(ALL["dev"], "Deployment") if found["metadata"]["name"] == "llm-proxy"]
    assert (proxy["spec"]["replicas"], proxy["spec"]["strategy"]) == (1, {"type": "Recreate"})
    data = {"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    assert data in proxy["spec"]["template"]["spec"]["volumes"]
