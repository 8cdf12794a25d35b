"""What operators see: metrics of the call lines, alarms, a dashboard."""

from typing import NamedTuple

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from stacks import tasks
from stacks.balancer import Balancer
from stacks.database import Database
from stacks.options import Options
from stacks.redis import Redis
from stacks.service import Service

MINUTE = cdk.Duration.minutes(1)
FIVE = cdk.Duration.minutes(5)
CALL = '$.logger = "llm_proxy.calls"'
ERRORS = '{ $.level = "error" }'
NOT_BREACHING = cloudwatch.TreatMissingData.NOT_BREACHING


class Filter(NamedTuple):
    """What of the log becomes a metric: the lines that are meant, the value that each adds."""

    name: str
    pattern: str
    value: str = "1"
    unit: cloudwatch.Unit = cloudwatch.Unit.COUNT


FILTERS = (
    Filter("Calls", f"{{ {CALL} }}"),
    Filter("ServerErrors", f"{{ {CALL} && $.status >= 500 }}"),
    Filter("Refused", f'{{ {CALL} && $.outcome = "refused" }}'),
    Filter("UpstreamFailed", f'{{ {CALL} && ($.outcome = "upstream_failed" || $.outcome = "upstream_incomplete") }}'),
    Filter("CutByShutdown", f'{{ {CALL} && $.outcome = "aborted_by_shutdown" }}'),
    Filter("CacheHits", f'{{ {CALL} && $.outcome = "cached" }}'),
    Filter("Duration", f"{{ {CALL} && $.duration >= 0 }}", "$.duration", cloudwatch.Unit.SECONDS),
    Filter("Overhead", f"{{ {CALL} && $.overhead >= 0 }}", "$.overhead", cloudwatch.Unit.SECONDS),
    Filter("FirstToken", f"{{ {CALL} && $.ttft >= 0 }}", "$.ttft", cloudwatch.Unit.SECONDS),
    Filter("PromptTokens", f"{{ {CALL} && $.usage.prompt_tokens > 0 }}", "$.usage.prompt_tokens"),
    Filter("CompletionTokens", f"{{ {CALL} && $.usage.completion_tokens > 0 }}", "$.usage.completion_tokens"),
    # Whatever the program itself calls an error, calls or not.
    Filter("Errors", ERRORS),
)


class Monitoring(cdk.Stack):
    """Figures come from the log, as CloudWatch scrapes no /metrics; alarms go to one topic."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        options: Options,
        balancer: Balancer,
        database: Database,
        redis: Redis,
        service: Service,
    ) -> None:
        super().__init__(scope, id, description="LLM Proxy: metrics, alarms and dashboard")
        self._options, self._service = options, service
        self.metrics = {found.name: self._filtered(found, service.log) for found in FILTERS}
        if options.sinks:
            # By its name: an export could not go with the last sink while this stack still imports it.
            log_group = logs.LogGroup.from_log_group_name(self, "DispatcherLog", tasks.log_name(options, "dispatcher"))
            self.metrics["DispatcherErrors"] = self._filtered(Filter("DispatcherErrors", ERRORS), log_group)
        self.add_stack_dependency(service)
        self._topic = self._made_topic()
        self._watch_calls()
        self._watch_sites(balancer)
        self._watch_stores(database, redis)
        self._draw(balancer, database, redis)

    def _filtered(self, wanted: Filter, log_group: logs.ILogGroup) -> cloudwatch.Metric:
        found = logs.MetricFilter(
            self,
            f"{wanted.name}Filter",
            log_group=log_group,
            filter_pattern=logs.FilterPattern.literal(wanted.pattern),
            metric_namespace=self._options.name,
            metric_name=wanted.name,
            metric_value=wanted.value,
            unit=wanted.unit,
        )
        return found.metric(period=MINUTE, statistic="Sum")

    def _made_topic(self) -> sns.Topic:
        topic = sns.Topic(self, "Alarms", enforce_ssl=True)
        if self._options.alarm_email:
            topic.add_subscription(subscriptions.EmailSubscription(self._options.alarm_email))
        return topic

    def _alarm(self, name: str, metric: cloudwatch.IMetric, above: float, what: str, *, minutes: int = 5) -> None:
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_name=f"{self._options.name}-{name}",
            alarm_description=what,
            metric=metric,
            threshold=above,
            evaluation_periods=minutes,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            treat_missing_data=NOT_BREACHING,
        )
        alarm.add_alarm_action(actions.SnsAction(self._topic))
        alarm.add_ok_action(actions.SnsAction(self._topic))

    def _watch_calls(self) -> None:
        failing = cloudwatch.MathExpression(
            # A share of a handful of calls says nothing.
            expression="IF(calls > 20, 100 * errors / calls, 0)",
            using_metrics={"errors": self.metrics["ServerErrors"], "calls": self.metrics["Calls"]},
            period=MINUTE,
            label="Percent of calls answered with 5xx",
        )
        self._alarm("failing", failing, 5, "More than 5 % of calls end with 5xx. See UpstreamFailed: providers, or we?")
        slow = self.metrics["Overhead"].with_(statistic="p99")
        self._alarm("overhead", slow, 0.1, "Our own part of a call takes above 0.1 s at the 99th percentile. More tasks?")
        self._alarm("errors", self.metrics["Errors"], 0, "The log has lines of level error: filter it by level.", minutes=1)
        if found := self.metrics.get("DispatcherErrors"):
            self._alarm("dispatcher", found, 0, "A dispatcher logs errors: events wait in Redis meanwhile.", minutes=1)
        cpu = self._service.proxy.metric_cpu_utilization(period=MINUTE, statistic="Average")
        self._alarm("cpu", cpu, 85, "The proxies stay above 85 % of CPU: max_tasks is reached, or scaling is slow.", minutes=10)

    def _watch_sites(self, balancer: Balancer) -> None:
        proxies = balancer.sites["proxy"].metrics
        sick = proxies.unhealthy_host_count(period=MINUTE, statistic="Maximum")
        self._alarm("unhealthy", sick, 0, "A proxy does not answer /live: look at its log and at the service's events.")
        cut = balancer.balancer.metrics.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, period=MINUTE, statistic="Sum")
        self._alarm("balancer", cut, 10, "The balancer itself answers 5xx: no healthy proxy, or connections that break.")

    def _watch_stores(self, database: Database, redis: Redis) -> None:
        used = database.cluster.metric("ACUUtilization", period=MINUTE, statistic="Average")
        self._alarm("database", used, 90, "Aurora is near database_max_acu.", minutes=10)
        for number, memory in enumerate(_of_nodes(redis, "DatabaseMemoryUsagePercentage"), start=1):
            what = "Redis is 75 % full and evicts nothing: events wait on the proxies' disks when it is. Larger redis_node?"
            self._alarm(f"redis-{number}", memory, 75, what)

    def _draw(self, balancer: Balancer, database: Database, redis: Redis) -> None:
        board = cloudwatch.Dashboard(self, "Board", dashboard_name=self._options.name)
        of, proxies, service = self.metrics, balancer.sites["proxy"].metrics, self._service.proxy
        board.add_widgets(
            _graph("Calls a minute", of["Calls"], of["ServerErrors"], of["Refused"], of["UpstreamFailed"]),
            _graph("Duration, s", *_percentiles(of["Duration"])),
            _graph("First token, s", *_percentiles(of["FirstToken"])),
            _graph("Our overhead, s", *_percentiles(of["Overhead"])),
        )
        board.add_widgets(
            _graph("Tokens a minute", of["PromptTokens"], of["CompletionTokens"]),
            _graph("Cache hits, cut calls, errors", of["CacheHits"], of["CutByShutdown"], of["Errors"]),
            _graph("Proxies", proxies.healthy_host_count(), proxies.unhealthy_host_count()),
            _graph("CPU and memory, %", service.metric_cpu_utilization(), service.metric_memory_utilization()),
        )
        board.add_widgets(
            _graph("Requests for each proxy", proxies.request_count_per_target()),
            _graph("Connections to the balancer", balancer.balancer.metrics.active_connection_count()),
            _graph("Aurora, ACU", database.cluster.metric("ServerlessDatabaseCapacity")),
            _graph("Redis, % of memory", *_of_nodes(redis, "DatabaseMemoryUsagePercentage")),
        )


def _percentiles(metric: cloudwatch.Metric) -> list[cloudwatch.Metric]:
    return [metric.with_(statistic=statistic, label=statistic) for statistic in ("p50", "p95", "p99")]


def _of_nodes(redis: Redis, name: str) -> list[cloudwatch.Metric]:
    return [
        cloudwatch.Metric(namespace="AWS/ElastiCache", metric_name=name, dimensions_map={"CacheClusterId": node}, period=MINUTE)
        for node in redis.nodes
    ]


def _graph(title: str, *metrics: cloudwatch.IMetric) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(metrics), width=6, height=6)
