"""The script calls AWS, CDK and Docker in the right order; a program that notes its calls stands in for each."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy"
# Answers as the real ones; what the test wants to go wrong is told by the environment.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $1 $2" in
    "aws ecr describe-repositories") echo 123456789012.dkr.ecr.eu-central-1.amazonaws.com/llm-proxy ;;
    "aws ecr describe-images") [ -n "${PUSHED:-}" ] ;;
    "aws ecr get-login-password") echo password ;;
    "aws ssm get-parameter") [ -n "${KEY:-}" ] ;;
    "aws cloudformation describe-stacks") echo "subnet-1,subnet-2" ;;
    "aws ecs run-task") echo arn:task ;;
    "aws ecs describe-tasks") echo "${EXIT_CODE:-0}" ;;
    "aws logs tail") echo "what the migration said" ;;
    "docker login"*) cat > /dev/null ;;
    "openssl rand"*) echo bmV3IGtleQ== ;;
    "pip install "*) [ -z "${AWAY:-}" ] ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the script, with programs that stand in for the real ones."""
    home = tmp_path / "deploy" / "aws"
    (home / ".venv" / "bin").mkdir(parents=True)
    for name in ("pip", "python3", "cdk", "aws", "docker", "openssl"):
        program = home / ".venv" / "bin" / name
        program.write_text(STAND_IN)
        program.chmod(0o755)
    (home / "deploy").write_text(SCRIPT.read_text())
    (home / "requirements.txt").write_text("aws-cdk-lib\n")
    return home


def run(tree: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; its end, what it called."""
    calls = tree / "calls"
    calls.write_text("")
    ended = subprocess.run(
        ["sh", tree / "deploy", *arguments],
        env={"PATH": f"{tree}/.venv/bin:{os.environ['PATH']}", "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return ended, calls.read_text().splitlines()


def places(calls: list[str], *beginnings: str) -> list[int]:
    """Where the first call of each kind stands."""
    return [next(place for place, call in enumerate(calls) if call.startswith(beginning)) for beginning in beginnings]


def test_the_migration_runs_to_its_end_between_its_own_stack_and_the_services(tree: Path) -> None:
    ended, calls = run(tree, "1.2.3", "-c", "domain=llm.example.com")
    assert ended.returncode == 0, ended.stderr
    found = places(
        calls,
        "cdk deploy llm-proxy-registry",
        "docker push 123456789012.dkr.ecr.eu-central-1.amazonaws.com/llm-proxy:1.2.3",
        "aws ssm put-parameter --name /llm-proxy/ENCRYPTION_KEY --type SecureString",
        "cdk deploy llm-proxy-migration",
        "aws ecs run-task --cluster llm-proxy",
        "aws ecs wait tasks-stopped",
        "aws ecs describe-tasks",
        "cdk deploy llm-proxy-*",
    )
    assert found == sorted(found)
    for call in calls:
        if call.startswith("cdk"):
            assert call.endswith("-c name=llm-proxy -c tag=1.2.3 -c domain=llm.example.com")


def test_what_is_there_already_stays_as_it_is(tree: Path) -> None:
    ended, calls = run(tree, "1.2.3", PUSHED="yes", KEY="yes", NAME="staging", APPROVAL="never")
    assert ended.returncode == 0, ended.stderr
    assert not [call for call in calls if call.startswith("docker") or "put-parameter" in call]
    assert "cdk deploy staging-* --require-approval never -c name=staging -c tag=1.2.3" in calls


def test_packages_are_installed_until_that_went_well_and_again_once_others_are_wanted(tree: Path) -> None:
    def installs(**environment: str) -> int:
        return sum(call.startswith("pip install") for call in run(tree, "1.2.3", **environment)[1])

    assert [installs(AWAY="yes"), installs(AWAY="yes"), installs(), installs()] == [1, 1, 1, 0]
    (tree / "requirements.txt").write_text("aws-cdk-lib >= 3\n")
    assert installs() == 1


@pytest.mark.parametrize("code", ["1", "None"], ids=["it failed", "it never started"])
def test_a_migration_that_fails_leaves_the_services_alone(tree: Path, code: str) -> None:
    ended, calls = run(tree, "1.2.3", EXIT_CODE=code)
    assert ended.returncode == 1
    assert f"exit code {code}" in ended.stderr and "what the migration said" in ended.stderr
    assert not [call for call in calls if call.startswith("cdk deploy llm-proxy-*")]


@pytest.mark.parametrize("arguments", [(), ("-c", "domain=x")], ids=["nothing", "options alone"])
def test_without_a_tag_it_says_how_it_is_called(tree: Path, arguments: tuple[str, ...]) -> None:
    ended, calls = run(tree, *arguments)
    assert (ended.returncode, calls) == (2, [])
    assert "deploy/aws/deploy TAG" in ended.stderr
