"""Redis, for limits that tasks share, events on their way."""

import aws_cdk as cdk
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks import settings
from stacks.network import REDIS_PORT, Network
from stacks.options import Options

# ElastiCache takes 16 to 128 characters; without punctuation they need no coding in a URL.
LENGTH = 64


class Redis(cdk.Stack):
    """A group of nodes behind one name, with TLS and a password, that evicts nothing.

    Attributes:
        url: the secret that is REDIS_URL as a whole.
        nodes: their names, by which CloudWatch keeps figures.
    """

    def __init__(self, scope: Construct, id: str, options: Options, network: Network) -> None:
        super().__init__(scope, id, description="LLM Proxy: Redis")
        password = secretsmanager.Secret(
            self,
            "Password",
            description=f"The password of Redis of {options.name}",
            generate_secret_string=secretsmanager.SecretStringGenerator(exclude_punctuation=True, password_length=LENGTH),
        )
        # A reference that CloudFormation resolves: the template holds no secret.
        given = password.secret_value.unsafe_unwrap()
        self.group = self._group(options, network, given)
        self.nodes = [f"{self.group.ref}-{number:03}" for number in range(1, options.redis_nodes + 1)]
        host = self.group.attr_primary_end_point_address
        url = cdk.SecretValue.unsafe_plain_text(settings.redis_url(given, host, str(REDIS_PORT)))
        self.url = secretsmanager.Secret(self, "Url", description=f"REDIS_URL of {options.name}", secret_string_value=url)

    def _group(self, options: Options, network: Network, password: str) -> elasticache.CfnReplicationGroup:
        several = options.redis_nodes > 1
        subnets = network.vpc.select_subnets(subnet_type=network.private.subnet_type).subnet_ids
        where = elasticache.CfnSubnetGroup(self, "Subnets", description="Private subnets", subnet_ids=subnets)
        parameters = elasticache.CfnParameterGroup(
            self,
            "Parameters",
            cache_parameter_group_family="redis7",
            description="Evict nothing: limits and events are no cache",
            properties={"maxmemory-policy": "noeviction"},
        )
        return elasticache.CfnReplicationGroup(
            self,
            "Group",
            replication_group_description="Limits and events of LLM Proxy",
            engine="redis",
            engine_version="7.1",
            cache_node_type=options.redis_node,
            num_cache_clusters=options.redis_nodes,
            automatic_failover_enabled=several,
            multi_az_enabled=several,
            cache_parameter_group_name=parameters.ref,
            cache_subnet_group_name=where.ref,
            security_group_ids=[network.redis.security_group_id],
            port=REDIS_PORT,
            transit_encryption_enabled=True,
            at_rest_encryption_enabled=True,
            auth_token=password,
            auto_minor_version_upgrade=True,
        )
