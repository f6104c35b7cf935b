"""A bounded number of threads that end with the process, whatever they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def for_all(items: Iterable[T], work: Callable[[T], None], threads: int) -> None:
    """Do `work` on each item. After the first error no other is begun; it is raised when all threads have ended."""
    left = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def body() -> None:
        while True:
            with lock:
                if errors:
                    return
                try:
                    item = next(left)
                except StopIteration:
                    return
            try:
                work(item)
            except BaseException as e:
                with lock:
                    errors.append(e)

    # Daemons, unlike those of concurrent.futures: those would be waited for when the process is to end.
    workers = [threading.Thread(target=body, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
