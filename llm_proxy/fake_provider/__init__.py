"""A stand-in for OpenAI or Anthropic that answers by rule, with faults on demand."""

from llm_proxy.fake_provider.app import create_app, running
from llm_proxy.fake_provider.faults import Faults

__all__ = ["Faults", "create_app", "running"]
