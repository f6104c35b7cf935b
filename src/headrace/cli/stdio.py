"""Standard input, output and error as a command may find them: closed, full, narrow in what they can say, abandoned."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

import click

_NAMES = ("stdin", "stdout", "stderr")


def make_whole() -> None:
    """Give the process all three streams: one that was closed is /dev/null, and none fails for want of a character.

    A number that is free would go to the next file or connection, which would then get what is meant for a terminal.
    """
    for fd, name in enumerate(_NAMES):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
        if getattr(sys, name) is None:
            stream = open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)
        stream = getattr(sys, name)
        if fd and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def tell(sentence: str) -> None:
    """Say on stderr what went wrong; where nobody can be told, the exit code has to do."""
    with suppress(OSError, ValueError):
        click.echo(f"Error: {sentence}", err=True)


def cannot_write(error: OSError) -> str:
    """The sentence for output that did not get out."""
    return f"Cannot write the output: {error.strerror or error}."


def flushed(code: int) -> int:
    """Write out what is left; the exit code then, which was to be `code`."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as e:
            if stream is sys.stdout and not isinstance(e, BrokenPipeError | ValueError) and not code:
                tell(cannot_write(e))
                code = 1
            # A reader or a terminal that is gone; the interpreter's own last flush would make it exit code 120.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def foreign_bytes(text: str) -> bool:
    """Whether `text`, from the command line or a file, was not in the encoding that was expected."""
    return any("\ud800" <= c <= "\udfff" for c in text)
