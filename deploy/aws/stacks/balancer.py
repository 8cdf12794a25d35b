"""The entrance: one name with TLS, which sends each path to the site that serves it."""

from typing import NamedTuple

import aws_cdk as cdk
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from constructs import Construct

from stacks.network import Network
from stacks.options import Options
from stacks.settings import ADMIN_PORT, DEREGISTRATION_DELAY, IDLE_TIMEOUT, PROXY_PORT

EVERYWHERE = ("0.0.0.0/0",)


class Route(NamedTuple):
    """Paths that go to a site; a rule holds five values, the networks of operators included."""

    site: str
    paths: tuple[str, ...]
    operators_only: bool


ROUTES = (
    Route("proxy", ("/v1/*", "/health*", "/ready", "/live"), operators_only=False),
    # Where clients of Azure's call.
    Route("proxy", ("/openai/*",), operators_only=False),
    Route("proxy", ("/manage/*",), operators_only=True),
    Route("admin", ("/admin", "/admin/*"), operators_only=True),
)


class Balancer(cdk.Stack):
    """What no route names is answered here, with 404: /metrics among it.

    Attributes:
        sites: the target group of each site.
    """

    def __init__(self, scope: Construct, id: str, options: Options, network: Network) -> None:
        super().__init__(scope, id, description="LLM Proxy: entrance")
        self.balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=network.vpc,
            internet_facing=True,
            security_group=network.balancer,
            idle_timeout=cdk.Duration.seconds(IDLE_TIMEOUT),
            deletion_protection=options.keep_data,
        )
        self.sites = {
            "proxy": self._site("Proxy", network, PROXY_PORT),
            # Its list of running calls is that of one task: a browser stays with it.
            "admin": self._site("Admin", network, ADMIN_PORT, stickiness_cookie_duration=cdk.Duration.hours(12)),
        }
        self._route(options, self._listener(self._certificate(options)))
        cdk.CfnOutput(self, "Url", value=f"https://{options.domain}", description="Where clients call")
        cdk.CfnOutput(self, "Address", value=self.balancer.load_balancer_dns_name, description="What the name must point to")

    def _certificate(self, options: Options) -> acm.ICertificate:
        if options.certificate_arn:
            return acm.Certificate.from_certificate_arn(self, "Certificate", options.certificate_arn)
        # The zone may be that of a name further up; records are written with whole names.
        zone = route53.HostedZone.from_hosted_zone_attributes(
            self, "Zone", hosted_zone_id=options.zone_id, zone_name=options.domain
        )
        to_balancer = route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.balancer))
        route53.ARecord(self, "Record", zone=zone, target=to_balancer)
        return acm.Certificate(
            self, "Certificate", domain_name=options.domain, validation=acm.CertificateValidation.from_dns(zone)
        )

    def _listener(self, certificate: acm.ICertificate) -> elb.ApplicationListener:
        self._refuse_calls_without_tls()
        return self.balancer.add_listener(
            "Https",
            port=443,
            open=False,
            certificates=[certificate],
            ssl_policy=elb.SslPolicy.RECOMMENDED_TLS,
            default_action=elb.ListenerAction.fixed_response(404, content_type="text/plain", message_body="Not found\n"),
        )

    def _refuse_calls_without_tls(self) -> None:
        """A client that follows redirects would show its token to the world with every call; only pages lead to TLS."""
        refused = elb.ListenerAction.fixed_response(403, content_type="text/plain", message_body="Use https.\n")
        pages = [
            elb.ListenerCondition.path_patterns(["/", "/admin", "/admin/*"]),
            elb.ListenerCondition.http_request_methods(["GET", "HEAD"]),
        ]
        self.balancer.add_listener("Http", port=80, open=False, default_action=refused).add_action(
            "Pages",
            priority=10,
            conditions=pages,
            action=elb.ListenerAction.redirect(protocol="HTTPS", port="443", permanent=True),
        )

    def _site(self, name: str, network: Network, port: int, **more: object) -> elb.ApplicationTargetGroup:
        return elb.ApplicationTargetGroup(
            self,
            name,
            vpc=network.vpc,
            port=port,
            protocol=elb.ApplicationProtocol.HTTP,
            target_type=elb.TargetType.IP,
            deregistration_delay=cdk.Duration.seconds(DEREGISTRATION_DELAY),
            # Not /ready: ECS kills what fails here. Without their database, proxies go on for tokens that they know, and new
            # ones could not start.
            health_check=elb.HealthCheck(
                path="/live",
                interval=cdk.Duration.seconds(10),
                timeout=cdk.Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
            ),
            **more,
        )

    def _route(self, options: Options, listener: elb.ApplicationListener) -> None:
        limited = options.operators != EVERYWHERE
        for number, route in enumerate(ROUTES, start=1):
            conditions = [elb.ListenerCondition.path_patterns(list(route.paths))]
            if route.operators_only and limited:
                conditions.append(elb.ListenerCondition.source_ips(list(options.operators)))
            listener.add_action(
                f"Route{number}",
                priority=number * 10,
                conditions=conditions,
                action=elb.ListenerAction.forward([self.sites[route.site]]),
            )
