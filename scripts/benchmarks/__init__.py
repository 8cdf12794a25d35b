"""What `scripts/bench` and `scripts/profile` run: the proxy under load on this machine, beside nginx."""
