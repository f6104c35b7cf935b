"""What the proxies of a port count together, when one of them is killed, and what is shown of what is gone."""

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


_LOAD = "from headrace.core.types import Load; one, two = (Load(running=1), 1.0), (Load(), 0.5);"
_PAGE = "print(m.render()[0].decode(), flush=True);"


def page(folder: Path | None, *code: str) -> list[str]:
    """What /metrics says, after this code, without comments."""
    start = _ONE if folder else "from headrace.metrics import Metrics; m = Metrics();"
    argv = [sys.executable, "-c", start + _LOAD + "".join(code) + _PAGE, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("#")]


def test_gauges_are_those_of_what_is_there_and_from_its_beginning(tmp_path: Path) -> None:
    def gauges(lines: list[str]) -> list[str]:
        return [line for line in lines if "requests_running" in line or "headrace_requests_" in line]

    there = 'm.show({"a": {"a-1": one, "a-2": two}, "b": {}}, {"a": 3});'
    later = 'm.show({"a": {"a-2": two}}, {});'
    running = 'vllm:num_requests_running{{model_name="a",replica="a-{}"}} {}'
    for folder in (None, tmp_path):
        assert gauges(page(folder)) == ["headrace_requests_in_flight 0.0"]
        found = gauges(page(folder, there))
        assert running.format(1, "1.0") in found
        assert running.format(2, "0.0") in found
        assert 'headrace_requests_unplaced{model_name="a"} 3.0' in found
        assert 'headrace_requests_unplaced{model_name="b"} 0.0' in found
        assert sorted(gauges(page(folder, there, later))) == [
            "headrace_requests_in_flight 0.0",
            'headrace_requests_unplaced{model_name="a"} 0.0',
            running.format(2, "0.0"),
        ]
