"""The secrets that the deployment makes for itself."""

import aws_cdk as cdk
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.options import Options
from stacks.settings import GENERATED

LENGTH = 48


class Secrets(cdk.Stack):
    """Tokens that may be written anew by hand: a deployment never touches one that exists.

    The encryption key is not among them. Provider keys can only be read with it, so it must not go with a stack.
    """

    def __init__(self, scope: Construct, id: str, options: Options) -> None:
        super().__init__(scope, id, description="LLM Proxy: secrets")
        self.by_setting = {name: self._generated(options, name) for name in GENERATED}

    def _generated(self, options: Options, name: str) -> secretsmanager.Secret:
        return secretsmanager.Secret(
            self,
            name.title().replace("_", ""),
            secret_name=f"{options.name}/{name}",
            description=f"{name} of {options.name}",
            # A comma would separate two tokens.
            generate_secret_string=secretsmanager.SecretStringGenerator(exclude_punctuation=True, password_length=LENGTH),
        )
