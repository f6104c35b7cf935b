"""Every flag of every command, in one table; a settings class becomes options, and options become settings.

A value comes from the flag, else from HEADRACE_<FLAG>, else from the TOML file of --config, else it is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from headrace.cli.config import read_table
from headrace.cli.kinds import (
    AMOUNT,
    AT_LEAST_ONE,
    COUNT,
    ENGINE,
    FILE,
    HOLD,
    LEVEL,
    LIFE,
    ON_DEMAND,
    PORT,
    ROUTING,
    SECONDS,
    SIZE,
    Option,
)
from headrace.errors import UserError
from headrace.settings import TlsSettings


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of the table. `env` is the variable's name after HEADRACE_ where it is not the flag's own."""

    help: str
    type: Any = str
    name: str = ""  # where the flag is not called as the field is; the field's name works as well
    env: str = ""
    switch: bool = False
    many: bool = False
    empty: bool = False  # "" has a meaning


FLAGS: dict[str, Flag] = {
    "model": Flag(
        "Model to serve: a catalog name, a folder, hf://org/name or s3://bucket/prefix. Repeatable.", many=True
    ),
    "http_host": Flag("Address that the HTTP proxies listen on."),
    "http_port": Flag("Port of the HTTP API.", PORT),
    "host": Flag("Address that the gRPC ports listen on."),
    "node_port": Flag("Port where schedulers connect.", PORT),
    "grpc_port": Flag("Port for proxies and for the command line.", PORT),
    "join_port": Flag("Port where machines join; 50053 where the head listens beyond this one, else none.", PORT),
    "num_proxies": Flag("HTTP proxy processes to keep alive.", COUNT),
    "state_dir": Flag("Where state, logs and process records are kept.", FILE),
    "cache_dir": Flag("Where weights and conversions are kept; safe to delete.", FILE),
    "cache_limit_bytes": Flag(
        "What the cache may come to, such as 200GiB; what was not used for longest goes first.",
        SIZE,
        name="cache_limit",
    ),
    "catalog": Flag("YAML file of models that adds to the built-in catalog.", FILE),
    "api_keys_file": Flag("File of API keys, one a line; without it no key is asked for.", FILE),
    "allowed_hosts": Flag(
        "Name that this server is called by, beside localhost, such as that of a reverse proxy. Repeatable.", many=True
    ),
    "cors_origins": Flag(
        "Origin of web pages that may use the server, such as http://localhost:3000; * with API keys. Repeatable.",
        many=True,
    ),
    "allow_insecure": Flag("Allow HTTP on a wide port without API keys.", switch=True),
    "forbid_remote_code": Flag("Refuse models that are to run code of their own.", switch=True),
    "on_demand": Flag(
        "Which models of the catalog the first request starts; without it, all where only this machine calls them"
        " without API keys, else those listed (on_demand: true).",
        ON_DEMAND,
    ),
    "on_demand_max": Flag("Models that requests have started which may run at once.", COUNT),
    "on_demand_idle_s": Flag(
        "Seconds after which a model that a request has started goes if nobody uses it; 0: never.", SECONDS
    ),
    "routing": Flag("How proxies choose replicas; all but auto are for comparison.", ROUTING),
    "tls_cert": Flag("PEM certificate of this process, for gRPC.", FILE),
    "tls_key": Flag("PEM key of that certificate.", FILE),
    "tls_ca": Flag("PEM certificate of the authority that signed all of them.", FILE),
    "tls_name": Flag("Name that every peer's certificate has, where none names the address that is dialled."),
    "certificate_life": Flag("Seconds for which the certificates hold that this process issues.", LIFE),
    "join": Flag("Line that `headrace token` shows at the head, or a file of it; for the first start here."),
    "lease_s": Flag("Seconds of silence after which a node counts as lost.", SECONDS),
    "drain_s": Flag("Seconds that running streams get to finish.", SECONDS),
    "log_level": Flag("How much is logged.", LEVEL),
    "node_id": Flag("Name of this machine among the nodes."),
    "head_address": Flag("Where the head is."),
    "port": Flag("The head's node_port.", PORT),
    "num_cpus": Flag("CPUs that replicas may use; without it, what the machine has.", AMOUNT),
    "num_gpus": Flag("GPUs that replicas may use; without it, what the machine has.", COUNT),
    "memory_bytes": Flag("Memory that replicas may use, such as 8GiB; without it, what there is.", SIZE, name="memory"),
    "start_limit_s": Flag(
        "Seconds without any progress after which the start of a replica has failed.", SECONDS, name="start_limit"
    ),
    "keep_replicas": Flag("Leave replicas running when told to stop, for the next scheduler.", switch=True),
    "alone_s": Flag("Seconds after which a replica ends that neither its scheduler nor a proxy needs.", SECONDS),
    "engine": Flag("Engine that runs the models.", ENGINE),
    "proxy_id": Flag("Name of this proxy."),
    "least_epoch": Flag("Refuse the routes of a head whose epoch is lower.", COUNT),
    "max_body_bytes": Flag("Largest HTTP request body.", SIZE),
    "max_held_bytes": Flag("What bodies and prompts of all requests together may hold of a proxy.", SIZE),
    "max_waiting": Flag("Requests per model that may wait for a replica.", COUNT),
    "busy_s": Flag("Seconds that a request may wait for replicas that are busy.", SECONDS),
    "max_timeout_s": Flag("Longest X-Request-Timeout that a request may give, in seconds.", SECONDS),
    "max_streams": Flag("Streams in flight in this process.", COUNT),
    "wait_s": Flag("Seconds that a request may wait for its model to start.", SECONDS),
    "stream_buffer_bytes": Flag("Unread text that one slow client may have.", SIZE),
    "stall_s": Flag("Seconds after which a client that reads nothing is cut.", SECONDS),
    "max_idle": Flag("Connections without a request in this process; the oldest make room.", AT_LEAST_ONE),
    "keep_s": Flag(
        "Seconds for which replicas keep a stream whose proxy was lost, for its client to come back.", SECONDS
    ),
    "coalesce_s": Flag(
        "Seconds that a token may wait for the next one while the proxy has no time to spare; 0: none ever waits.",
        HOLD,
    ),
    "heartbeat_dir": Flag("Folder for the socket on which the head hears that this process works.", FILE),
    "metrics_dir": Flag("Folder in which the proxies of one port share their metrics.", FILE),
}

_TLS_FILES = ("tls_cert", "tls_key", "tls_ca")
_TLS = (*_TLS_FILES, "tls_name", "certificate_life")

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Settings = TypeVar("_Settings")


_Command = TypeVar("_Command", bound=Callable[..., Any])
_Settings = TypeVar("_Settings")


def option(field: str, flag: Flag, default: Any = None, **more: Any) -> Callable[[_Command], _Command]:
    """A click option for one row of the table; its parameter is called `field`."""
    name = flag.name or field
    names = [f"--{name}"] + ([f"--{field}"] if field != name else [])
    kind: dict[str, Any] = {"is_flag": True} if flag.switch else {"type": flag.type, "multiple": flag.many}
    return click.option(
        *names,
        field,
        cls=Option,
        empty=flag.empty,
        envvar=f"HEADRACE_{flag.env or name.upper()}",
        default=default,
        show_default=default not in (None, "") and not flag.switch,
        help=flag.help,
        **kind,
        **more,
    )


def flag_options(*names: str, **defaults: Any) -> Callable[[_Command], _Command]:
    """Options for rows of the table, as a decorator."""

    def decorate(command: _Command) -> _Command:
        for name in reversed(names):
            command = option(name, FLAGS[name], defaults.get(name))(command)
        return command

    return decorate


def field_names(cls: type) -> list[str]:
    """The options of a settings class, in order; `tls` stands for several."""
    return [n for f in fields(cls) for n in (_TLS if f.name == "tls" else (f.name,))]


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def settings_options(cls: type) -> Callable[[_Command], _Command]:
    """Options for every field of a settings class, and --config."""

    def decorate(command: _Command) -> _Command:
        defaults = {f.name: _default(f) for f in fields(cls)}
        for name in reversed(field_names(cls)):
            command = option(name, FLAGS[name], defaults.get(name))(command)
        return click.option(
            "--config",
            cls=Option,
            type=FILE,
            envvar="HEADRACE_CONFIG",
            is_eager=True,
            callback=_use_config,
            help="TOML file with a table for this command.",
        )(command)

    return decorate


def _use_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        known = {str(p.name): p for p in ctx.command.params if isinstance(p, click.Option) and p.name != "config"}
        names = {opt.lstrip("-"): name for name, p in known.items() for opt in p.opts}
        table = str(ctx.command.name)
        values = read_table(path, table, names)
        for name, value in values.items():
            if not _of_its_kind(known[name], value):
                raise UserError(f"{path}: {known[name].opts[0].lstrip('-')} of [{table}] cannot be {value!r}.")
        ctx.default_map = {
            name: [value] if known[name].multiple and isinstance(value, str) else value
            for name, value in values.items()
        }
    return path


def _of_its_kind(option: click.Option, value: Any) -> bool:
    """Whether a value of a TOML file is one that this option's type can look at; it says more about texts itself."""
    if option.multiple and isinstance(value, list):
        return all(isinstance(v, str) for v in value)
    if option.is_flag:
        return isinstance(value, bool | str)
    if isinstance(value, float) and isinstance(option.type, click.IntRange):
        return False
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def build(cls: type[_Settings], params: Mapping[str, Any]) -> _Settings:
    """The settings that the options of `settings_options(cls)` say. UserError where they contradict each other."""
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name == "tls":
            values["tls"] = tls_settings(params)
        else:
            value = params[field.name]
            values[field.name] = tuple(value) if isinstance(value, list | tuple) else value
    return cls(**values)


def tls_settings(params: Mapping[str, Any]) -> TlsSettings:
    """What --tls_cert, --tls_key, --tls_ca and the like say; UserError if not all files are given, or one is none."""
    given = {name: params[name] for name in _TLS_FILES if params[name] is not None}
    if given and len(given) < len(_TLS_FILES):
        missing = ", ".join(f"--{n}" for n in _TLS_FILES if n not in given)
        raise UserError(f"TLS needs --tls_cert, --tls_key and --tls_ca together; {missing} is missing.")
    for name, path in given.items():
        if not path.is_file():
            raise UserError(f"--{name}: there is no file {path}.")
    files = {"cert": params["tls_cert"], "key": params["tls_key"], "ca": params["tls_ca"]}
    more = {"name": params.get("tls_name"), "life_s": params.get("certificate_life")}
    return TlsSettings(**files, **{k: v for k, v in more.items() if v is not None})
