"""One writer for each run folder: a kernel lock that dies with its owner.

Nothing rests on the lock but thrift. Each file is written under its writer's own name and renamed, and two runs with one digest
hold the same bits, so that even two writers leave whole files. The lock keeps them from doing the work twice, and tells a
status which runs are alive. The kernel drops it when its owner ends, by ``kill -9`` too, so that no file has to be judged
stale by the clock or by a process id that another host cannot look up. On NFS ``flock`` is passed on to the server; a file
system without locks lets every writer through.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from varlab.storage.atomic import writing

try:
    import fcntl
except ImportError:  # not on Windows: every writer is let through
    fcntl = None

NAME = ".lock"
#: A look at a lock holds it for an instant; a claim tries for longer than that.
_PATIENCE = 0.3


@contextmanager
def lock(folder: str | Path, wait: bool = False) -> Iterator[bool]:
    """Hold a folder as its one writer.

    Args:
        folder: made if missing.
        wait: whether to wait for another owner to end.

    Yields:
        bool: True for the owner; False where another process owns the folder and ``wait`` is false.
    """
    path = Path(folder) / NAME
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, deadline = _take(path), time.monotonic() + _PATIENCE
    while descriptor is None and (wait or time.monotonic() < deadline):
        time.sleep(0.5 if wait and time.monotonic() > deadline else 0.05)
        descriptor = _take(path)
    if descriptor is None:
        yield False
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:
        pass  # the name is for messages alone, and the disk may be full
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that nobody owns a file without a name
        os.close(descriptor)


def owner(folder: str | Path) -> str | None:
    """Return the process that holds a folder, such as ``process 12 on host``, or None where nobody does."""
    try:
        descriptor = os.open(Path(folder) / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if fcntl is None or _locked(descriptor, shared=True) else os.read(descriptor, 200).decode() or "a process"
    finally:
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """Return the descriptor of a lock that is now ours, or None."""
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if not _locked(descriptor):
        os.close(descriptor)
        return None
    try:
        same = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        same = False
    if same:
        return descriptor
    os.close(descriptor)  # its last owner removed it between our two calls
    return None


def _locked(descriptor: int, shared: bool = False) -> bool:
    """Lock at once; False where another process has it. Where there are no locks, everybody has one."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
