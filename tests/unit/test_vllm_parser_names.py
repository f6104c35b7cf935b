"""The names of vLLM's parsers, from sources that look like its own, with no vLLM there."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from headrace.errors import UserError
from headrace.replica.engines import vllm_parsers
from headrace.replica.engines.vllm_parsers import check_before_import

TABLE = '_{0}_PARSERS_TO_REGISTER = {{"hermes": ("file", "Class"),\n    # the newest\n    "deepseek_r1": ("f", "C")}}'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "vllm"
    for name in ("tool_parsers", "reasoning"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("import torch\n" + TABLE.format(name.upper()))
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    return folder


def test_the_nearest_name_is_said(package: Path) -> None:
    check_before_import("hermes", "deepseek_r1", {})
    check_before_import("", "", {})
    with pytest.raises(UserError, match=r"vLLM has no tool parser 'herme': did you mean 'hermes'\?"):
        check_before_import("herme", "", {})
    with pytest.raises(UserError, match=r"no reasoning parser 'qq': there are deepseek_r1, hermes\."):
        check_before_import("", "qq", {})


def test_what_a_plugin_may_bring_is_left_to_vllm(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_before_import("", "mine", {"reasoning_parser_plugin": "mine.py"})
    own, other = (EntryPoint("x", value, "vllm.general_plugins") for value in ("vllm.plugins:x", "mine:register"))
    monkeypatch.setattr(vllm_parsers, "entry_points", lambda group: [own, other])
    check_before_import("mine", "mine", {})
    monkeypatch.setattr(vllm_parsers, "entry_points", lambda group: [own])
    with pytest.raises(UserError, match="no tool parser 'mine'"):
        check_before_import("mine", "mine", {})


@pytest.mark.parametrize("text", ["", "def x(:", "_TOOL_PARSERS = {'a': 1}"])
def test_other_sources_tell_nothing(package: Path, text: str) -> None:
    for name in ("tool_parsers", "reasoning"):
        (package / name / "__init__.py").write_text(text)
    check_before_import("mine", "mine", {})
