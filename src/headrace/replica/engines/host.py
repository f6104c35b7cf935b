"""The process of an engine: `python -m headrace.replica.engines.host FD`, started by a replica.

FD is its end of a pipe. It loads one model and does what it is told, until it is told to close or the replica is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from dataclasses import astuple
from pathlib import Path

from headrace.core.types import Resources
from headrace.errors import HeadraceError
from headrace.replica import telemetry
from headrace.replica.engines import pipe
from headrace.replica.engines.pipe import Pipe
from headrace.replica.engines.vllm_processes import end_with_parent

telemetry.forbid()
from headrace.replica.engines.openvino import OpenVinoEngine  # noqa: E402
from headrace.replica.engines.openvino_options import OpenVinoOptions  # noqa: E402
from headrace.replica.engines.openvino_parsers import Parsers  # noqa: E402

_SWITCH_S = 0.0002


def main() -> None:
    """Does not return."""
    if sys.platform == "linux":  # elsewhere the end of the pipe says so, once a step is over
        end_with_parent()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")  # structlog takes long to import
    # A step holds the interpreter. What is received waits for its end, but not for several more.
    sys.setswitchinterval(_SWITCH_S)
    line = Pipe(socket.socket(fileno=int(sys.argv[1])))
    try:
        if engine := _load(line):
            _serve(line, engine)
    except OSError:
        pass  # the replica is gone
    finally:
        logging.shutdown()
        os._exit(0)  # threads that step or hang must not delay the end


def _load(line: Pipe) -> OpenVinoEngine | None:
    asked = line.receive()
    if asked is None:
        return None
    folder, options, resources, context_tokens, tool_parser, reasoning_parser = asked
    try:
        parsers = Parsers(tool_parser, reasoning_parser)
        engine = OpenVinoEngine(
            Path(folder), OpenVinoOptions(**options), Resources(*resources), context_tokens, parsers
        )
    except HeadraceError as e:
        line.send("failed", e.kind, e.message)
        return None
    except Exception as e:
        logging.getLogger(__name__).exception("load_failed")
        line.send("failed", HeadraceError.kind, f"OpenVINO cannot load {folder}: {e}")
        return None
    line.send("loaded", astuple(engine.info), engine.eos_ids, astuple(engine.defaults), engine.prefix_tokens)
    return engine


def _serve(line: Pipe, engine: OpenVinoEngine) -> None:
    while (message := line.receive()) is not None:
        what, *more = message
        match what:
            case "start":
                engine.start(lambda step: line.send("step", *pipe.from_step(step)), lambda why: line.send("died", why))
            case "submit":
                engine.submit(pipe.to_request(tuple(more)))
            case "abort":
                engine.abort(*more)
            case "adapters":
                threading.Thread(target=_set_adapters, args=(line, engine, *more), daemon=True).start()
            case _:
                break
    engine.close()


def _set_adapters(line: Pipe, engine: OpenVinoEngine, adapters: dict[str, str]) -> None:
    try:
        failed = engine.set_adapters({name: Path(folder) for name, folder in adapters.items()})
    except Exception as e:  # whatever it is, somebody waits for an answer
        logging.getLogger(__name__).exception("adapters_failed")
        failed = dict.fromkeys(adapters, f"OpenVINO cannot load the adapters: {e}")
    with contextlib.suppress(OSError):  # the replica is gone
        line.send("adapters", tuple(failed.items()))


if __name__ == "__main__":
    main()
