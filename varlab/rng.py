"""Named streams of one root seed: SeedSequence(root, spawn_key=(stream, block, part)).

Two parts of any stream never share random numbers, and a part's numbers depend on nothing but the root seed, the stream's
name, the block and the part, so results do not depend on the order, the process or the machine that computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from varlab import checks

#: Numbers are part of every result: append, never renumber.
STREAMS = {
    "rollout": 0, "reference": 1, "critic": 2, "pilot": 3, "branch": 4, "bootstrap": 5, "theta": 6, "fit": 7,
    "train": 8, "train_first": 9, "train_fit": 10, "learning_curve": 11, "error": 12,
}  # fmt: skip


@dataclass(frozen=True)
class Streams:
    """The named streams of one root seed.

    Attributes:
        root: the seed given by the user.
    """

    root: int

    def sequence(self, stream: str, block: int = 0, part: int = 0) -> np.random.SeedSequence:
        """Return the seed sequence of one part of one block of a stream.

        Raises:
            InputError: if no stream has that name.
        """
        code = STREAMS[checks.one_of("stream of randomness", stream, STREAMS)]
        return np.random.SeedSequence(self.root, spawn_key=(code, block, part))


def children(sequence: np.random.SeedSequence, count: int) -> list[np.random.SeedSequence]:
    """Return the first ``count`` children of ``sequence``.

    ``SeedSequence.spawn`` gives other children at every call; here one sequence always stands for the same numbers.
    """
    return [descend(sequence, i) for i in range(count)]


def descend(sequence: np.random.SeedSequence, *keys: int) -> np.random.SeedSequence:
    """Return the descendant of ``sequence`` that ``keys`` lead to: child keys[0], its child keys[1], and so on."""
    return np.random.SeedSequence(sequence.entropy, spawn_key=(*sequence.spawn_key, *keys), pool_size=sequence.pool_size)


def branch(sequence: np.random.SeedSequence, *keys: int) -> np.random.SeedSequence:
    """Return the seed of branches from trajectories that were drawn with ``sequence``: their own, in the stream ``branch``.

    Args:
        sequence: of the trajectories.
        *keys: what the branches are for.

    Returns:
        The seed sequence (root, ("branch", stream, block, part, …, keys)).
    """
    spawn_key = (STREAMS["branch"], *sequence.spawn_key, *keys)
    return np.random.SeedSequence(sequence.entropy, spawn_key=spawn_key, pool_size=sequence.pool_size)


@contextmanager
def global_generator(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generator of one device, for code that knows no other, and restore it afterwards.

    ``torch.manual_seed`` would seed the generators of all devices, and a fork restores only those that it is told of.

    Args:
        seed: whole number.
        device: the device whose global generator is lent.

    Yields:
        Nothing.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


def torch_generator(sequence: np.random.SeedSequence, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on ``device`` seeded with 64 bits of ``sequence``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    return generator


def numpy_generator(sequence: np.random.SeedSequence) -> np.random.Generator:
    """Return a numpy generator seeded with ``sequence``."""
    return np.random.default_rng(sequence)
