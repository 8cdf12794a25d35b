"""The migration: a task that runs once, before the services get a new program."""

import aws_cdk as cdk
from aws_cdk import aws_ecs as ecs
from constructs import Construct

from stacks import settings, tasks
from stacks.database import Database
from stacks.network import Network
from stacks.options import Options
from stacks.registry import Registry


class Migration(cdk.Stack):
    """The cluster with the migration's task, which `deploy` starts and waits for between this stack and the services'.

    It is no custom resource: when CloudFormation goes back, it would run the old program's migration on the new schema, which
    refuses it, and the way back would be stuck.
    """

    def __init__(
        self, scope: Construct, id: str, options: Options, registry: Registry, network: Network, database: Database
    ) -> None:
        super().__init__(scope, id, description="LLM Proxy: cluster and migration")
        self.registry, self.network, self.database = registry, network, database
        self.cluster = ecs.Cluster(self, "Cluster", cluster_name=options.name, vpc=network.vpc)
        self.task = tasks.task(self, "Task", options, cpu=256, memory=512, family=f"{options.name}-migration")
        tasks.run(
            self.task,
            registry.repository,
            options,
            command=["migrate", "up"],
            environment=settings.of_migration(database.url),
            secrets={settings.DATABASE_PASSWORD: ecs.Secret.from_secrets_manager(database.password, "password")},
            log_group=tasks.logs_of(self, options, "migration"),
        )
        self._tell(network)

    def _tell(self, network: Network) -> None:
        subnets = network.vpc.select_subnets(subnet_type=network.private.subnet_type).subnet_ids
        outputs = {
            "Task": self.task.task_definition_arn,
            "Subnets": cdk.Fn.join(",", subnets),
            "Group": network.migration.security_group_id,
        }
        for name, value in outputs.items():
            cdk.CfnOutput(self, f"Migration{name}", value=value)
