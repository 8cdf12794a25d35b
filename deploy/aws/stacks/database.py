"""The database: Aurora PostgreSQL Serverless v2."""

import aws_cdk as cdk
from aws_cdk import aws_rds as rds
from constructs import Construct

from stacks import settings
from stacks.network import POSTGRESQL_PORT, Network
from stacks.options import Options

USER = "llm_proxy"
NAME = "llm_proxy"
OF_INSTANCES = {"auto_minor_version_upgrade": True, "publicly_accessible": False}


class Database(cdk.Stack):
    """A cluster that can be reached by TLS alone, with a password of its own making.

    Attributes:
        url: DATABASE_URL, without the password.
        password: the secret that holds the password, under that key.
    """

    def __init__(self, scope: Construct, id: str, options: Options, network: Network) -> None:
        super().__init__(scope, id, description="LLM Proxy: Aurora PostgreSQL", termination_protection=options.keep_data)
        self.cluster = self._cluster(options, network)
        endpoint = self.cluster.cluster_endpoint
        self.url = settings.database_url(USER, endpoint.hostname, str(POSTGRESQL_PORT), NAME)
        assert self.cluster.secret
        self.password = self.cluster.secret

    def _cluster(self, options: Options, network: Network) -> rds.DatabaseCluster:
        engine = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_17_7)
        readers = [
            rds.ClusterInstance.serverless_v2(f"Reader{number}", scale_with_writer=True, **OF_INSTANCES)
            for number in range(1, options.database_readers + 1)
        ]
        return rds.DatabaseCluster(
            self,
            "Cluster",
            engine=engine,
            writer=rds.ClusterInstance.serverless_v2("Writer", **OF_INSTANCES),
            readers=readers,
            serverless_v2_min_capacity=options.database_min_acu,
            serverless_v2_max_capacity=options.database_max_acu,
            credentials=rds.Credentials.from_generated_secret(USER),
            default_database_name=NAME,
            parameter_group=rds.ParameterGroup(self, "Parameters", engine=engine, parameters={"rds.force_ssl": "1"}),
            vpc=network.vpc,
            vpc_subnets=network.private,
            security_groups=[network.database],
            **self._kept(options),
        )

    def _kept(self, options: Options) -> dict[str, object]:
        kept, gone = cdk.RemovalPolicy.SNAPSHOT, cdk.RemovalPolicy.DESTROY
        return {
            "storage_encrypted": True,
            "copy_tags_to_snapshot": True,
            "backup": rds.BackupProps(retention=cdk.Duration.days(options.backup_days)),
            "deletion_protection": options.keep_data,
            "removal_policy": kept if options.keep_data else gone,
        }
