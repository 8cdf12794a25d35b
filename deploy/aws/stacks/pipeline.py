"""The role by which a GitHub workflow deploys."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from constructs import Construct

from stacks import settings
from stacks.options import Options

ISSUER = "token.actions.githubusercontent.com"
# The workflow's environment: GitHub asks there whom it is told to ask.
ENVIRONMENT = "production"


class Pipeline(cdk.Stack):
    """No key is kept at GitHub: the workflow shows a signed token, for which AWS lends it the role.

    It names what other stacks made instead of importing it, so that it can come and go.

    Stacks are changed by CDK's own roles, which this one may take on; the rest is what `deploy` itself calls.
    """

    def __init__(self, scope: Construct, id: str, options: Options) -> None:
        super().__init__(scope, id, description="LLM Proxy: role of the GitHub workflow")
        subject = f"repo:{options.github}:environment:{ENVIRONMENT}"
        claims = {f"{ISSUER}:aud": "sts.amazonaws.com", f"{ISSUER}:sub": subject}
        # An account has one for all that GitHub deploys to it, so it is made by hand.
        issuer = self._arn("iam", f"oidc-provider/{ISSUER}", region="")
        lent_to = iam.WebIdentityPrincipal(issuer, {"StringEquals": claims})
        self.role = iam.Role(self, "Role", assumed_by=lent_to, max_session_duration=cdk.Duration.hours(2))
        ecr.Repository.from_repository_name(self, "Images", options.name).grant_pull_push(self.role)
        self._allow(options)
        cdk.CfnOutput(self, "RoleArn", value=self.role.role_arn)

    def _allow(self, options: Options) -> None:
        key = settings.parameter(options, settings.ENCRYPTION_KEY)
        task = f"task-definition/{options.name}-migration:*"
        cluster = {"ArnEquals": {"ecs:cluster": self._arn("ecs", f"cluster/{options.name}")}}
        to_tasks = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
        roles = [self._arn("iam", f"role/{options.name}-migration-*", region="")]
        self._may(["sts:AssumeRole"], [self._arn("iam", "role/cdk-*", region="")])
        self._may(["ecr:DescribeRepositories", "ecr:DescribeImages"], [self._arn("ecr", f"repository/{options.name}")])
        self._may(["ssm:GetParameter", "ssm:PutParameter"], [self._arn("ssm", f"parameter{key}")])
        self._may(["cloudformation:DescribeStacks"], [self._arn("cloudformation", f"stack/{options.name}-migration/*")])
        self._may(["ecs:RunTask"], [self._arn("ecs", task)], cluster)
        self._may(["ecs:DescribeTasks"], [self._arn("ecs", f"task/{options.name}/*")], cluster)
        self._may(["iam:PassRole"], roles, to_tasks)
        self._may(["logs:FilterLogEvents"], [self._arn("logs", f"log-group:/{options.name}/migration:*")])

    def _arn(self, service: str, resource: str, region: str | None = None) -> str:
        place = self.region if region is None else region
        return f"arn:{self.partition}:{service}:{place}:{self.account}:{resource}"

    def _may(self, actions: list[str], resources: list[str], conditions: dict[str, object] | None = None) -> None:
        self.role.add_to_policy(iam.PolicyStatement(actions=actions, resources=resources, conditions=conditions))
