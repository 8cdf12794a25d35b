"""LLM Proxy on AWS, one stack for each concern."""
