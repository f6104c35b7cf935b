"""Control groups, versions 1 and 2, as files.

`root` is where the file system begins; tests give a folder of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_MOUNT = "sys/fs/cgroup"


def groups(root: Path, controller: str, pid: int | str = "self") -> Iterator[Path]:
    """Folders of a process's control group and of all above it, for a controller, in both versions.

    In a container the path in /proc/self/cgroup may be the host's, while what is mounted begins at our own group: then
    the path does not exist and the mount's root is the group.
    """
    for line in read(root / f"proc/{pid}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [root / _MOUNT, root / _MOUNT / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / _MOUNT / controllers, root / _MOUNT / controller]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            while True:
                yield group
                if group == mount:
                    break
                group = group.parent


def read(path: Path) -> str:
    """The file's text; "" if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def number(text: str) -> int:
    """The integer that `text` is; 0 for "max" and for what is none."""
    try:
        return int(text)
    except ValueError:
        return 0


def counter(path: Path, name: str) -> int | None:
    """The number after `name` in a file of "name number" lines; None if it is not there."""
    for line in read(path).splitlines():
        said, _, value = line.partition(" ")
        if said == name and value.strip().isdigit():
            return int(value)
    return None
