"""Flags, variables, the TOML file and what comes first; errors as sentences."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from headrace.cli import COMMANDS, cli, main, sole_error
from headrace.cli.kinds import SIZE
from headrace.cli.options import FLAGS, build, field_names, settings_options
from headrace.cli.up import explicit_flags
from headrace.errors import UserError
from headrace.settings import HeadSettings, ProxySettings, SchedulerSettings, UpSettings

ALL = (HeadSettings, SchedulerSettings, ProxySettings, UpSettings)


@pytest.fixture(autouse=True)
def clean_env(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


def parse(cls: type, args: list[str], name: str = "head") -> Any:
    """The settings that a command line gives."""
    found: list[Any] = []

    @click.command(name=name, context_settings={"token_normalize_func": lambda w: w.replace("-", "_")})
    @settings_options(cls)
    def command(config: Path | None, **params: Any) -> None:
        found.append(build(cls, params))

    command.main(args, standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("cls", ALL)
def test_every_field_is_a_flag_and_defaults_are_the_settings_own(cls: type) -> None:
    assert set(field_names(cls)) <= set(FLAGS)
    assert parse(cls, []) == cls()


@pytest.mark.parametrize("spelling", ["--http_port=81", "--http-port=81"])
def test_both_spellings(spelling: str) -> None:
    assert parse(HeadSettings, [spelling]).http_port == 81


def test_precedence_is_flag_env_file_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text("[head]\nhttp_port = 1\nnode-port = 2\ngrpc_port = 3\n[scheduler]\nport = 9\n")
    monkeypatch.setenv("HEADRACE_NODE_PORT", "20")
    monkeypatch.setenv("HEADRACE_GRPC_PORT", "30")
    got = parse(HeadSettings, [f"--config={config}", "--grpc_port=300"])
    assert (got.http_port, got.node_port, got.grpc_port, got.num_proxies) == (1, 20, 300, 2)
    monkeypatch.setenv("HEADRACE_CONFIG", str(config))
    assert parse(SchedulerSettings, [], "scheduler").port == 9


def test_file_names_memory_as_the_flag_or_the_field(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    for key in ("memory", "memory_bytes"):
        config.write_text(f'[scheduler]\n{key} = "2GiB"\nnum_cpus = 1.5\nkeep_replicas = true\n')
        got = parse(SchedulerSettings, ["--config", str(config)], "scheduler")
        assert (got.memory_bytes, got.num_cpus, got.keep_replicas) == (2 * 2**30, 1.5, True)


def test_model_is_one_or_many(tmp_path: Path) -> None:
    assert parse(UpSettings, ["--model=a", "--model=b"], "up").model == ("a", "b")
    config = tmp_path / "c.toml"
    config.write_text('[up]\nmodel = "demo2"\n')
    assert parse(UpSettings, ["--config", str(config)], "up").model == ("demo2",)
    config.write_text('[up]\nmodel = ["a", "b"]\n')
    assert parse(UpSettings, ["--config", str(config)], "up").model == ("a", "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[head]\nhttp_prot = 1\n", "[head] has no option 'http_prot'. Did you mean 'http_port'?"),
        ("[haed]\nhttp_port = 1\n", "there is no table [haed]. Did you mean 'head'?"),
        ("http_port = 1\n", "there is no table [http_port]."),
        ("head = 1\n", "head must be a table, written [head]."),
        ("[head\n", "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_told_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    with pytest.raises(UserError) as e:
        parse(HeadSettings, [f"--config={config}"])
    assert says in e.value.message
    assert str(config) in e.value.message


def test_a_missing_file_is_told() -> None:
    with pytest.raises(UserError, match="Cannot read the configuration file /nowhere/c"):
        parse(HeadSettings, ["--config=/nowhere/c.toml"])


def test_paths_become_absolute_and_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    got = parse(HeadSettings, ["--state_dir=state", "--catalog=~/models.yaml"])
    assert (got.state_dir, got.catalog) == (tmp_path / "state", Path("/home/somebody/models.yaml"))


def test_tls_is_all_or_nothing(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    with pytest.raises(UserError, match="--tls_ca is missing"):
        parse(HeadSettings, [f"--tls_cert={pem}", f"--tls_key={pem}"])
    with pytest.raises(UserError, match="--tls_ca: there is no file"):
        parse(HeadSettings, [f"--tls_cert={pem}", f"--tls_key={pem}", f"--tls_ca={tmp_path}/none"])
    assert parse(HeadSettings, [f"--tls_cert={pem}", f"--tls_key={pem}", f"--tls_ca={pem}"]).tls.ca == pem


def test_the_port_variable_that_kubernetes_makes_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "tcp://10.0.0.1:8000")
    assert parse(SchedulerSettings, [], "scheduler").port == 50051


@pytest.mark.parametrize("bad", ["--http_port=70000", "--http_port=x", "--lease_s=-1", "--log_level=LOUD"])
def test_values_are_bounded(bad: str) -> None:
    with pytest.raises(click.BadParameter):
        parse(HeadSettings, [bad])


def test_up_passes_on_only_what_was_said() -> None:
    given = {"http_port": 81, "num_gpus": 0, "allow_insecure": True, "memory_bytes": 5, "catalog": None}
    given["tls_ca"] = Path("/x")  # type: ignore[assignment]
    head = explicit_flags(HeadSettings, given, ("state_dir",))
    assert head == ["--http_port=81", "--allow_insecure", "--tls_ca=/x"]
    scheduler = explicit_flags(SchedulerSettings, given, ())
    assert scheduler == ["--num_gpus=0", "--memory_bytes=5", "--allow_insecure", "--tls_ca=/x"]
    # What up says must be understood by the parts.
    assert parse(HeadSettings, head[:2]).allow_insecure
    assert parse(SchedulerSettings, scheduler[:2], "scheduler").memory_bytes == 5


def test_up_knows_every_option_that_both_parts_share() -> None:
    up = {f.name for f in fields(UpSettings)}
    assert {"http_port", "node_port", "grpc_port", "num_proxies", "num_cpus", "num_gpus", "catalog", "tls"} <= up


def exit_of(*args: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(args)
    assert isinstance(e.value.code, int)
    return e.value.code


def test_help_names_every_command_and_imports_little(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_every_command_can_be_imported_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert exit_of(name, "--help") == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_unknown_words_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("statsu") == 2
    assert "There is no command 'statsu'. Did you mean 'status'?" in capsys.readouterr().err
    assert exit_of("head", "--http_prot=1") == 2
    assert "--http_port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (UserError("The port is taken."), 1, "Error: The port is taken.\n"),
        (ExceptionGroup("g", [ExceptionGroup("h", [UserError("Deep.")])]), 1, "Error: Deep.\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, ""),
        (ModuleNotFoundError("No module named 'grpc'", name="grpc"), 1, "pip install 'headrace[cpu]'"),
        (ValueError("odd"), 1, "Error: Unexpected ValueError: odd. HEADRACE_DEBUG=1"),
    ],
)
def test_no_traceback_ever(
    raised: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(cli, "main", fail)
    assert exit_of("status") == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert err.count("\n") <= 1
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    if code == 1:
        with pytest.raises(type(raised)):
            main(["status"])


def test_sole_error_keeps_what_is_not_one() -> None:
    both = ExceptionGroup("g", [UserError("a"), UserError("b")])
    assert sole_error(both) is both


def test_scheduler_wants_host_and_port_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("scheduler", "--head_address=box:50051") == 1
    assert capsys.readouterr().err == (
        "Error: --head_address is a host name alone; write --head_address=box --port=50051.\n"
    )


def test_help_is_quick_because_it_imports_little() -> None:
    import subprocess

    code = "import sys\nfrom headrace.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('grpc', 'rich', 'httpx', 'structlog', 'psutil', 'asyncio') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.splitlines()[-1] == "[]"


ODD = (
    '""', '"x"', "5", "-5", "1.5", "nan", "inf", "true", "[]", "[1]", '["a"]', '[""]', "{}", "{a=1}", "1979-05-27",
    '"a\\u0000b"', '"~nosuchuser/x"', "1e400", "9" * 30, "9" * 400,
)  # fmt: skip


@pytest.mark.parametrize(("cls", "table"), list(zip(ALL, ("head", "scheduler", "proxy", "up"), strict=True)))
def test_any_value_of_a_file_is_taken_or_refused_in_a_sentence(cls: type, table: str, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    taken = 0
    for field in field_names(cls):
        for value in ODD:
            config.write_text(f"[{table}]\n{FLAGS[field].name or field} = {value}\n")
            try:
                got = parse(cls, [f"--config={config}"], table)
            except (click.ClickException, UserError):
                continue
            taken += 1
            kept = getattr(got, field, None)
            assert kept != "", (field, value)
            assert not isinstance(kept, float) or math.isfinite(kept)
            assert not (type(kept) is int and value in ("true", "1.5") and FLAGS[field].type is not SIZE), (
                field,
                value,
            )
    assert taken > 20


@pytest.mark.parametrize("text", ["[" * 100_000, "x = " + "9" * 5000, "\x00", "[head]\nhttp_port = 1\nhttp_port = 2\n"])
def test_a_file_that_is_hard_to_read_is_told(tmp_path: Path, text: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    with pytest.raises(UserError, match="is not a TOML file"):
        parse(HeadSettings, [f"--config={config}"])


@pytest.mark.parametrize(
    "words",
    [
        ["deploy", ""], ["deploy", "demo", "--name="], ["deploy", "demo", "--name", ""],
        ["deploy", "demo", "--engine="], ["deploy", "demo", "--adapter="], ["deploy", "demo", "--chat_template="],
        ["deploy", "demo", "--task="],
        ["deploy", "demo", "--state_dir="], ["deploy", "demo", "--head_address="], ["scale", "", "1"], ["delete", ""],
        ["rollback", ""], ["revisions", ""], ["logs", ""], ["explain", ""], ["chat", ""], ["chat", "demo", "--url="],
        ["models", "add", "x", "--source="], ["models", "add", "", "--source=a/b"], ["models", "remove", ""],
        ["adapters", "list", ""], ["adapters", "add", "demo", ""], ["adapters", "add", "", "a=b"],
        ["adapters", "remove", "demo", ""], ["up", "--model="], ["up", "--engine="], ["head", "--config="],
        ["head", "--api_keys_file="], ["scheduler", "--node_id="], ["proxy", "--proxy_id="], ["doctor", "--state_dir="],
        ["token", "--revoke="], ["token", "--node_id="], ["token", "--address="], ["join", ""],
    ],
)  # fmt: skip
def test_what_is_empty_never_means_the_default(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*words) == 2
    err = capsys.readouterr().err
    assert "empty" in err or "'' is not one of" in err
