"""What kustomize makes of deploy/kubernetes; run as a script, it renders that with kubectl into tests/deploy/rendered."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "deploy" / "kubernetes"
# Tests need no kubectl as long as these stand here.
RENDERED = ROOT / "tests" / "deploy" / "rendered"
OVERLAYS = ("dev", "production", "production/migration", "production-with-events")

Manifest = dict[str, Any]


def file_of(overlay: str) -> Path:
    """Where an overlay stands rendered."""
    return RENDERED / f"{overlay.replace('/', '-')}.yaml"


def render(overlay: str) -> str:
    """What kubectl makes of an overlay."""
    command = ["kubectl", "kustomize", str(SOURCES / "overlays" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def digest() -> str:
    """What changes with any file that is rendered."""
    monitoring = ROOT / "deploy" / "monitoring"
    files = [path for path in SOURCES.rglob("*") if path.is_file()]
    found = hashlib.sha256()
    for path in sorted([*files, monitoring / "kustomization.yaml", monitoring / "alerts.yaml"]):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def first_line() -> str:
    """How a rendered file begins, which says what it was rendered from."""
    return f"# Written by scripts/render-manifests from files of SHA-256 {digest()}.\n"


def read(text: str) -> list[Manifest]:
    """The manifests of a rendered overlay."""
    # The script runs where nothing is installed.
    import yaml

    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> Iterator[Manifest]:
    """Those of a kind."""
    return (manifest for manifest in manifests if manifest["kind"] == kind)


def templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The templates of all pods, by the name of what makes them."""
    makers = [manifest for manifest in manifests if manifest["kind"] in ("Deployment", "Job")]
    return {maker["metadata"]["name"]: maker["spec"]["template"] for maker in makers}


if __name__ == "__main__":
    RENDERED.mkdir(exist_ok=True)
    for name in OVERLAYS:
        file_of(name).write_text(first_line() + render(name))
