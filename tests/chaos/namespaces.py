"""Network namespaces with links between them that can be cut. They last as long as this process, however it ends."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_numbers = itertools.count(1)


def ip(*words: str, ns: Namespace | None = None) -> None:
    """Run `ip`, in a namespace if one is given. CalledProcessError if it fails."""
    subprocess.run([*(ns.enter if ns else ()), "ip", *words], check=True, capture_output=True, timeout=20)


def why_not() -> str:
    """Why namespaces cannot be had here; "" if they can."""
    try:
        with namespace() as one:
            link(None, "10.231.99.1", one, "10.231.99.2")
    except PermissionError:
        return "network namespaces need root"
    except (OSError, subprocess.SubprocessError) as e:
        detail = getattr(e, "stderr", b"") or b""
        return f"no network namespaces with veth here: {e} {detail.decode(errors='replace').strip()}"
    return ""


def remove_group(path: Path) -> None:
    """A control group goes once it is empty: when the kernel has buried the last process."""
    for _ in range(200):
        try:
            path.rmdir()
            return
        except OSError:
            time.sleep(0.05)


class Namespace:
    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.holder = holder

    @property
    def enter(self) -> tuple[str, ...]:
        """What to put before a command that is to run in it."""
        return ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--")


@contextmanager
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        raise PermissionError
    # Its input ends with us; then it ends, and the namespace with it, once nobody else is in there.
    argv = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        if not holder.stdout.readline():
            raise OSError("unshare --net failed")
        made = Namespace(holder)
        try:
            ip("link", "set", "lo", "up", ns=made)
            yield made
        finally:
            holder.stdin.close()
            holder.wait(20)


def link(one: Namespace | None, address: str, two: Namespace, other: str) -> str:
    """A wire between two namespaces (None: ours) with an address at each end; the name of the first end."""
    name = f"hr{os.getpid() % 100000}x{next(_numbers)}"
    ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p", "netns", str(two.holder.pid))
    if one:
        ip("link", "set", name, "netns", str(one.holder.pid))
    for ns, end, own in ((one, name, address), (two, f"{name}p", other)):
        ip("addr", "add", f"{own}/24", "dev", end, ns=ns)
        ip("link", "set", end, "up", ns=ns)
    return name
