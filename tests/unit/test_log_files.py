"""The sentence that a command of ours ended with."""

from __future__ import annotations

from pathlib import Path

from headrace.log_files import own_sentence, rotate, size


def test_the_sentence_of_a_child_is_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert (own_sentence(log), size(log)) == ("", 0)
    log.write_text("2026-01-01 [info] starting\nError: first\nnoise\nError: Port 8000 is in use.\n")
    assert own_sentence(log) == "Port 8000 is in use."
    assert own_sentence(log, size(log)) == "", "what an earlier one said is not this one's"
    log.write_text("2026 [error] Error: inside a line\n")
    assert own_sentence(log) == ""


def test_it_is_found_behind_much_else_and_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("noise\n" * 100_000 + "Error: No room.\n")
    assert own_sentence(log) == "No room."
    before = size(log)
    assert rotate(log, 0)
    log.write_text("Error: Still none.\n")
    assert own_sentence(log, before) == "Still none."
