"""What each long-lived part is told at its start, from the command line, HEADRACE_* variables and a TOML file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

ALONE_S = 30.0
MOST_ON_DEMAND = 8
JOIN_PORT = 50053


def _home() -> Path:
    home = os.path.expanduser("~")
    return Path(home if home != "~" else "/")  # a user whom the machine does not know, as in a container


def default_state_dir() -> Path:
    """$XDG_STATE_HOME/headrace, else ~/.local/state/headrace."""
    return Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local/state") / "headrace"


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/headrace, else ~/.cache/headrace. Holds weights and conversions; safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "headrace"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Certificates of the user's own for gRPC: PEM files, all three or none, and then of the cluster's authority."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    name: str = ""  # what every peer's certificate names; "": the address that is dialled
    life_s: float = 30 * 86400.0  # of the certificates that this process issues


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    host: str = "127.0.0.1"  # where node_port and grpc_port listen
    node_port: int = 50051
    grpc_port: int = 50052
    join_port: int | None = None  # None: JOIN_PORT where the head listens beyond this machine, else none
    num_proxies: int = 2
    state_dir: Path = field(default_factory=default_state_dir)
    catalog: Path | None = None
    api_keys_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # names that this server is called by, beside localhost
    cors_origins: tuple[str, ...] = ()  # web pages that may use it; "*": all, which needs API keys
    allow_insecure: bool = False
    forbid_remote_code: bool = False  # refuse models that are to run code of their own
    on_demand: str | None = None  # which models of the catalog a request starts; None: see `on_demand_rule`
    on_demand_max: int = MOST_ON_DEMAND  # of those, how many run at once
    on_demand_idle_s: float = 3600.0  # one that nobody has used for so long goes; 0: never
    routing: str = "auto"  # how the proxies choose replicas; the others are for comparison
    tls: TlsSettings = field(default_factory=TlsSettings)
    lease_s: float = 10.0
    drain_s: float = 30.0
    log_level: str = "INFO"

    @property
    def head_dir(self) -> Path:
        return self.state_dir / "head"

    def on_demand_rule(self, local: bool) -> str:
        """What --on_demand says; without it all models where only this machine's own user calls them (`local`, and
        without API keys), else those that are listed: others should not decide what is downloaded here."""
        return self.on_demand or ("all" if local and self.api_keys_file is None else "listed")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    node_id: str = "1"
    head_address: str = ""  # "": where it has joined, else localhost
    join: str = ""  # the line that `headrace token` shows, for the first start
    port: int = 50051
    num_cpus: float | None = None  # None: what the machine or its cgroup has
    num_gpus: int | None = None
    memory_bytes: int | None = None
    # Where replicas listen, and the address that proxies are told; "": that by which this machine reaches the head.
    host: str = ""
    state_dir: Path = field(default_factory=default_state_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    cache_limit_bytes: int | None = None  # what it may come to; None: no limit
    alone_s: float = ALONE_S  # a replica that neither its scheduler nor a proxy needs for so long ends by itself
    start_limit_s: float = 1800.0  # a replica that starts and makes no progress for so long has failed
    drain_s: float = 30.0  # the most that replicas get to finish what they have, at its own end
    keep_replicas: bool = False  # on SIGTERM leave replicas running for the next scheduler to adopt
    allow_insecure: bool = False
    tls: TlsSettings = field(default_factory=TlsSettings)
    log_level: str = "INFO"

    @property
    def node_dir(self) -> Path:
        return self.state_dir / "nodes" / self.node_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    head_address: str = ""  # the head's grpc_port; "": where it has joined, else localhost:50052
    join: str = ""
    proxy_id: str = ""
    state_dir: Path = field(default_factory=default_state_dir)  # for its certificate
    least_epoch: int = 0  # routes of a head with a lower one are refused
    api_keys_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # names that this server is called by, beside localhost
    cors_origins: tuple[str, ...] = ()  # web pages that may use it; "*": all, which needs API keys
    allow_insecure: bool = False
    tls: TlsSettings = field(default_factory=TlsSettings)
    max_body_bytes: int = 8 * 1024 * 1024
    max_waiting: int = 256  # requests per model that may wait for a replica
    busy_s: float = 30.0  # how long a request may wait for replicas that are busy
    max_timeout_s: float = 3600.0  # the longest X-Request-Timeout
    max_streams: int = 16384  # streams in flight in this process
    wait_s: float = 900.0  # how long a request may wait for its model to start
    stream_buffer_bytes: int = 256 * 1024  # unread text of one slow client
    stall_s: float = 60.0  # a client that reads nothing for so long is cut
    max_idle: int = 4096  # connections without a request in this process; the oldest are closed first
    routing: str = "auto"
    keep_s: float = 10.0  # replicas keep a stream so long for its client to come back, when this proxy is lost
    coalesce_s: float = 0.02  # under pressure a token waits so long for the next, so that both travel in one write
    drain_s: float = 30.0
    heartbeat_dir: Path | None = None  # where the head hears that this process works
    metrics_dir: Path | None = None  # shared by the proxies of one port, so that /metrics sums them
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """A head and a scheduler on this machine, and the models to begin with."""

    model: tuple[str, ...] = ("demo",)
    engine: str = "auto"
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    node_port: int = 50051
    grpc_port: int = 50052
    num_proxies: int = 2
    num_cpus: float | None = None
    num_gpus: int | None = None
    memory_bytes: int | None = None
    state_dir: Path = field(default_factory=default_state_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    cache_limit_bytes: int | None = None  # what it may come to; None: no limit
    start_limit_s: float = 1800.0
    catalog: Path | None = None
    api_keys_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # names that this server is called by, beside localhost
    cors_origins: tuple[str, ...] = ()  # web pages that may use it; "*": all, which needs API keys
    allow_insecure: bool = False
    forbid_remote_code: bool = False
    on_demand: str | None = None
    on_demand_max: int = MOST_ON_DEMAND
    on_demand_idle_s: float = 3600.0
    routing: str = "auto"
    tls: TlsSettings = field(default_factory=TlsSettings)
    log_level: str = "INFO"
