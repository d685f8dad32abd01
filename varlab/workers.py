"""Chunks of work on several cores: each core takes whole chunks, because what is in its cache is its own.

Torch can split every operation over the cores instead, but the operations on one chunk are small, and a barrier after each costs
more than it gains. Results come in the order of the work, so that sums do not depend on who was faster.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

Item, Out, Replica = TypeVar("Item"), TypeVar("Out"), TypeVar("Replica")

#: Chunks under way or waiting for the ones before, for each core.
AHEAD = 2


def in_order(function: Callable[[Replica, Item], Out], items: Iterable[Item], replicas: list[Replica]) -> Iterator[Out]:
    """Give ``function(replica, item)`` of every item, in order, with one thread for each replica.

    Args:
        function: works on an item with a replica that no other thread uses meanwhile.
        items: the work, taken as it is needed.
        replicas: what cannot be shared (buffers, modules with hooks); one means no threads at all.

    Yields:
        The results.
    """
    if len(replicas) == 1:
        yield from (function(replicas[0], item) for item in items)
        return
    free: SimpleQueue[Replica] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def work(item: Item) -> Out:
        replica = free.get()
        try:
            return function(replica, item)
        finally:
            free.put(replica)

    with _one_thread_each(), ThreadPoolExecutor(len(replicas), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= AHEAD * len(replicas):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let operations use one thread, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
