"""The TOML file: one table per long-lived command, one line per option."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.cli.words import nearest
from headrace.errors import UserError

TABLES = ("up", "head", "scheduler", "proxy")


def read_table(path: Path, table: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The values of [table] by parameter. `names`: option → parameter. UserError for whatever cannot be meant."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"Cannot read the configuration file {path}: {e.strerror}.") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not a TOML file: {e}.") from e
    for name, value in data.items():
        if name not in TABLES:
            raise UserError(f"{path}: there is no table [{name}].{nearest(name, TABLES)}")
        if not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a table, written [{name}].")
    values: dict[str, Any] = {}
    for key, value in data.get(table, {}).items():
        option = key.replace("-", "_")
        if option not in names:
            raise UserError(f"{path}: [{table}] has no option {key!r}.{nearest(option, names)}")
        values[names[option]] = value
    return values
