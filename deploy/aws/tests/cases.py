"""What the deployments are that the tests look at."""

# What every deployment has to say.
GIVEN = {"tag": "1.0.0", "domain": "llm.example.com", "zone_id": "Z0123456789ABC"}
EXISTING = {
    "vpc_id": "vpc-0a1b2c3d",
    "vpc_cidr": "172.20.0.0/16",
    "public_subnets": "subnet-0a1b2c31,subnet-0a1b2c32",
    "private_subnets": "subnet-0b1b2c31,subnet-0b1b2c32",
}
EVERYTHING = {
    **EXISTING,
    "name": "staging",
    "tag": "1.0.0",
    "domain": "llm.example.com",
    "certificate_arn": "arn:aws:acm:eu-central-1:123456789012:certificate/0a1b2c3d-0000-4000-8000-000000000000",
    "operators": "203.0.113.0/24,198.51.100.7/32",
    "arm64": True,
    "cpu": 2048,
    "memory": 4096,
    "min_tasks": 2,
    "max_tasks": 8,
    "target_cpu": 50,
    "requests_per_target": 9000,
    "sinks": "lunary,helicone",
    "settings": {"LOG_LEVEL": "debug"},
    "database_min_acu": 1,
    "database_max_acu": 16,
    "database_readers": 1,
    "redis_node": "cache.m7g.large",
    "redis_nodes": 2,
    "log_days": 365,
    "backup_days": 14,
    "keep_data": False,
    "alarm_email": "ops@example.com",
    "github": "example/llm-proxy",
}
CASES = {"plain": GIVEN, "everything": EVERYTHING}
