"""Progress while models load: a bar each on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from headrace.cli.waiting import Outcome, Standing
from headrace.cli.words import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class PlainProgress:
    """One line per change; of a percentage only every tenth is a change."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._said: dict[str, object] = {}

    def show(self, standings: Sequence[Standing]) -> None:
        for s in standings:
            key = s.text if s.progress is None else (s.text.split(" ")[0], int(s.progress * 10))
            if self._said.get(s.name) != key:
                self._said[s.name] = key
                self._write(one_line(f"{s.name}: {s.text}"))

    def say(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass


class BarProgress:
    """A line with a bar for each model, drawn again in place."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
            expand=True,
            refresh_per_second=5,
        )
        bars.start()
        self._bars = bars
        return bars

    def show(self, standings: Sequence[Standing]) -> None:
        bars = self._bars or self._start()
        for s in standings:
            if s.name not in self._tasks:
                self._tasks[s.name] = bars.add_task(s.name, total=None, text="")
            done: dict[str, Any] = (
                {"total": 1.0, "completed": s.progress} if s.progress is not None else {"total": None}
            )
            if s.outcome is Outcome.FAILED:
                done = {"total": 1.0, "completed": 0.0}
            bars.update(self._tasks[s.name], text=one_line(s.text), **done)

    def say(self, text: str) -> None:
        with suppress(OSError):
            if self._bars is not None:
                self._bars.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()
            self._bars, self._tasks = None, {}


def _write_stderr(text: str) -> None:
    # A terminal that was closed is no reason to end badly.
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def new_progress() -> PlainProgress | BarProgress:
    """Bars if stderr is a terminal, lines otherwise."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress(_write_stderr)
