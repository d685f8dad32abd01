"""Items of work on several cores: each is done from beginning to end by one forked process, with one thread.

Torch can split every operation over the cores instead, but operations here are small, a barrier after each costs more than it
gains, and what an operation gives would depend on their number in its last digits. Threads that take whole items wait for one
another in the interpreter. A forked process has all that was prepared before, and a copy of its own of whatever it changes.
Results come in the order of the work, so that no sum depends on who was faster.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import NoReturn, TypeVar

import torch

from varlab.checks import InputError

Item, Out = TypeVar("Item"), TypeVar("Out")

#: Items under way or waiting, for each worker.
AHEAD = 2


class WorkerLost(InputError):
    """A worker was ended from outside."""


def in_order(function: Callable[[Item], Out], items: Iterable[Item], workers: int) -> Iterator[Out]:
    """Give ``function(item)`` of every item, in order: :meth:`Crew.in_order` of a crew that lives no longer."""
    with Crew(function, workers) as crew:
        yield from crew.in_order(items)


class Crew:
    """Processes that wait for items of one kind of work; a context manager."""

    def __init__(self, function: Callable[[Item], Out], workers: int) -> None:
        """Say what is to be done.

        Args:
            function: what it changes is lost, unless there is one worker; items and what it gives are pickled.
            workers: processes; 1, or a system without fork, means none at all.
        """
        self.function = function
        self.workers = workers if sys.platform == "linux" else 1
        self._crew: dict[Connection, int] = {}  # connection → process

    def __enter__(self) -> Crew:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers."""
        self.close()

    def __del__(self) -> None:
        """End the workers of a crew that nobody needs any more."""
        self.close()

    def in_order(self, items: Iterable[Item]) -> Iterator[Out]:
        """Give ``function(item)`` of every item, in order.

        Args:
            items: the work, taken as it is needed.

        Yields:
            The results.

        Raises:
            WorkerLost: if a worker was killed.
            BaseException: what the function raised, with the worker's own traceback as a note.
        """
        if self.workers <= 1:
            yield from map(self.function, items)
            return
        while len(self._crew) < self.workers:
            self._fork()
        numbered, done, wanted = enumerate(items), {}, 0
        busy = dict.fromkeys(self._crew, 0)  # items that each has
        most = 2 * AHEAD * self.workers  # nobody runs far ahead of one who is slow
        try:
            while True:
                for connection in [*busy] * AHEAD:
                    if busy[connection] < AHEAD and sum(busy.values()) + len(done) < most:
                        busy[connection] += _assign(connection, numbered)
                if wanted in done:
                    succeeded, out = done.pop(wanted)
                    if not succeeded:
                        raise out
                    wanted += 1
                    yield out
                elif any(busy.values()):
                    for connection in wait([*busy]):
                        i, found = self._received(connection)
                        done[i] = found
                        busy[connection] -= 1
                else:
                    return
        finally:
            if any(busy.values()):  # they would give results that nobody waits for
                self.close(kill=True)

    def close(self, kill: bool = False) -> None:
        """End the workers, in the middle of an item if need be."""
        while self._crew:
            connection, pid = self._crew.popitem()
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                with contextlib.suppress(OSError):
                    connection.send_bytes(b"")  # workers of other crews may hold the connection open too
            connection.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _fork(self) -> None:
        """Start a worker."""
        ours, theirs = Pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python and JAX warn of threads that do not survive: a worker uses torch with one thread, which needs none of them.
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(self.function, theirs, parent)
        theirs.close()
        self._crew[ours] = pid

    def _received(self, connection: Connection) -> tuple[int, tuple[bool, object]]:
        """Return (number of the item, (whether it succeeded, result or error)).

        Raises:
            WorkerLost: if the worker has gone.
        """
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            _, status = os.waitpid(self._crew.pop(connection), 0)
            connection.close()
            how = f"exit code {os.waitstatus_to_exitcode(status)}"
            if os.WIFSIGNALED(status):
                how = signal.Signals(os.WTERMSIG(status)).name
            raise WorkerLost(
                f"A worker process was expected to finish its part, but {how} ended it"
                f"{' (out of memory?)' if how == 'SIGKILL' else ''}; use fewer threads or a smaller part_size, or look for what "
                "kills processes."
            ) from None


def _assign(connection: Connection, numbered: Iterator[tuple[int, Item]]) -> int:
    """Hand the next item to a worker; return how many there were."""
    for numbered_item in numbered:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who has gone is noticed where the result is missing
            connection.send_bytes(pickle.dumps(numbered_item))
        return 1
    return 0


def _serve(function: Callable[[Item], Out], connection: Connection, parent: int) -> NoReturn:
    """Do items until the parent says that it is enough, and leave without what the parent does at its own end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its workers
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a parent that is killed
        torch.set_num_threads(1)
        while os.getppid() == parent and (asked := connection.recv_bytes()):
            connection.send_bytes(_answer(function, *pickle.loads(asked)))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _answer(function: Callable[[Item], Out], i: int, item: Item) -> bytes:
    """Return what became of one item, pickled."""
    try:
        return pickle.dumps((i, (True, function(item))), protocol=5)
    except BaseException as error:
        error.add_note("In a worker process:\n" + traceback.format_exc())
        try:
            return pickle.dumps((i, (False, error)))
        except Exception:  # some errors carry what cannot be pickled
            return pickle.dumps((i, (False, RuntimeError("".join(traceback.format_exception(error))))))


@contextlib.contextmanager
def one_thread_each() -> Iterator[int]:
    """Let operations use one thread, and as many as before afterwards.

    Yields:
        How many there were: cores that may take items instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
