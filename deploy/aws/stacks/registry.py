"""The repository of images."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from constructs import Construct

from stacks.options import Options

# Those that a way back may still need.
KEPT_IMAGES = 20


class Registry(cdk.Stack):
    """Images whose tags never change, so that a tag says what runs."""

    def __init__(self, scope: Construct, id: str, options: Options) -> None:
        super().__init__(scope, id, description="LLM Proxy: images")
        self.repository = ecr.Repository(
            self,
            "Images",
            repository_name=options.name,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            lifecycle_rules=[ecr.LifecycleRule(max_image_count=KEPT_IMAGES)],
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
