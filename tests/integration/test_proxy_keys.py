"""API keys whose file changes while a proxy runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from integration.proxy_fixtures import World, eventually, world
from integration.proxy_requests import CHAT

from headrace.errors import UserError
from headrace.proxy import key_file
from headrace.proxy.key_file import KeyFile


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """As editors and deployments do: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    os.replace(new, path)


async def status(w: World, key: str) -> int:
    return (await w.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code


async def becomes(w: World, key: str, wanted: int) -> None:
    while await status(w, key) != wanted:
        pass


async def test_keys_come_and_go_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_LOOK_S", 0.02)
    path = tmp_path / "keys"
    write(path, "old name=web\n")
    async with world(tokens=10**6, step_s=0.005, settings={"api_keys_file": path}) as w:
        headers = {"Authorization": "Bearer old"}
        stream = CHAT | {"stream": True}
        async with w.client.stream("POST", "/v1/chat/completions", json=stream, headers=headers) as r:
            lines = r.aiter_lines()
            await anext(lines)
            write(path, "new name=web\n")
            await becomes(w, "new", 200)
            assert await status(w, "old") == 401
            for _ in range(5):
                await anext(lines)  # what runs goes on
        await w.clean()


async def test_a_file_that_cannot_be_taken_leaves_the_keys_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(key_file, "_LOOK_S", 0.02)
    path = tmp_path / "keys"
    write(path, "one\n")
    async with world(settings={"api_keys_file": path}) as w:
        keys = w.proxy.keys
        assert keys is not None
        for text, mode, why in (
            ("one name=\n", 0o600, "up to 64 letters"),
            ("# nothing\n", 0o600, "holds no key"),
            ("one\ntwo\n", 0o666, "chmod go-w"),
        ):
            write(path, text, mode)
            await eventually(lambda why=why: why in keys.trouble)
            assert "still in use" in keys.trouble
            assert (await status(w, "one"), await status(w, "two")) == (200, 401)
        path.unlink()
        await eventually(lambda: "Cannot read" in keys.trouble)
        assert await status(w, "one") == 200
        write(path, "two\n")
        await becomes(w, "two", 200)
        assert keys.trouble == ""
    assert capsys.readouterr().out.count("api_keys_not_read") == 4


def test_what_is_half_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, "one\ntwo\n")
    file = KeyFile(path)
    path.write_text("one\n")
    file.look()
    file.check(b"Bearer two")
    path.write_text("one\nthree\n")
    file.look()
    file.check(b"Bearer two")
    file.look()
    file.check(b"Bearer three")


@pytest.mark.parametrize("mode", [0o666, 0o622, 0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    write(path, "one\n", mode)
    with pytest.raises(UserError, match="chmod go-w"):
        KeyFile(path)


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [("one\n", 0o644, True), ("one\n", 0o600, False), (f"# x\nsha256:{'0' * 64} name=a\n", 0o644, False)],
)
def test_a_file_that_others_may_read_is_warned_of(
    tmp_path: Path, text: str, mode: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    write(path, text, mode)
    KeyFile(path)
    assert ("api_keys_readable" in capsys.readouterr().out) is warned
