"""LLM Proxy on AWS: the stacks of one deployment."""

import sys

import aws_cdk as cdk
from stacks.balancer import Balancer
from stacks.database import Database
from stacks.migration import Migration
from stacks.monitoring import Monitoring
from stacks.network import Network
from stacks.options import OptionError, Options, read
from stacks.pipeline import Pipeline
from stacks.redis import Redis
from stacks.registry import Registry
from stacks.secrets import Secrets
from stacks.service import Service


def build(app: cdk.App, options: Options) -> None:
    """Add the stacks, in the order in which each needs those before it.

    None is bound to an account or a region: they are those of whoever deploys, and nothing is looked up meanwhile.
    """
    registry = Registry(app, f"{options.name}-registry", options)
    network = Network(app, f"{options.name}-network", options)
    secrets = Secrets(app, f"{options.name}-secrets", options)
    database = Database(app, f"{options.name}-database", options, network)
    redis = Redis(app, f"{options.name}-redis", options, network)
    balancer = Balancer(app, f"{options.name}-balancer", options, network)
    migration = Migration(app, f"{options.name}-migration", options, registry, network, database)
    service = Service(app, f"{options.name}-service", options, migration, secrets, redis, balancer)
    Monitoring(app, f"{options.name}-monitoring", options, balancer, database, redis, service)
    if options.github:
        Pipeline(app, f"{options.name}-pipeline", options)
    cdk.Tags.of(app).add("deployment", options.name)


def main() -> None:
    """Write the templates of the options that CDK's context gives."""
    app = cdk.App()
    try:
        options = read(app.node.get_all_context())
    except OptionError as error:
        sys.exit(f"{error} deploy/AWS.md lists the options.")
    build(app, options)
    app.synth()


if __name__ == "__main__":
    main()
