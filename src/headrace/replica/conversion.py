"""Safetensors to OpenVINO, once per node: in a child process, cached, under a lock."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import structlog

from headrace.core.causes import of_errno
from headrace.errors import HeadraceError, UserError
from headrace.process import explain_exit
from headrace.replica.remote_code import remote_code_said
from headrace.replica.sampling import read_json
from headrace.replica.weights.cache import FULL, Cache
from headrace.replica.weights.folder import Report

log = structlog.get_logger()

FORMATS = ("fp32", "fp16", "int8", "int4")
_VERSION = 2  # of what the converter makes
_DONE = "openvino_model.xml"


class _Failed(HeadraceError):
    """`errno`: what the system said to the converter; 0: nothing."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


def converted(
    folder: Path, weight_format: str, cache: Cache, report: Report, task: str = "", *, remote_code: bool = False
) -> Path:
    """The OpenVINO folder made from a safetensors folder, converting it if that has not been done on this node.

    `weight_format`: one of FORMATS, or "" for the precision the weights have. `task`: a ModelSpec's. `remote_code`: run
    Python files of the folder. UserError if it cannot be done here; HeadraceError, with the converter's last words, if
    it failed.
    """
    form = weight_format or own_format(folder)
    if form not in FORMATS:
        raise UserError(f"{weight_format!r} is not a weight format: use one of {', '.join(FORMATS)}.")
    target = cache.folder / "converted" / _key(folder, form, task or "generate", remote_code)
    cache.hold(target)
    if (target / _DONE).exists():
        return target
    if find_spec("optimum") is None or find_spec("torch") is None:
        raise UserError(f"Converting {folder} to OpenVINO needs: pip install 'headrace[convert]'")
    with cache.filling(target, report, "convert"):
        if (target / _DONE).exists():
            return target
        for left in target.parent.glob(f"{target.name}.partial*"):
            shutil.rmtree(left)  # whoever made it is dead: we have the lock
        partial = target.with_name(f"{target.name}.partial")
        # A guess, and mostly too high: the weights keep their precision or get a lower one.
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        what = f"the conversion of {folder} to OpenVINO"
        cache.make_room(target, size, size, what)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with remote_code_said(folder):
                _run_converter(folder, partial, form, task or "generate", report, remote_code)
        except _Failed as e:
            if e.errno in FULL:
                raise cache.full(what, size) from e
            raise HeadraceError(e.message, code=of_errno(e.errno)) from e
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    return target


def own_format(folder: Path) -> str:
    """The format that keeps the weights' own precision: fp32 or fp16."""
    config = read_json(folder / "config.json")
    return "fp32" if config.get("dtype", config.get("torch_dtype", "float32")) == "float32" else "fp16"


def _key(folder: Path, form: str, task: str = "generate", remote_code: bool = False) -> str:
    """Changes when the folder's weights or configuration do."""
    kinds = (".safetensors", ".json", ".jinja", *((".py",) if remote_code else ()))
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
    seen = [(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    text = json.dumps([str(folder.resolve()), seen, form, task, remote_code, _VERSION])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _run_converter(source: Path, target: Path, form: str, task: str, report: Report, remote_code: bool) -> None:
    """Run the child process to its end. It stays in our process group, and its input ends with us, however we end."""
    report("converting to OpenVINO", -1.0)
    command = [sys.executable, "-m", "headrace.replica.convert", str(source), str(target), "--weight-format", form]
    command += ["--task", task]
    child = subprocess.Popen(
        command + (["--trust-remote-code"] if remote_code else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    error, code = "", 0
    with child:
        for line in child.stdout:
            try:
                news = json.loads(line)
                error, code = str(news.get("error", error)), int(news.get("errno", code))
                if "activity" in news:
                    report(f"converting to OpenVINO: {news['activity']}", float(news["progress"]))
            except (ValueError, AttributeError, TypeError):
                log.info("converter", line=line.rstrip()[:300])
        child.wait()  # it still ends: closing its input now, as the block's end does, would kill it
    if child.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        why = error or "the converter " + explain_exit(child.returncode)
        raise _Failed(f"Converting {source} failed: {why}.", code)
