"""`python -m llm_proxy` does what `llm-proxy` does."""

from llm_proxy.cli import main

main()
