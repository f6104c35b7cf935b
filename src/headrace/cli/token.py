"""`headrace token` and `headrace join`: how another machine becomes part of a cluster."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.client import STATE_DIR
from headrace.cli.endpoint import read_endpoint
from headrace.cli.kinds import Argument, Option
from headrace.cli.options import option
from headrace.errors import HeadraceError, UserError
from headrace.settings import default_state_dir

if TYPE_CHECKING:
    from headrace.head.tokens import Tokens

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_S = 30 * 86400


class _Duration(click.ParamType):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,7})([smhd]?)", str(value))
        seconds = int(found[1]) * _UNITS[found[2] or "s"] if found else 0
        if not 0 < seconds <= _MOST_S:
            self.fail(f"{value!r} is not a duration of at most 30 days, such as 30m, 1h or 7d", param, ctx)
        return float(seconds)


@click.command()
@click.option("--role", type=click.Choice(["node", "proxy", "admin"]), default="node", help="What is to join.")
@click.option("--ttl", type=_Duration(), default="1h", help="How long the token can be used: 30m, 1h, 7d.")
@click.option("--uses", type=click.IntRange(0), default=1, help="How many may join with it; 0: any number.")
@click.option(
    "--node_id",
    "name",
    cls=Option,
    default="",
    help="The one name that it is for, also if there is such a node already.",
)
@click.option(
    "--address",
    cls=Option,
    default="",
    help="Address of this machine for the others; without it, where the head listens.",
)
@click.option("--list", "show", is_flag=True, help="Show the tokens that there are, and who has joined.")
@click.option(
    "--revoke", cls=Option, default="", help="Take back a token (by its id) or a machine (by its name, or role/name)."
)
@option("state_dir", STATE_DIR, default_state_dir())
def token(role: str, ttl: float, uses: int, name: str, address: str, show: bool, revoke: str, state_dir: Path) -> None:
    """Show the line with which another machine joins. Run it where the head runs, as its user.

    A machine that was taken back gets no new certificate: it is out when that which it has ends.
    """
    from headrace.head import joining
    from headrace.head.tokens import Tokens
    from headrace.rpc.authority import Authority, has_authority

    if not has_authority(state_dir):
        raise UserError(f"There is no certificate authority in {state_dir}: start a head there first: headrace head")
    authority, tokens = Authority.open(state_dir), Tokens(state_dir)
    if revoke:
        click.echo(f"The {tokens.revoke(revoke)} is taken back.")
        return
    if show:
        _show(tokens)
        return
    endpoint = read_endpoint(state_dir)
    if endpoint is None:
        raise UserError(
            f"No head runs with {state_dir}; start it with --host=ADDRESS, where others reach this machine."
        )
    if not endpoint.join:
        raise UserError(
            "This head listens on this machine only: start it with --host=ADDRESS, where others reach this machine"
            " (with certificates of your own nobody joins; give each machine its files)."
        )
    try:
        line = joining.new_line(tokens, authority, endpoint.join, role, name=name, life_s=ttl, uses=uses, host=address)
    except OSError as e:
        raise UserError(f"Cannot write the token into {state_dir}: {e.strerror}.") from e
    click.echo(joining.command(role, line, name))


def _show(tokens: Tokens) -> None:
    now = time.time()
    for key, t in tokens.tokens():
        left = f"ends in {(t.ends_at - now) / 60:.0f} min" if t.ends_at > now else "has ended"
        uses = f"used {len(t.used_by)} of {t.uses or 'any number of'} times"
        click.echo(f"token  {key[:8]}  {t.role} {t.name or '(any name)'}: {left}, {uses}")
    for m in tokens.members():
        left = (
            f"certificate ends in {(m.ends_at - now) / 86400:.1f} days" if m.ends_at > now else "certificate has ended"
        )
        click.echo(f"joined  {m.role}/{m.name}: {time.strftime('%Y-%m-%d', time.gmtime(m.joined_at))}, {left}")


@click.command()
@click.argument("line", cls=Argument)
@option("state_dir", STATE_DIR, default_state_dir())
def join(line: str, state_dir: Path) -> None:
    """Let this machine's command line command a cluster, by the LINE of `headrace token --role=admin` there.

    A scheduler and a proxy take their lines themselves, with --join. LINE may be a file that holds it.
    """
    from headrace.rpc import joining
    from headrace.rpc.finding import credential_path
    from headrace.rpc.roles import Role

    path = credential_path(state_dir, Role.ADMIN)
    try:
        kept = asyncio.run(joining.join(joining.JoinLine.read(line), Role.ADMIN, joining.own_name(), path))
    except HeadraceError as e:
        raise UserError(e.message) from e
    assert kept.head is not None
    click.echo(f"Joined. `headrace status` now shows the cluster of {kept.head.host}.")
