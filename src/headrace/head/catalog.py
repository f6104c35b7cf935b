"""Reads the catalog's files: the built-in one, and the user's over it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import yaml

from headrace.core import catalog
from headrace.core.adapters import check_clash
from headrace.core.types import CatalogEntry
from headrace.errors import Conflict, InvalidRequest, UserError


def load_catalog(file: Path | None) -> Mapping[str, CatalogEntry]:
    """The built-in models with those of `file` over them; UserError naming the file for anything wrong in it."""
    text = (resources.files("headrace") / "data" / "catalog.yaml").read_text(encoding="utf-8")
    built_in = _parse(text, "the built-in catalog", "built-in")
    if file is None:
        return _apart(built_in, "the built-in catalog")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"Cannot read the catalog {file}: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise UserError(f"The catalog {file} is not UTF-8 text.") from e
    return _apart(catalog.merge(built_in, _parse(text, str(file), "file")), str(file))


def _apart(entries: dict[str, CatalogEntry], where: str) -> dict[str, CatalogEntry]:
    """`entries` if no two of them, or of their adapters, have one public name."""
    known = {name: e.adapters for name, e in entries.items()}
    try:
        for name in known:
            check_clash(name, known)
    except Conflict as e:
        raise UserError(f"{where}: {e.message}") from e
    return entries


def _parse(text: str, where: str, origin: str) -> dict[str, CatalogEntry]:
    try:
        return catalog.parse(yaml.safe_load(text), where, origin)
    except yaml.YAMLError as e:
        raise UserError(f"{where} is not YAML: {' '.join(str(e).split())}.") from e
    except InvalidRequest as e:
        raise UserError(e.message) from e
