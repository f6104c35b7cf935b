"""Another user of the same machine gets nowhere: not past the API keys, not to a log, not as a node."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from up_fixtures import running

from headrace.process import child_env

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may look into, unlike those of pytest, and perhaps of $TMPDIR."""
    for place in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm")):
        if all(p.stat().st_mode & stat.S_IXOTH for p in (place, *place.parents)):
            break
    else:
        pytest.skip("no folder for temporary files is open to another user")
    with tempfile.TemporaryDirectory(prefix="headrace-strangers-", dir=place) as name:
        os.chmod(name, 0o755)
        own = Path(name) / "own"
        own.mkdir(mode=0o700)
        os.chown(own, NOBODY, NOBODY)
        yield Path(name)


async def test_another_user_is_refused_everywhere(open_folder: Path) -> None:
    keys = open_folder / "keys"
    keys.write_text("secret-key\n")
    keys.chmod(0o600)
    async with running(open_folder, "--model=sim", f"--api_keys_file={keys}") as up:
        url = await up.ready()
        head = json.loads((up.state_dir / "head/endpoint.json").read_text())
        replica = next(up.state_dir.glob("nodes/*/replicas/*/endpoint.json"))
        address = json.loads(replica.read_text())["address"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("stranger.py")), str(up.state_dir), str(open_folder / "own"),
            head["node"], head["grpc"], address, replica.parent.name,
            stdout=asyncio.subprocess.PIPE, env=child_env({"GRPC_VERBOSITY": "NONE"}),
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 100)
        found = json.loads(out)
        command = found.pop("command")
        assert "as that user" in command or "as the user that runs the head" in command
        assert len(found) == 16, found
        assert set(found.values()) <= {"UNAVAILABLE", "PermissionError", "nothing came"}, found
        # The real node, the replica and the keys are as they were.
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
            key = {"Authorization": "Bearer secret-key"}
            assert (await client.post("/v1/chat/completions", json=body, headers=key)).status_code == 200
        assert up.process.returncode is None
