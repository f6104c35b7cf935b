"""A scheduler as a process of its own, with stand-in replicas unless they are to be real.

HEAD_PORT STATE_DIR NODE_ID [keep] [real] [impatient]
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

from headrace import log
from headrace.errors import UserError
from headrace.node.agent import run, serve
from headrace.process import told_to_stop
from headrace.settings import ALONE_S, SchedulerSettings

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_replica.py")))

if __name__ == "__main__":
    log.setup("scheduler")
    settings = SchedulerSettings(
        node_id=sys.argv[3],
        port=int(sys.argv[1]),
        head_address="127.0.0.1",
        state_dir=Path(sys.argv[2]),
        cache_dir=Path(sys.argv[2]) / "cache",
        num_cpus=2,
        keep_replicas="keep" in sys.argv[4:],
        alone_s=1.5 if "impatient" in sys.argv[4:] else ALONE_S,
    )
    try:
        uvloop.run(run(settings) if "real" in sys.argv[4:] else serve(settings, told_to_stop, STAND_IN))
    except UserError as e:
        sys.exit(e.message)
