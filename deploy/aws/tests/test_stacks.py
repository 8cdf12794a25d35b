"""What is deployed, as CloudFormation is told."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aws_cdk.assertions import Match, Template
from cases import EVERYTHING
from stacks import settings

GITHUB = "token.actions.githubusercontent.com"
Stacks = dict[str, dict[str, Any]]
Of = Callable[..., Template]


def resources(stacks: Stacks, kind: str) -> Iterator[dict[str, Any]]:
    """The properties of every resource of a type."""
    for template in stacks.values():
        for resource in template["Resources"].values():
            if resource["Type"] == kind:
                yield resource["Properties"]


def containers(stacks: Stacks) -> dict[str, dict[str, Any]]:
    """The container of each task, by what it runs."""
    found = [task["ContainerDefinitions"] for task in resources(stacks, "AWS::ECS::TaskDefinition")]
    return {" ".join(container["Command"][:3]): container for [container] in found}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {one["Name"]: one["Value"] for one in container["Environment"]}


def secrets(container: dict[str, Any]) -> set[str]:
    return {one["Name"] for one in container["Secrets"]}


def attributes(properties: dict[str, Any], name: str) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in properties[name]}


# The entrance


def rules(found: Template) -> list[dict[str, Any]]:
    return [rule["Properties"] for rule in found.find_resources("AWS::ElasticLoadBalancingV2::ListenerRule").values()]


def forwarding(found: Template) -> list[dict[str, Any]]:
    """The rules that lead to a site."""
    return [rule for rule in rules(found) if "TargetGroupArn" in rule["Actions"][0]]


def test_each_path_goes_to_the_site_that_serves_it_and_metrics_to_none(template: Of) -> None:
    found = template("balancer")
    groups = found.find_resources("AWS::ElasticLoadBalancingV2::TargetGroup")
    ports = {name: group["Properties"]["Port"] for name, group in groups.items()}
    routes = {}
    for rule in forwarding(found):
        [action], [condition] = rule["Actions"], rule["Conditions"]
        for path in condition["PathPatternConfig"]["Values"]:
            routes[path] = ports[action["TargetGroupArn"]["Ref"]]
    ours = ("/v1/*", "/openai/*", "/manage/*", "/health*", "/ready", "/live")
    assert routes == {**dict.fromkeys(ours, 8080), "/admin": 8081, "/admin/*": 8081}
    listener = {"Port": 443, "Protocol": "HTTPS", "DefaultActions": [{"FixedResponseConfig": {"StatusCode": "404"}}]}
    found.has_resource_properties("AWS::ElasticLoadBalancingV2::Listener", Match.object_like(listener))


def test_without_tls_pages_lead_to_it_and_calls_are_refused(template: Of) -> None:
    found = template("balancer")
    refusal = {"Port": 80, "DefaultActions": [{"FixedResponseConfig": {"StatusCode": "403"}}]}
    found.has_resource_properties("AWS::ElasticLoadBalancingV2::Listener", Match.object_like(refusal))
    [redirect] = [rule for rule in rules(found) if "RedirectConfig" in rule["Actions"][0]]
    to = redirect["Actions"][0]["RedirectConfig"]
    assert (to["Protocol"], to["Port"], to["StatusCode"]) == ("HTTPS", "443", "HTTP_301")
    conditions = {one["Field"]: one for one in redirect["Conditions"]}
    assert conditions["path-pattern"]["PathPatternConfig"]["Values"] == ["/", "/admin", "/admin/*"]
    assert conditions["http-request-method"]["HttpRequestMethodConfig"]["Values"] == ["GET", "HEAD"]


def test_a_zone_gives_certificate_and_record_and_a_certificate_stands_for_itself(template: Of) -> None:
    made, given = template("balancer"), template("balancer", "everything")
    made.has_resource_properties("AWS::CertificateManager::Certificate", {"DomainName": "llm.example.com"})
    made.has_resource_properties("AWS::Route53::RecordSet", {"Name": "llm.example.com.", "Type": "A"})
    given.resource_count_is("AWS::CertificateManager::Certificate", 0)
    given.resource_count_is("AWS::Route53::RecordSet", 0)
    arn = {"Certificates": [{"CertificateArn": EVERYTHING["certificate_arn"]}]}
    given.has_resource_properties("AWS::ElasticLoadBalancingV2::Listener", arn)


def test_only_operators_reach_manage_and_admin_once_they_are_named(template: Of) -> None:
    found = template("balancer", "everything")
    for rule in forwarding(found):
        conditions = {one["Field"]: one for one in rule["Conditions"]}
        paths = conditions["path-pattern"]["PathPatternConfig"]["Values"]
        guarded = any(path.startswith(("/manage", "/admin")) for path in paths)
        networks = conditions.get("source-ip", {}).get("SourceIpConfig", {}).get("Values", [])
        assert networks == (EVERYTHING["operators"].split(",") if guarded else [])
        # What the balancer takes in one rule.
        assert len(paths) + len(networks) <= 5


# Stopping


def test_a_stop_leaves_calls_the_time_that_every_part_of_it_knows_of(stacks: Stacks) -> None:
    container = containers(stacks)["server"]
    told = {name: int(environment(container)[name].rstrip("s")) for name in ("DRAIN_DELAY", "SHUTDOWN_TIMEOUT")}
    assert container["StopTimeout"] <= 120, "Fargate's most"
    assert sum(told.values()) + 10 <= container["StopTimeout"]
    for group in resources(stacks, "AWS::ElasticLoadBalancingV2::TargetGroup"):
        delay = int(attributes(group, "TargetGroupAttributes")["deregistration_delay.timeout_seconds"])
        assert delay >= sum(told.values())


def test_the_balancer_cuts_no_silent_call_before_the_proxy_and_no_kept_connection_after_it(stacks: Stacks) -> None:
    [balancer] = resources(stacks, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    idle = int(attributes(balancer, "LoadBalancerAttributes")["idle_timeout.timeout_seconds"])
    # The profiles' first_byte, and for how long the proxy keeps a gateway's idle connection; tests/deploy/test_aws.py holds both
    # against the product.
    assert 600 < idle < 3660


def test_what_ecs_kills_for_does_not_depend_on_the_database(stacks: Stacks) -> None:
    assert {group["HealthCheckPath"] for group in resources(stacks, "AWS::ElasticLoadBalancingV2::TargetGroup")} == {"/live"}
    for command, container in containers(stacks).items():
        if command.startswith("dispatcher"):
            assert container["HealthCheck"]["Command"] == ["CMD", "llm-proxy", "health", "--addr", container["Command"][-1]]


# Secrets


def test_no_template_holds_a_secret(stacks: Stacks) -> None:
    for container in containers(stacks).values():
        told = environment(container)
        assert not secrets(container) & set(told)
        assert {name for name in told if name.endswith(("_KEY", "_TOKEN", "PASSWORD"))} <= {"REQUIRE_ENCRYPTION_KEY"}
    # A reference, or a wish for chance: nothing that is written out.
    for secret in resources(stacks, "AWS::SecretsManager::Secret"):
        assert "GenerateSecretString" in secret or "{{resolve:secretsmanager:" in json.dumps(secret["SecretString"])


def test_each_task_gets_the_secrets_that_it_needs_and_no_other(stacks: Stacks) -> None:
    found = containers(stacks)
    sinks = {command.split()[-1] for command in found if command.startswith("dispatcher")}
    keys = {settings.SINK_KEYS[sink] for sink in sinks}
    own = {"MANAGEMENT_TOKEN", "METRICS_TOKEN", "ENCRYPTION_KEY", "PGPASSWORD", "REDIS_URL"}
    assert secrets(found["server"]) == own | keys
    assert secrets(found["migrate up"]) == {"PGPASSWORD"}
    for sink in sinks:
        assert secrets(found[f"dispatcher --service {sink}"]) == {"REDIS_URL", settings.SINK_KEYS[sink]}


def test_database_and_redis_are_reached_by_tls_with_a_password(stacks: Stacks) -> None:
    for command in ("server", "migrate up"):
        url = json.dumps(environment(containers(stacks)[command])["DATABASE_URL"])
        assert "sslmode=verify-full" in url and "sslrootcert=/etc/ssl/rds.pem" in url
    [group] = resources(stacks, "AWS::RDS::DBClusterParameterGroup")
    assert group["Parameters"]["rds.force_ssl"] == "1"
    [redis] = resources(stacks, "AWS::ElastiCache::ReplicationGroup")
    assert redis["TransitEncryptionEnabled"] and redis["AtRestEncryptionEnabled"] and redis["AuthToken"]
    [url] = [secret for secret in resources(stacks, "AWS::SecretsManager::Secret") if "SecretString" in secret]
    assert url["SecretString"]["Fn::Join"][1][0].startswith("rediss://:{{resolve:secretsmanager:")
    [parameters] = resources(stacks, "AWS::ElastiCache::ParameterGroup")
    assert parameters["Properties"] == {"maxmemory-policy": "noeviction"}


# Rights


def statements(stacks: Stacks) -> Iterator[dict[str, Any]]:
    for policy in resources(stacks, "AWS::IAM::Policy"):
        yield from policy["PolicyDocument"]["Statement"]


def test_tasks_may_read_their_image_and_secrets_and_write_their_log_and_nothing_else(stacks: Stacks) -> None:
    for statement in statements({name: stacks[name] for name in ("migration", "service")}):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all("*" not in action for action in actions)
        # That one call knows no resource.
        assert statement["Resource"] != "*" or actions == ["ecr:GetAuthorizationToken"]
        assert {action.split(":")[0] for action in actions} <= {"ecr", "logs", "secretsmanager", "ssm"}


def test_the_program_itself_has_no_right_at_all(stacks: Stacks) -> None:
    roles = {task["TaskRoleArn"]["Fn::GetAtt"][0] for task in resources(stacks, "AWS::ECS::TaskDefinition")}
    for policy in resources(stacks, "AWS::IAM::Policy"):
        assert not roles & {role["Ref"] for role in policy["Roles"]}
    for role in resources(stacks, "AWS::IAM::Role"):
        assert not role.get("ManagedPolicyArns") and not role.get("Policies")


def test_the_pipeline_may_do_what_the_script_does_for_its_own_repository_only(template: Of) -> None:
    found = template("pipeline", "everything")
    claims = {"StringEquals": Match.object_like({f"{GITHUB}:sub": "repo:example/llm-proxy:environment:production"})}
    lent = {"AssumeRolePolicyDocument": {"Statement": [Match.object_like({"Condition": claims})]}}
    found.has_resource_properties("AWS::IAM::Role", lent)
    script = (Path(__file__).parents[1] / "deploy").read_text()
    calls = {f"{service}:{call.replace('-', '')}" for service, call in re.findall(r"\baws (\w+) ([\w-]+)", script)}
    # What these two do is allowed under another name.
    calls = calls - {"ecs:wait", "logs:tail", "ecr:getloginpassword"} | {"logs:filterlogevents", "ecr:getauthorizationtoken"}
    allowed = {}
    for statement in statements({"": found.to_json()}):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        allowed |= {action.lower(): statement["Resource"] for action in actions}
    assert calls <= set(allowed)
    assert [action for action, resource in allowed.items() if resource == "*"] == ["ecr:getauthorizationtoken"]


def test_connections_are_allowed_one_by_one(stacks: Stacks) -> None:
    def side(kind: str, peer: str) -> set[tuple[str, str, int]]:
        found = resources(stacks, f"AWS::EC2::SecurityGroup{kind}")
        return {(named(one["GroupId"]), named(one[peer]), one["FromPort"]) for one in found if one["FromPort"] == one["ToPort"]}

    def named(group: dict[str, Any]) -> str:
        return group["Fn::GetAtt"][0][:-8]

    expected = {
        ("Balancer", "Proxy", 8080),
        ("Balancer", "Proxy", 8081),
        ("Proxy", "Database", 5432),
        ("Migration", "Database", 5432),
        ("Proxy", "Redis", 6379),
        ("Dispatcher", "Redis", 6379),
    }
    assert side("Egress", "DestinationSecurityGroupId") == expected
    assert {(peer, group, port) for group, peer, port in side("Ingress", "SourceSecurityGroupId")} == expected
    assert len([*resources(stacks, "AWS::EC2::SecurityGroupIngress")]) == len(expected)
    groups = [*resources(stacks, "AWS::EC2::SecurityGroup")]
    assert sorted(rule["FromPort"] for group in groups for rule in group.get("SecurityGroupIngress", [])) == [80, 443]
    out = {(rule["CidrIp"], rule.get("FromPort")) for group in groups for rule in group.get("SecurityGroupEgress", [])}
    # 255.255.255.255/32 is CDK's way to write that nothing may go out.
    assert out - {("255.255.255.255/32", 252), ("255.255.255.255/32", 0)} == {("0.0.0.0/0", 443)}


def test_containers_write_nowhere_but_to_data(stacks: Stacks) -> None:
    for container in containers(stacks).values():
        assert container["ReadonlyRootFilesystem"] is True
        assert [mount["ContainerPath"] for mount in container["MountPoints"]] == ["/data"]
        assert container["LogConfiguration"]["Options"]["mode"] == "non-blocking"


# Services


def test_proxies_grow_by_cpu_and_by_requests(template: Of) -> None:
    for case, least, most, cpu, requests in (("plain", 1, 4, 60, 30000), ("everything", 2, 8, 50, 9000)):
        found = template("service", case)
        target = {"MinCapacity": least, "MaxCapacity": most}
        found.has_resource_properties("AWS::ApplicationAutoScaling::ScalableTarget", target)
        for metric, value in (("ECSServiceAverageCPUUtilization", cpu), ("ALBRequestCountPerTarget", requests)):
            policy = {"TargetValue": value, "PredefinedMetricSpecification": {"PredefinedMetricType": metric}}
            wanted = {"TargetTrackingScalingPolicyConfiguration": Match.object_like(policy)}
            found.has_resource_properties("AWS::ApplicationAutoScaling::ScalingPolicy", wanted)


def test_a_deployment_neither_stops_what_runs_nor_resets_its_number(stacks: Stacks) -> None:
    for service in resources(stacks, "AWS::ECS::Service"):
        rollout = service["DeploymentConfiguration"]
        assert rollout["MinimumHealthyPercent"] == 100
        assert rollout["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
        assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
        assert ("LoadBalancers" in service) != ("DesiredCount" in service)


def test_events_go_through_redis_once_there_is_a_dispatcher(template: Of) -> None:
    template("service").resource_count_is("AWS::ECS::Service", 1)
    template("service", "everything").resource_count_is("AWS::ECS::Service", 3)
    for case, bus in (("plain", "in-memory"), ("everything", "redis-streams")):
        wanted = {"Name": "LLM_PROXY_EVENT_BUS", "Value": bus}
        container = Match.object_like({"Command": ["server"], "Environment": Match.array_with([wanted])})
        template("service", case).has_resource_properties("AWS::ECS::TaskDefinition", {"ContainerDefinitions": [container]})


def test_options_arrive_where_they_belong(template: Of) -> None:
    service, database, redis = (template(stack, "everything") for stack in ("service", "database", "redis"))
    for command, setting in (("server", "LOG_LEVEL"), ("dispatcher", "LOG_LEVEL")):
        told = Match.object_like({"Environment": Match.array_with([{"Name": setting, "Value": "debug"}])})
        task = {"ContainerDefinitions": [told], "RuntimePlatform": {"CpuArchitecture": "ARM64"}}
        assert command in json.dumps(service.find_resources("AWS::ECS::TaskDefinition", {"Properties": task}))
    service.has_resource_properties("AWS::ECS::TaskDefinition", {"Cpu": "2048", "Memory": "4096"})
    service.has_resource_properties("AWS::Logs::LogGroup", {"LogGroupName": "/staging/proxy", "RetentionInDays": 365})
    capacity = {"MinCapacity": 1, "MaxCapacity": 16}
    cluster = {"ServerlessV2ScalingConfiguration": capacity, "BackupRetentionPeriod": 14, "DeletionProtection": False}
    database.has_resource_properties("AWS::RDS::DBCluster", cluster)
    database.resource_count_is("AWS::RDS::DBInstance", 2)
    nodes = {"CacheNodeType": "cache.m7g.large", "NumCacheClusters": 2, "AutomaticFailoverEnabled": True, "MultiAZEnabled": True}
    redis.has_resource_properties("AWS::ElastiCache::ReplicationGroup", nodes)


def test_data_outlives_its_stack_unless_that_was_given_up(template: Of) -> None:
    kept = {"DeletionPolicy": "Snapshot", "UpdateReplacePolicy": "Snapshot", "Properties": {"DeletionProtection": True}}
    template("database").has_resource("AWS::RDS::DBCluster", Match.object_like(kept))
    template("database", "everything").has_resource("AWS::RDS::DBCluster", {"DeletionPolicy": "Delete"})


def test_an_existing_vpc_is_used_as_it_is(template: Of) -> None:
    network = template("network", "everything")
    for kind in ("AWS::EC2::VPC", "AWS::EC2::Subnet", "AWS::EC2::NatGateway"):
        network.resource_count_is(kind, 0)
    subnets = {"Subnets": EVERYTHING["public_subnets"].split(",")}
    template("balancer", "everything").has_resource_properties("AWS::ElasticLoadBalancingV2::LoadBalancer", subnets)
    private = {"SubnetIds": EVERYTHING["private_subnets"].split(",")}
    template("database", "everything").has_resource_properties("AWS::RDS::DBSubnetGroup", private)
    trusted = {"Name": "TRUSTED_PROXIES", "Value": EVERYTHING["vpc_cidr"]}
    container = Match.object_like({"Environment": Match.array_with([trusted])})
    wanted = {"ContainerDefinitions": [container]}
    template("service", "everything").has_resource_properties("AWS::ECS::TaskDefinition", wanted)


# What operators see


def test_every_metric_filter_feeds_the_dashboard_or_an_alarm(stacks: Stacks) -> None:
    monitoring = stacks["monitoring"]
    metrics = {
        found["MetricTransformations"][0]["MetricName"] for found in resources({"": monitoring}, "AWS::Logs::MetricFilter")
    }
    shown = json.dumps([*resources({"": monitoring}, "AWS::CloudWatch::Dashboard")]).replace("\\", "")
    watched = json.dumps([*resources({"": monitoring}, "AWS::CloudWatch::Alarm")])
    assert {name for name in metrics if f'"{name}"' not in shown + watched} == set()


def test_alarms_say_what_to_do_and_reach_someone(stacks: Stacks) -> None:
    alarms = [*resources(stacks, "AWS::CloudWatch::Alarm")]
    assert len(alarms) >= 8
    for alarm in alarms:
        assert alarm["AlarmDescription"].endswith((".", "?")) and len(alarm["AlarmDescription"]) > 30
        assert alarm["AlarmActions"] and alarm["OKActions"]
        assert alarm["TreatMissingData"] == "notBreaching"
    assert len([*resources(stacks, "AWS::SNS::Subscription")]) == (1 if "staging" in json.dumps(stacks) else 0)
