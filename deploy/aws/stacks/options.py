"""The options of a deployment, as CDK's context gives them."""

import dataclasses
import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What CDK keeps two years of, and the like: CloudWatch knows no other numbers of days.
LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827)
# A rule of the balancer holds five values, of which /admin and /admin/* are two.
MOST_OPERATORS = 3
# What tasks get from elsewhere; a task may not be told one name twice.
NOT_GIVEN = (
    *("ADMIN_KEY", "DATABASE_URL", "DB_URL", "ENCRYPTION_KEY", "HELICONE_API_KEY", "LUNARY_API_KEY", "MANAGEMENT_TOKEN"),
    *("METRICS_TOKEN", "REDIS_URL"),
)
# Without the sink `file`, whose disk goes with its task.
SINKS = ("lunary", "helicone")


class OptionError(Exception):
    """An option that cannot be used; the text says what can."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _flag(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(word)) for word in _words(text))
    except ValueError:
        raise ValueError("networks such as 203.0.113.0/24, separated by commas") from None


def _settings(text: str) -> dict[str, str]:
    try:
        given = json.loads(text or "{}")
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ValueError('a JSON object of texts, such as {"LOG_LEVEL": "debug"}')
    return given


def option(parse: Callable[[str], Any], default: str, help: str) -> Any:
    """One option: a field whose default is written as an operator would write it."""
    metadata = {"parse": parse, "default": default, "help": help}
    return dataclasses.field(default_factory=lambda: parse(default), metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an operator may choose."""

    name: str = option(str, "llm-proxy", "What stacks, parameters and logs are called after; `deploy` takes it from `NAME`.")
    tag: str = option(str, "", "The image's tag in the repository. Always needed; `deploy` gives it.")
    domain: str = option(str, "", "The name that clients use, such as llm.example.com. Always needed.")
    zone_id: str = option(str, "", "The Route 53 zone of that name: the certificate and the record are made there.")
    certificate_arn: str = option(str, "", "Without a zone: the ACM certificate of the name; the record is yours to make.")
    operators: tuple[str, ...] = option(
        _networks, "0.0.0.0/0", f"The networks (at most {MOST_OPERATORS}) from which /manage and /admin are reached."
    )

    vpc_id: str = option(str, "", "An existing VPC to use, with the four that follow; without one a VPC is made.")
    vpc_cidr: str = option(str, "10.80.0.0/16", "The VPC's addresses; with `vpc_id`, those that it has.")
    public_subnets: tuple[str, ...] = option(_words, "", "Its public subnets, one in each of two zones or more.")
    private_subnets: tuple[str, ...] = option(_words, "", "Its private subnets in the same zones, with a way out (NAT).")
    nat_gateways: int = option(_count, "1", "NAT gateways of a VPC that is made; 2 outlive the loss of a zone.")

    arm64: bool = option(_flag, "false", "Run on Graviton, a fifth cheaper; give `deploy` `PLATFORM=linux/arm64`.")
    cpu: int = option(_count, "1024", "CPU units of a proxy's task; one process uses one core, which is 1024.")
    memory: int = option(_count, "2048", "MiB of a proxy's task.")
    min_tasks: int = option(_count, "1", "The fewest proxies.")
    max_tasks: int = option(_count, "4", "The most proxies.")
    target_cpu: int = option(_count, "60", "Percent of CPU above which proxies are added.")
    requests_per_target: int = option(_count, "30000", "Requests a minute and proxy above which proxies are added.")
    sinks: tuple[str, ...] = option(_words, "", f"Where a dispatcher each delivers events: {', '.join(SINKS)}.")
    settings: dict[str, str] = option(_settings, "{}", "More settings of llm-proxy, as a JSON object; no secrets.")  # noqa: RUF009

    database_min_acu: float = option(_number, "0.5", "The least capacity of Aurora, in ACU.")
    database_max_acu: float = option(_number, "4", "The greatest.")
    database_readers: int = option(_count, "0", "Further instances of Aurora, which take over when the writer fails.")
    redis_node: str = option(str, "cache.t4g.small", "The type of Redis's nodes.")
    redis_nodes: int = option(_count, "1", "Nodes of Redis; from 2 on one takes over when the other fails.")

    log_days: int = option(_count, "30", "Days for which logs are kept.")
    backup_days: int = option(_count, "7", "Days for which the database can be brought back to any second.")
    keep_data: bool = option(_flag, "true", "Protect the database from deletion, and keep a snapshot if its stack goes.")
    alarm_email: str = option(str, "", "Whom alarms are mailed to; without one they only show.")
    github: str = option(str, "", "The GitHub repository (owner/name) whose workflow may deploy; makes its role.")


TABLE = dataclasses.fields(Options)


def read(context: Mapping[str, Any]) -> Options:
    """The options that a context gives; what CDK itself keeps there is passed over.

    Raises:
        OptionError: one is unknown, does not parse, is missing, or contradicts another.
    """
    fields = {field.name: field for field in TABLE}
    # CDK's own names have a colon, a slash or a hyphen in them.
    own = {name: value for name, value in context.items() if name.isidentifier() or name.replace("-", "_") in fields}
    for name in own.keys() - fields.keys():
        near = difflib.get_close_matches(name, fields, 1)
        raise OptionError(f"{name} is not an option{f'; did you mean {near[0]}?' if near else '.'}")
    options = Options(**{name: _parse(fields[name], value) for name, value in own.items()})
    for check in (_check_name, _check_entrance, _check_network, _check_capacity):
        check(options)
    return options


def _parse(field: "dataclasses.Field[Any]", value: Any) -> Any:
    # cdk.json may hold more than texts: numbers, flags, lists, objects.
    match value:
        case list():
            value = ",".join(map(str, value))
        case dict() | bool():
            value = json.dumps(value)
    try:
        return field.metadata["parse"](str(value))
    except ValueError as error:
        raise OptionError(f"{field.name}={value}: give {error}.") from None


def _check_name(options: Options) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]{1,29}[a-z0-9]", options.name):
        raise OptionError("name has 3 to 31 small letters, digits and hyphens, a letter first.")


def _check_entrance(options: Options) -> None:
    for name in ("tag", "domain"):
        if not getattr(options, name):
            raise OptionError(f"{name} is missing: -c {name}=...")
    if bool(options.zone_id) == bool(options.certificate_arn):
        raise OptionError("Give either zone_id, whose zone the certificate and the record are made in, or certificate_arn.")
    if not 1 <= len(options.operators) <= MOST_OPERATORS:
        raise OptionError(f"operators takes 1 to {MOST_OPERATORS} networks.")


def _check_network(options: Options) -> None:
    subnets = (options.public_subnets, options.private_subnets)
    if options.vpc_id and not 2 <= len(options.public_subnets) == len(options.private_subnets):
        raise OptionError("vpc_id needs public_subnets and private_subnets: one of each in two zones or more.")
    if not options.vpc_id and any(subnets):
        raise OptionError("public_subnets and private_subnets need vpc_id.")


def _check_capacity(options: Options) -> None:
    if not 1 <= options.min_tasks <= options.max_tasks:
        raise OptionError("min_tasks is 1 or more, and not above max_tasks.")
    # At 0 Aurora goes to sleep without connections, and the proxies always hold some.
    if not 0.5 <= options.database_min_acu <= options.database_max_acu:
        raise OptionError("database_min_acu is 0.5 or more, and not above database_max_acu.")
    if options.redis_nodes < 1 or options.nat_gateways < 1:
        raise OptionError("redis_nodes and nat_gateways are 1 or more.")
    if options.log_days not in LOG_DAYS:
        raise OptionError(f"log_days is one of {', '.join(map(str, LOG_DAYS))}.")
    if not 1 <= options.backup_days <= 35:
        raise OptionError("backup_days is 1 to 35.")
    if secret := set(options.settings) & set(NOT_GIVEN):
        raise OptionError(f"settings: {min(secret)} is not to be given here; its value comes from the stacks, or is a secret.")
    if unknown := set(options.sinks) - set(SINKS):
        raise OptionError(f"sinks={min(unknown)}: give some of {', '.join(SINKS)}. The sink `file` would go with its task.")
