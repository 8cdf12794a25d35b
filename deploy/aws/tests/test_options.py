"""Options are read, or refused with what to give instead."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cases import EVERYTHING, EXISTING, GIVEN
from stacks.options import LOG_DAYS, TABLE, OptionError, read

GUIDE = Path(__file__).parents[2] / "AWS.md"


def test_texts_of_the_command_line_and_values_of_a_file_are_read_alike() -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in EVERYTHING.items()}
    assert read(texts) == read(EVERYTHING)
    assert read({**GIVEN, "sinks": ["lunary", "helicone"]}).sinks == ("lunary", "helicone")


def test_what_cdk_itself_keeps_in_the_context_is_passed_over() -> None:
    assert read({**GIVEN, "aws:cdk:enable-path-metadata": True, "@aws-cdk/core:x": True, "cli-telemetry": False}) == read(GIVEN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tag": ""}, "tag is missing"),
        ({"domain": ""}, "domain is missing"),
        ({"zone_id": ""}, "either zone_id"),
        ({"certificate_arn": "arn:aws:acm:eu-central-1:1:certificate/1"}, "either zone_id"),
        ({"max_task": "4"}, "max_task is not an option; did you mean max_tasks"),
        ({"max-tasks": "4"}, "max-tasks is not an option; did you mean max_tasks"),
        ({"min_tasks": "5"}, "min_tasks is 1 or more, and not above max_tasks"),
        ({"min_tasks": "0"}, "min_tasks is 1 or more"),
        ({"min_tasks": "few"}, "min_tasks=few: give a whole number"),
        ({"arm64": "yes"}, "arm64=yes: give true or false"),
        ({"database_min_acu": "0"}, "database_min_acu is 0.5 or more"),
        ({"database_min_acu": "some"}, "database_min_acu=some: give a number"),
        ({"redis_nodes": "0"}, "redis_nodes and nat_gateways are 1 or more"),
        ({"log_days": "31"}, f"log_days is one of {LOG_DAYS[0]}, {LOG_DAYS[1]}"),
        ({"backup_days": "36"}, "backup_days is 1 to 35"),
        ({"sinks": "file"}, "sinks=file: give some of lunary, helicone"),
        ({"operators": "10.0.0.1/8"}, "operators=10.0.0.1/8: give networks"),
        ({"operators": ""}, "operators takes 1 to 3"),
        ({"operators": "10.0.0.0/8,11.0.0.0/8,12.0.0.0/8,13.0.0.0/8"}, "operators takes 1 to 3"),
        ({"vpc_id": "vpc-1"}, "vpc_id needs public_subnets"),
        ({**EXISTING, "private_subnets": "subnet-1"}, "vpc_id needs public_subnets"),
        ({"public_subnets": "subnet-1,subnet-2"}, "need vpc_id"),
        ({"settings": "LOG_LEVEL=debug"}, "give a JSON object of texts"),
        ({"settings": {"LOG_LEVEL": 1}}, "give a JSON object of texts"),
        ({"settings": {"ENCRYPTION_KEY": "x"}}, "settings: ENCRYPTION_KEY is not to be given here"),
        ({"name": "Staging"}, "name has 3 to 31 small letters"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_deployed_is_refused_with_what_can(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        read({**GIVEN, **given})


def test_the_guide_lists_every_option() -> None:
    lines = ["| option | default | what it does |", "| --- | --- | --- |"]
    for field in TABLE:
        default = f"`{field.metadata['default']}`" if field.metadata["default"] else "-"
        lines.append(f"| `{field.name}` | {default} | {field.metadata['help']} |")
    wanted = "\n".join(lines)
    assert wanted in GUIDE.read_text(), f"paste this into {GUIDE.name}:\n{wanted}"
