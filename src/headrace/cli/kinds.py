"""The kinds of values that options and arguments take."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from headrace.core.affinity import Policy
from headrace.core.catalog import ENGINES, parse_size
from headrace.core.on_demand import Rule


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


class _File(click.ParamType):
    """An absolute path; "~" is ours to expand where no shell did it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            path = Path(value).expanduser()
        except (RuntimeError, TypeError):  # a user who is not there; no text
            self.fail(f"{value!r} is no path.", param, ctx)
        if "\0" in str(path):
            self.fail(f"{value!r} is no path.", param, ctx)
        return Path(os.path.abspath(path))


class _Amount(click.FloatRange):
    """A number; neither infinite nor none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = super().convert(value, param, ctx)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(f"{str(value)[:50]!r} is no finite number.", param, ctx)
        return number


def _called(kind: click.ParamType, name: str) -> click.ParamType:
    kind.name = name  # for --help
    return kind


PORT = _called(click.IntRange(0, 65535), "port")
SIZE = _Size()
FILE = _File()
SECONDS = _called(_Amount(min=0), "seconds")
LIFE = _called(_Amount(min=1), "seconds")
HOLD = _called(_Amount(min=0, max=1), "seconds")
COUNT = _called(click.IntRange(min=0), "n")
AT_LEAST_ONE = _called(click.IntRange(min=1), "n")
AMOUNT = _called(_Amount(min=0), "x")
LEVEL = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)
ENGINE = click.Choice(ENGINES)
ON_DEMAND = click.Choice([r.value for r in Rule])
ROUTING = click.Choice([p.value for p in Policy])


class Option(click.Option):
    """An option that is not given "": a shell's variable that was never set must not mean the default."""

    def __init__(self, *args: Any, empty: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._may_be_empty = empty

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)  # type: ignore[arg-type]
        said = source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
        if said and not self._may_be_empty and "" in (value if isinstance(value, list | tuple) else (value,)):
            raise click.BadParameter("it is empty; leave it out, or say which.", ctx, self)
        return value, source

    def value_from_envvar(self, ctx: click.Context) -> Any:
        found = self.resolve_envvar_value(ctx)
        # Kubernetes sets HEADRACE_PORT=tcp://… beside a service of that name.
        return None if found is None or found.startswith("tcp://") else super().value_from_envvar(ctx)


class Argument(click.Argument):
    """An argument that is not "", for the same reason."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        if value == "":
            raise click.BadParameter("it is empty.", ctx, self)
        return super().type_cast_value(ctx, value)
