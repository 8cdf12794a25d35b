"""Tasks of Fargate that run llm-proxy."""

from collections.abc import Mapping, Sequence
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.options import LOG_DAYS, Options
from stacks.settings import STOP_TIMEOUT

DATA = "data"
# The most that Fargate gives.
OPEN_FILES = 65535


def log_name(options: Options, name: str) -> str:
    """The name of the log of one kind of task."""
    return f"/{options.name}/{name}"


def logs_of(scope: Construct, options: Options, name: str) -> logs.LogGroup:
    """Where the lines of one kind of task go."""
    return logs.LogGroup(
        scope,
        f"{name.title()}Log",
        log_group_name=log_name(options, name),
        retention=tuple(logs.RetentionDays)[LOG_DAYS.index(options.log_days)],
        removal_policy=cdk.RemovalPolicy.DESTROY,
    )


def task(scope: Construct, id: str, options: Options, *, cpu: int, memory: int, family: str) -> ecs.FargateTaskDefinition:
    """A task without a container yet. llm-proxy calls nothing of AWS, so its role stays empty."""
    definition = ecs.FargateTaskDefinition(
        scope,
        id,
        family=family,
        cpu=cpu,
        memory_limit_mib=memory,
        runtime_platform=ecs.RuntimePlatform(
            cpu_architecture=ecs.CpuArchitecture.ARM64 if options.arm64 else ecs.CpuArchitecture.X86_64,
            operating_system_family=ecs.OperatingSystemFamily.LINUX,
        ),
    )
    definition.add_volume(name=DATA)
    return definition


def run(
    definition: ecs.FargateTaskDefinition,
    repository: ecr.IRepository,
    options: Options,
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    secrets: Mapping[str, ecs.Secret],
    log_group: logs.LogGroup,
    **more: Any,
) -> ecs.ContainerDefinition:
    """Put llm-proxy into a task; all that it writes is under /data."""
    container = definition.add_container(
        "llm-proxy",
        image=ecs.ContainerImage.from_ecr_repository(repository, options.tag),
        entry_point=["llm-proxy"],
        command=list(command),
        environment=dict(environment),
        secrets=dict(secrets),
        readonly_root_filesystem=True,
        stop_timeout=cdk.Duration.seconds(STOP_TIMEOUT),
        # A log that does not keep up loses lines, and never holds a call.
        logging=ecs.LogDrivers.aws_logs(
            stream_prefix=definition.family,
            log_group=log_group,
            mode=ecs.AwsLogDriverMode.NON_BLOCKING,
            max_buffer_size=cdk.Size.mebibytes(25),
        ),
        **more,
    )
    # The program takes as many connections as this lets it.
    container.add_ulimits(ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=OPEN_FILES, hard_limit=OPEN_FILES))
    container.add_mount_points(ecs.MountPoint(container_path="/data", source_volume=DATA, read_only=False))
    return container
