"""Clients that mean no harm, and know what they must be answered."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from chaos_harness.client import exchange
from chaos_harness.oracle import Oracle, chat_text

TOKENS = 120


class Bystanders:
    """Stream answers of one model for the length of the block. `wrong`: answers that were not what they must be."""

    def __init__(self, address: tuple[str, int], model: str, ends_at: int, clients: int = 3) -> None:
        self._address, self._model, self._ends_at, self._clients = address, model, ends_at, clients
        self.answers = 0
        self.wrong: list[str] = []
        self._over = asyncio.Event()

    async def __aenter__(self) -> Bystanders:
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, n: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            prompt = f"Bystander {n}, question {turn}."
            messages = [{"role": "user", "content": prompt}]
            body = {"model": self._model, "messages": messages, "max_tokens": TOKENS, "stream": True}
            request_id = f"bystander-{n}-{turn}"
            path = "/v1/chat/completions"
            seen = await exchange(self._address, path, body, request_id, time.monotonic, lambda _: None)
            expected = Oracle(chat_text(prompt), None, self._ends_at).answer(TOKENS)
            if seen.status != "completed" or seen.text != expected.text:
                self.wrong.append(
                    f"{request_id}: {seen.status} {seen.http} {seen.error or seen.why} {seen.text[-40:]!r}"
                )
                await asyncio.sleep(0.1)
            self.answers += 1
