"""The templates of some deployments, each made once, as `cdk synth` makes them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aws_cdk.assertions import Template
from cases import CASES

APP = Path(__file__).parents[1] / "app.py"
FLAGS = json.loads(APP.with_name("cdk.json").read_text())["context"]
# Where scripts/check-aws wants them for cfn-lint.
TEMPLATES = os.environ.get("TEMPLATES") or tempfile.mkdtemp()
# As in a pipeline that was given no account.
WITHOUT_ACCOUNT = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))}


@cache
def stacks_of(case: str) -> dict[str, dict[str, Any]]:
    """The template of each stack, by the last part of its name."""
    folder, context = Path(TEMPLATES, case), {**FLAGS, **CASES[case]}
    told = {"CDK_OUTDIR": str(folder), "CDK_CONTEXT_JSON": json.dumps(context)}
    subprocess.run([sys.executable, APP], check=True, env=WITHOUT_ACCOUNT | told, timeout=120)
    # What had to be looked up, which takes an account, would leave its question here.
    assert "missing" not in json.loads((folder / "manifest.json").read_text())
    name = context.get("name", "llm-proxy")
    found = {path.name.removesuffix(".template.json"): path for path in folder.glob("*.template.json")}
    return {stack.removeprefix(f"{name}-"): json.loads(path.read_text()) for stack, path in found.items()}


@pytest.fixture(params=sorted(CASES))
def stacks(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The templates of both deployments, one after the other."""
    return stacks_of(request.param)


@pytest.fixture
def template() -> Callable[..., Template]:
    """A template for CDK's assertions."""

    def made(stack: str, case: str = "plain") -> Template:
        return Template.from_json(stacks_of(case)[stack])

    return made
