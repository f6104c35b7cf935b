"""`python3 -m src.components.scheduler` is `headrace scheduler`."""

from src.components._command import run

run("scheduler")
