"""A job in a process of its own: what kills it, or holds it up for ever, ends that job alone."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from varlab.checks import InputError

#: Modules in which a process waits for its workers.
WAITING = ("selectors.py", "connection.py")
#: Seconds that a job which is out of time has for saying where it is.
LAST_WORDS = 1.0


class JobFailed(RuntimeError):
    """A job that ended by an error of its own; the text is its traceback."""


def run_apart(task: Callable[[], None], seconds: float | None = None) -> None:
    """Call ``task`` in a forked process and wait for its end.

    The fork keeps whatever this process has imported and set, so that a job begins in milliseconds.

    Args:
        task: what to do; its result is lost, its files stay.
        seconds: how long it may take; None for any time.

    Raises:
        InputError: with the sentence of the task's own, or where it took too long.
        JobFailed: with the task's traceback, or with the signal that ended it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _end_threads()
    parent = os.getpid()
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as place:
        child = os.fork()
        if child == 0:
            _child(task, parent, told, place)
        try:
            status = _wait(child, seconds)
            if status is None:
                os.killpg(child, signal.SIGUSR1)  # its workers too: one of them may be what hangs
                status = _wait(child, LAST_WORDS)
                place.seek(0)
                raise InputError(
                    f"At most time_limit={seconds:g} seconds were expected for a job, but it was still at work and was stopped"
                    f"{_innermost(place.read().decode())}; mend what holds it up, or raise time_limit."
                )
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # with whatever it started
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
        told.seek(0)
        text = told.read().decode()
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise JobFailed(f"The job's process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}.")
    if text:
        kind, text = json.loads(text)
        raise InputError(text) if kind == "input" else JobFailed(text)
    if os.WEXITSTATUS(status):
        raise JobFailed(f"The job's process ended by itself with exit code {os.WEXITSTATUS(status)}.")


def _end_threads() -> None:
    """End the threads that OpenMP keeps for later: they do not survive a fork, and the child would wait for them for ever."""
    try:
        with open("/proc/self/maps") as maps:
            libraries = {line.split()[-1] for line in maps if "libgomp" in line}
    except OSError:
        return
    for library in libraries:
        ctypes.CDLL(library).omp_pause_resource_all(2)  # omp_pause_hard; new threads are made on demand


def _child(task: Callable[[], None], parent: int, told: object, place: object) -> NoReturn:
    """Do the task, tell how it failed, and leave without what the parent does at its own end."""
    code = 1
    try:
        _die_with(parent)
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1, file=place, all_threads=False)
        task()
        code = 0
    except InputError as error:
        told.write(json.dumps(["input", str(error)]).encode())
    except SystemExit as stop:
        told.write(json.dumps(["other", f"The job ended itself: SystemExit({stop.code!r})"]).encode())
    except KeyboardInterrupt:
        pass
    except BaseException:
        told.write(json.dumps(["other", traceback.format_exc()]).encode())
    finally:
        for stream in (told, sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent is killed, so that no orphan goes on writing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before it could be asked
        os._exit(1)


def _wait(child: int, seconds: float | None) -> int | None:
    """Return the wait status of a child, or None where it is still at work after ``seconds``."""
    end, pause = None if seconds is None else time.monotonic() + seconds, 0.001
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _innermost(trace: str) -> str:
    """Return the place that a stuck process named, as part of a sentence: of those that do more than wait for another."""
    stacks = [stack.splitlines()[1:2] for stack in trace.split("most recent call first")]
    lines = [line.strip() for stack in stacks for line in stack if line.strip().startswith("File ")]
    lines.sort(key=lambda line: any(name in line for name in WAITING))
    return f" ({lines[0]})" if lines else ""
