"""What `headrace up` says when it serves."""

from __future__ import annotations

import asyncio
import http.client
import shlex
from collections.abc import Sequence
from contextlib import suppress

from headrace.cli.endpoint import HeadEndpoint, callable_address
from headrace.settings import UpSettings, default_state_dir

_PATIENCE_S = 30.0
_AGAIN_S = 0.1
QUESTION = "Explain about Machine Learning?"


async def until_http_answers(endpoint: HeadEndpoint, patience_s: float = _PATIENCE_S) -> bool:
    """True as soon as a proxy answers; False if none does in `patience_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience_s
    while loop.time() < end:
        if await asyncio.to_thread(_answers, callable_address(endpoint.http)):
            return True
        await asyncio.sleep(_AGAIN_S)
    return False


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def welcome_lines(endpoint: HeadEndpoint, models: Sequence[str], settings: UpSettings) -> list[str]:
    """The address, a command to paste, and what to do next."""
    url = endpoint.url
    where = "" if settings.state_dir == default_state_dir() else f" --state_dir={shlex.quote(str(settings.state_dir))}"
    lines = [f"Headrace is ready: {url}" if endpoint.http else "Headrace is ready, without HTTP proxies.", ""]
    if models and endpoint.http:
        key = ' -H "Authorization: Bearer $HEADRACE_API_KEY"' if settings.api_keys_file else ""
        lines += [
            f'  curl -X POST {url}/v1/chat/{models[0]} -H "Content-Type: text/plain"{key} \\',
            f'    -d "{QUESTION}" --no-buffer',
            "",
            f"  headrace chat {models[0]}{where}",
        ]
    return [*lines, f"  headrace status{where}", "", "Ctrl-C ends everything."]


def welcome(endpoint: HeadEndpoint, models: Sequence[str], settings: UpSettings) -> None:
    """Print `welcome_lines`; a terminal that is gone is no error."""
    with suppress(OSError):
        print("\n".join(welcome_lines(endpoint, models, settings)), flush=True)
