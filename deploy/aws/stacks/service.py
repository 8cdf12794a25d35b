"""The services: proxies that grow with their load, a dispatcher for each sink."""

import aws_cdk as cdk
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_logs as logs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from stacks import settings, tasks
from stacks.balancer import Balancer
from stacks.migration import Migration
from stacks.options import Options
from stacks.redis import Redis
from stacks.secrets import Secrets


class Service(cdk.Stack):
    """A failed rollout goes back by itself, as ECS puts it: to the tasks of before, which were never stopped.

    Attributes:
        proxy: the proxies' service.
        log: where their lines go.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        options: Options,
        migration: Migration,
        secrets: Secrets,
        redis: Redis,
        balancer: Balancer,
    ) -> None:
        super().__init__(scope, id, description="LLM Proxy: proxies and dispatchers")
        self._options, self._migration = options, migration
        self._redis_url = ecs.Secret.from_secrets_manager(redis.url)
        self._generated = {name: ecs.Secret.from_secrets_manager(secret) for name, secret in secrets.by_setting.items()}
        self.log = tasks.logs_of(self, options, "proxy")
        self.proxy = self._proxy()
        self._enter(balancer)
        self._scale(balancer)
        if options.sinks:
            log_group = tasks.logs_of(self, options, "dispatcher")
            for sink in options.sinks:
                self._dispatcher(sink, log_group)

    def _stored(self, name: str) -> ecs.Secret:
        """A secret that an operator has put into the parameter store."""
        path = settings.parameter(self._options, name)
        found = ssm.StringParameter.from_secure_string_parameter_attributes(self, f"Stored{name}", parameter_name=path)
        return ecs.Secret.from_ssm_parameter(found)

    def _proxy(self) -> ecs.FargateService:
        options, database = self._options, self._migration.database
        self._sink_keys = {sink: self._stored(settings.SINK_KEYS[sink]) for sink in options.sinks}
        definition = tasks.task(
            self, "ProxyTask", options, cpu=options.cpu, memory=options.memory, family=f"{options.name}-proxy"
        )
        container = tasks.run(
            definition,
            self._migration.registry.repository,
            options,
            command=["server"],
            environment=settings.of_proxy(options, database.url),
            secrets={
                **self._generated,
                settings.ENCRYPTION_KEY: self._stored(settings.ENCRYPTION_KEY),
                settings.DATABASE_PASSWORD: ecs.Secret.from_secrets_manager(database.password, "password"),
                "REDIS_URL": self._redis_url,
                # An operator may retry dead letters from a proxy's admin site.
                **{settings.SINK_KEYS[sink]: key for sink, key in self._sink_keys.items()},
            },
            log_group=self.log,
        )
        for port in (settings.PROXY_PORT, settings.ADMIN_PORT):
            container.add_port_mappings(ecs.PortMapping(container_port=port))
        grace = cdk.Duration.seconds(60)
        return self._serve("Proxy", definition, self._migration.network.proxy, health_check_grace_period=grace)

    def _dispatcher(self, sink: str, log_group: logs.LogGroup) -> ecs.FargateService:
        options, key = self._options, settings.SINK_KEYS[sink]
        definition = tasks.task(
            self, f"{sink.title()}Task", options, cpu=256, memory=512, family=f"{options.name}-dispatcher-{sink}"
        )
        address = f"127.0.0.1:{settings.DISPATCHER_PORT}"
        tasks.run(
            definition,
            self._migration.registry.repository,
            options,
            command=["dispatcher", "--service", sink, "--addr", address],
            environment=settings.of_dispatcher(options),
            secrets={"REDIS_URL": self._redis_url, key: self._sink_keys[sink]},
            log_group=log_group,
            # Not `--ready`: a Redis that is away is no reason to end what waits for it.
            health_check=ecs.HealthCheck(
                command=["CMD", "llm-proxy", "health", "--addr", address],
                timeout=cdk.Duration.seconds(10),
                start_period=cdk.Duration.seconds(30),
            ),
        )
        return self._serve(f"{sink.title()}Dispatcher", definition, self._migration.network.dispatcher, desired_count=1)

    def _serve(self, id: str, definition: ecs.FargateTaskDefinition, group: object, **more: object) -> ecs.FargateService:
        # The proxies' number is left out: a deployment would set it back to what it was at first.
        return ecs.FargateService(
            self,
            id,
            cluster=self._migration.cluster,
            task_definition=definition,
            security_groups=[group],
            vpc_subnets=self._migration.network.private,
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
            **more,
        )

    def _enter(self, balancer: Balancer) -> None:
        for site, port in (("proxy", settings.PROXY_PORT), ("admin", settings.ADMIN_PORT)):
            target = self.proxy.load_balancer_target(container_name="llm-proxy", container_port=port)
            balancer.sites[site].add_target(target)

    def _scale(self, balancer: Balancer) -> None:
        scaling = self.proxy.auto_scale_task_count(min_capacity=self._options.min_tasks, max_capacity=self._options.max_tasks)
        slow, fast = cdk.Duration.minutes(5), cdk.Duration.minutes(1)
        scaling.scale_on_cpu_utilization(
            "Cpu", target_utilization_percent=self._options.target_cpu, scale_in_cooldown=slow, scale_out_cooldown=fast
        )
        scaling.scale_on_request_count(
            "Requests",
            requests_per_target=self._options.requests_per_target,
            target_group=balancer.sites["proxy"],
            scale_in_cooldown=slow,
            scale_out_cooldown=fast,
        )
