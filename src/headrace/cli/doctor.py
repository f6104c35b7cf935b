"""`headrace doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import flag_options
from headrace.errors import UserError
from headrace.settings import HeadSettings, default_cache_dir, default_state_dir

if TYPE_CHECKING:
    from headrace.cli.checks import Finding

_PORTS = ("http_port", "node_port", "grpc_port")
_DEFAULT_PORTS = {name: getattr(HeadSettings(), name) for name in _PORTS}


@click.command()
@flag_options("state_dir", "cache_dir", state_dir=default_state_dir(), cache_dir=default_cache_dir())
@flag_options(*_PORTS, **_DEFAULT_PORTS)
@click.option("--repair", is_flag=True, help="Save what can be read of a damaged state file, after a copy of it.")
def doctor(state_dir: Path, cache_dir: Path, repair: bool, **ports: int) -> int:
    """Look for what is wrong with the state of a head and of schedulers on this machine.

    One line for each thing, with what to do about it. The exit code is 1 if there is a problem. Nothing is changed
    without --repair, and then a copy of the old files is kept.
    """
    from headrace.cli.checks import Level, state_file

    if repair and state_file(state_dir).level is Level.PROBLEM:
        _repair(state_dir)
    worst = Level.OK
    for f in _findings(state_dir, cache_dir, ports):
        click.echo(_line(f))
        worst = f.level if f.level is Level.PROBLEM or worst is Level.OK else worst
    if worst is not Level.OK:
        click.echo("Problems were found." if worst is Level.PROBLEM else "It works; see the warnings.")
    else:
        click.echo("Nothing is wrong.")
    return 1 if worst is Level.PROBLEM else 0


def _findings(state_dir: Path, cache_dir: Path, ports: dict[str, int]) -> Iterator[Finding]:
    from headrace.cli import checks

    yield checks.folder(state_dir)
    yield checks.authority(state_dir)
    yield checks.head(state_dir)
    yield checks.state_file(state_dir)
    if (up := checks.up_lock(state_dir)) is not None:
        yield up
    yield from checks.nodes(state_dir)
    yield checks.room(state_dir, "state")
    yield checks.room(cache_dir, "cache")
    yield from checks.ports(state_dir, ports)
    yield checks.engines()


def _repair(state_dir: Path) -> None:
    """Make a new state file of what can be read. UserError if a head runs, or nothing can be read."""
    from headrace.cli.checks import contents, state_file_of
    from headrace.head.salvage import repair
    from headrace.lock import exclusive

    busy = "The head (pid {}) runs with this state directory; stop it, then repair."
    with exclusive(state_dir / "head", busy.format):
        try:
            done = repair(state_file_of(state_dir))
        except OSError as e:
            raise UserError(f"The state file cannot be repaired: {e}.") from e
    of = "an unknown number of" if done.of is None else str(done.of)
    click.echo(f"Repaired: {done.rows} of {of} rows were saved ({contents(done.state)}).")
    click.echo(f"The old files are kept: {', '.join(map(str, done.copies))}.")
    if done.of != done.rows:
        click.echo("Compare with `headrace status` after the start: what is missing has to be deployed again, and the")
        click.echo("schedulers end replicas that are not there any more.")


def _line(f: Finding) -> str:
    todo = f" → {f.todo}" if f.todo else ""
    return f"{f.level:<7}  {f.about}: {f.found}{todo}."
