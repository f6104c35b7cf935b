"""No lease, back-off or patience depends on the wall clock, which people and daemons set."""

from __future__ import annotations

import re
from pathlib import Path

import headrace

SOURCE = Path(headrace.__file__).parent

# Who may ask for the time of day, and what for.
ALLOWED = {
    "head/clock.py": "stamps; monotonic from the start on",
    "head/commands.py": "when a deployment was made, for people",
    "head/state_file.py": "the first epoch of a new state file; never below the last one",
    "cli/waiting.py": "in how many seconds a replica is tried again, for people",
    "cli/revisions.py": "how long ago, for people",
    "node/agent.py": "incarnation; never below the last one",
    "node/folder.py": "the log's mark of a start, for people",
    "node/runner.py": "when a replica started, for people",
    "proxy/answering.py": "`created` of an answer",
    "replica/frontend.py": "the date that chat templates show",
    "replica/server.py": "when it started, for people",
}
_WALL = re.compile(r"\btime\.time(_ns)?\(|\b(dt|datetime)\.(datetime\.)?(now|utcnow|today)\b|CLOCK_REALTIME")


def test_the_wall_clock_is_asked_only_where_nothing_waits_for_it() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if _WALL.search(path.read_text()) and "rpc/v1" not in str(path)
    }
    assert not found - set(ALLOWED), "say in ALLOWED why nothing waits for it, or use time.monotonic()"
    assert "head/clock.py" in found, "the search finds what it looks for"
