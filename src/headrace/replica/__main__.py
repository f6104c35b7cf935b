"""`python -m headrace.replica DIR`: the replica that DIR/spec.json describes. Started by a scheduler."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import uvloop

from headrace import log
from headrace.process import forbid_core_dumps
from headrace.replica import telemetry


def main() -> None:
    """Run the replica. Does not return."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m headrace.replica DIR")
    forbid_core_dumps()
    telemetry.forbid()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    log.setup("replica", os.environ.get("HEADRACE_LOG_LEVEL", "INFO"))
    from headrace.replica import server

    async def run() -> None:
        code = 1
        try:
            code = await server.run(Path(sys.argv[1]))
        except Exception:
            logging.getLogger(__name__).exception("replica_crashed")
        finally:
            logging.shutdown()
            # Threads of an engine that loads, steps or hangs must not delay the end.
            os._exit(code)

    uvloop.run(run())


main()
