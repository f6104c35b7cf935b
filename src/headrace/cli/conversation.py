"""A conversation with a model over the HTTP API: history, streaming, errors as sentences."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from headrace.cli.words import one_line
from headrace.errors import HeadraceError, Unavailable, UserError

_CONNECT_S = 5.0
_COME_BACK_S = 8.0  # for another proxy to be there; replicas keep the stream not much longer


def _nothing(_: str) -> None:
    pass


class Conversation:
    """A context manager. Use it from one thread; leaving an answer's iterator early stops the answer."""

    def __init__(
        self, base: str, model: str, api_key: str | None, system: str | None, options: Mapping[str, Any]
    ) -> None:
        self.base, self.model = base, model
        self._system = [{"role": "system", "content": system}] if system else []
        self._options = options
        self._messages: list[dict[str, str]] = []
        try:
            url = httpx.URL(base)
        except httpx.InvalidURL as e:
            raise UserError(f"{base!r} is not a URL: {e}.") from e
        # The environment's proxy is for the world outside.
        local = url.host in ("localhost", "::1") or url.host.startswith("127.")
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            trust_env=not local,
        )

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def reset(self) -> None:
        """Forget what was said."""
        self._messages = []

    def check(self) -> None:
        """HeadraceError if the model cannot be asked: no such model, no key, nothing there."""
        with self._errors():
            _raise_for(self._client.get(f"/v1/models/{quote(self.model, safe='/:')}", timeout=10.0))

    def ask(self, text: str, waiting: Callable[[str], None] = _nothing) -> Iterator[str]:
        """The answer in pieces. What was answered is remembered, also if it was stopped; a failed turn is not.

        `waiting` is told what the server says while there is no answer yet, and "" when there is.
        """
        turn = [*self._messages, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": [*self._system, *turn], "stream": True, **self._options}
        pieces: list[str] = []
        failed = waits = False
        try:
            for line in self._lines(body):
                if line.startswith(":") and not pieces:
                    waits = True
                    waiting(one_line(line[1:]))
                piece = _piece(line)
                if piece:
                    if waits:
                        waits = False
                        waiting("")
                    pieces.append(piece)
                    yield piece
        except HeadraceError:
            failed = True
            raise
        finally:
            if waits:
                waiting("")
            if pieces and not failed:
                self._messages = [*turn, {"role": "assistant", "content": "".join(pieces)}]

    def _lines(self, body: Mapping[str, Any]) -> Iterator[str]:
        """The lines of the answer. Should its proxy be lost, the next one is asked to go on from the last event."""
        headers = {"X-Request-Id": f"chat-{uuid.uuid4().hex}", "X-Event-Ids": "true"}
        until, place = 0.0, ""
        with self._errors():
            while True:
                try:
                    path = "/v1/chat/completions"
                    with self._client.stream("POST", path, json=body, headers=headers) as response:
                        if response.status_code != 200:
                            response.read()
                        _raise_for(response)
                        until = 0.0
                        event: list[str] = []  # which counts when it is whole: its id comes last
                        for line in response.iter_lines():
                            event.append(line)
                            if line.startswith("id:"):
                                place = line[3:].strip()
                            if line:
                                continue
                            yield from event
                            if place:
                                headers["Last-Event-ID"] = place
                            if any(x == "data: [DONE]" or x.startswith('data: {"error"') for x in event):
                                return
                            event = []
                        if not place:
                            yield from event
                        raise httpx.RemoteProtocolError("it ended too early")
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    now = time.monotonic()
                    until = until or now + _COME_BACK_S
                    if "Last-Event-ID" not in headers or now >= until:
                        raise
                    time.sleep(0.1)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as e:
            raise Unavailable(f"Cannot reach Headrace at {self.base}; is it running? Start it with: headrace up") from e
        except httpx.UnsupportedProtocol as e:
            raise UserError(f"{self.base!r} is not an HTTP address.") from e
        except httpx.HTTPError as e:
            raise Unavailable(f"The connection to {self.base} broke off: {str(e) or type(e).__name__}.") from e


def _raise_for(response: httpx.Response) -> None:
    if response.status_code != 200:
        raise _error(response.content, f"{response.url.host} answered with status {response.status_code}.")


def _error(body: bytes | str, otherwise: str) -> HeadraceError:
    try:
        return HeadraceError(str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return HeadraceError(otherwise)


def _piece(line: str) -> str:
    """The text that one line of the event stream brings. HeadraceError if it brings an error."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return ""
    try:
        event = json.loads(data)
    except ValueError:
        raise HeadraceError(f"The answer is not an event stream: {data[:80]!r}.") from None
    if "error" in event:
        raise _error(data, "The answer broke off.")
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices") or ())
