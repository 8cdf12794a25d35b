"""The network: a VPC, who may connect to whom in it."""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from stacks.options import Options
from stacks.settings import ADMIN_PORT, PROXY_PORT

HTTPS = 443
POSTGRESQL_PORT = 5432
REDIS_PORT = 6379


class Network(cdk.Stack):
    """All security groups stand here: one place shows every connection that is allowed, and no two stacks need each other."""

    def __init__(self, scope: Construct, id: str, options: Options) -> None:
        super().__init__(scope, id, description="LLM Proxy: network")
        self.vpc = self._existing(options) if options.vpc_id else self._made(options)
        self.private = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.balancer = self._group("Balancer", "The load balancer")
        self.proxy = self._group("Proxy", "The proxies")
        self.dispatcher = self._group("Dispatcher", "The dispatchers of events")
        self.migration = self._group("Migration", "The migration of the database")
        self.database = self._group("Database", "Aurora")
        self.redis = self._group("Redis", "Redis")
        self._admit()

    def _made(self, options: Options) -> ec2.IVpc:
        vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(options.vpc_cidr),
            max_azs=2,
            nat_gateways=options.nat_gateways,
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24),
                ec2.SubnetConfiguration(name="private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20),
            ],
        )
        # The layers of images come from S3: free by this way, paid by the gigabyte through NAT.
        vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        return vpc

    def _existing(self, options: Options) -> ec2.IVpc:
        return ec2.Vpc.from_vpc_attributes(
            self,
            "Vpc",
            vpc_id=options.vpc_id,
            vpc_cidr_block=options.vpc_cidr,
            # CDK wants names, which are used nowhere here; to look the real ones up would take an account.
            availability_zones=[f"zone-{number}" for number in range(len(options.private_subnets))],
            public_subnet_ids=list(options.public_subnets),
            private_subnet_ids=list(options.private_subnets),
        )

    def _group(self, name: str, description: str) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(self, name, vpc=self.vpc, description=description, allow_all_outbound=False)

    def _admit(self) -> None:
        for port, why in ((HTTPS, "clients"), (80, "pages are sent on to https")):
            self.balancer.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), why)
        for port, why in ((PROXY_PORT, "calls"), (ADMIN_PORT, "the admin site")):
            self._connect(self.balancer, self.proxy, port, why)
        for group in (self.proxy, self.migration):
            self._connect(group, self.database, POSTGRESQL_PORT, "SQL")
        for group in (self.proxy, self.dispatcher):
            self._connect(group, self.redis, REDIS_PORT, "limits and events")
        for group, why in ((self.proxy, "providers"), (self.dispatcher, "sinks"), (self.migration, "images and logs")):
            group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(HTTPS), f"{why}; AWS itself")

    def _connect(self, source: ec2.SecurityGroup, target: ec2.SecurityGroup, port: int, why: str) -> None:
        source.add_egress_rule(target, ec2.Port.tcp(port), why)
        target.add_ingress_rule(source, ec2.Port.tcp(port), why)
