"""What the proxies of a port count together, when one of them is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

_ONE = "import sys; from pathlib import Path; from headrace.metrics import Metrics; m = Metrics(Path(sys.argv[1]));"
_COUNT = "[print(l) for l in m.render()[0].decode().splitlines() if l.startswith('headrace_requests_in_flight ')]"


def test_requests_of_a_killed_proxy_are_not_in_flight_even_if_nobody_reaps_it(tmp_path: Path) -> None:
    dead = subprocess.Popen(
        [sys.executable, "-c", _ONE + "m.running_now = 21; m.flush(); print('up', flush=True); input()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert dead.stdout
    assert dead.stdin
    try:
        assert dead.stdout.readline() == b"up\n"
        dead.kill()
        stat = Path(f"/proc/{dead.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie, until we reap it
            time.sleep(0.01)
        other = [sys.executable, "-c", _ONE + "m.running_now = 2;" + _COUNT, str(tmp_path)]
        assert subprocess.run(other, capture_output=True, text=True, check=True).stdout.split() == [
            "headrace_requests_in_flight",
            "2.0",
        ]
    finally:
        dead.stdin.close()
        dead.stdout.close()
        dead.wait()
