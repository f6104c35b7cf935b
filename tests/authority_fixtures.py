"""One certificate authority for all tests of a run, in the state folders of the systems that they start."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from headrace.lock import private_folder
from headrace.rpc.credentials import Credentials, keep
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.settings import TlsSettings

# Also the state folder of whatever is given none, so that no test comes near the user's own.
_ROOT = Path(tempfile.mkdtemp(prefix="headrace-authority-"))
os.environ["XDG_STATE_HOME"] = str(_ROOT)
STATE = _ROOT / "headrace"
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)


@cache
def credentials(role: Role = Role.ADMIN, name: str = "test") -> Credentials:
    """A certificate of the tests' authority."""
    return from_state(STATE, role, name, TlsSettings())


def trusted(state_dir: Path) -> Path:
    """`state_dir`, with the tests' authority in it if it has none."""
    credentials()
    if not (state_dir / "authority").exists():
        private_folder(state_dir)
        shutil.copytree(STATE / "authority", state_dir / "authority")
    return state_dir


def replica_env(folder: Path, node_id: str = "1") -> dict[str, str]:
    """What tells a replica which certificate to use; it is kept in `folder`."""
    private_folder(folder)
    kept = keep(folder / "credential.json", credentials(Role.NODE, node_id).current())
    return {"HEADRACE_CREDENTIAL": str(kept.path)}
