"""LLM Proxy hides provider keys behind withering tokens."""

__version__ = "0.1.0"
