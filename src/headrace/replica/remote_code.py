"""Models that bring code of their own, which runs only if the deployment says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import UserError
from headrace.replica.config_files import read_json


@contextlib.contextmanager
def remote_code_said(folder: Path) -> Iterator[None]:
    """A library's refusal to run a model's code becomes a UserError that names our option.

    Whether the code is needed is the library's to know: many models name code that has long been part of it.
    """
    try:
        yield
    except Exception as e:
        if "trust_remote_code" in str(e) and read_json(folder / "config.json").get("auto_map"):
            raise UserError(
                f"{folder} needs code of its own (auto_map in config.json): deploy it with --trust_remote_code if you"
                " trust where it comes from."
            ) from e
        raise
