"""Files that say what a model is. One that is there and cannot be read counts as an error, never as absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.errors import UserError

CONFIG_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
    "1_Pooling/config.json",
)  # fmt: skip


def read_text(path: Path) -> str | None:
    """A text file, with or without a byte order mark; None if there is none. UserError, naming it, if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8: byte {e.start} is {e.object[e.start]:#04x}.") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}.") from e


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none. UserError, naming it, if it holds something else."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not JSON: {e}. Is it cut short?") from e
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(data).__name__}.")
    return data


def check_config_files(folder: Path) -> None:
    """UserError, naming the file, if one that says what the model is cannot be read."""
    for name in CONFIG_FILES:
        read_json(folder / name)
    read_text(folder / "chat_template.jinja")
