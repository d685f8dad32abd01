"""Peak memory of whole measurements, each in a process of its own, its workers included."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from varlab.studies.speed.race import row
from varlab.studies.speed.targets import LIMIT, Row

GIB = 1.5
#: Seconds between two looks.
PAUSE = 0.1
#: n, reference, pilot and critic are all the same share of the work at every n.
CODE = """
import time, torch, varlab
torch.set_num_threads({threads})
env = varlab.envs.make('CartPole-v1')
policy = varlab.policies.make('mlp', env)
began = time.perf_counter()
made = varlab.measure(env, policy, n={n}, n_reference={n}, sink=lambda rows: None)
print(time.perf_counter() - began)
"""


def held(process: int) -> int:
    """Return the KiB that a process and those that it forked hold now; what several share counts once."""
    total, left = 0, [process]
    while left:
        one = left.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii")
            left += Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii").split()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def peak(n: int, threads: int) -> tuple[float, float]:
    """Measure every Φ of the source text on n CartPole trajectories, with a reference of n more.

    Args:
        n: trajectories.
        threads: cores.

    Returns:
        Most memory that the process and its workers held together, in GiB, and seconds of the measurement.

    Raises:
        CalledProcessError: if the measurement failed.
    """
    most, code = 0, CODE.format(n=n, threads=threads)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(PAUSE)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, code)
        return most / 2**20, float(process.stdout.read().splitlines()[-1])


def memory(sizes: Sequence[int], threads: int) -> list[Row]:
    """Measure with growing n.

    Args:
        sizes: values of n, smallest first.
        threads: cores.

    Returns:
        For each n a row against the limit; for all but the smallest also against equal memory at the smallest.
    """
    rows, first = [], None
    for n in sizes:
        gib, took = peak(n, threads)
        first = gib if first is None else first
        work = f"memory of {n:,} CartPole trajectories"
        rows.append(row(work, LIMIT, [GIB / gib], took, f"{gib:.2f} GiB at the peak"))
        if n != sizes[0]:
            rows.append(row(work, f"itself at n={sizes[0]:,}", [first / gib], took, f"{gib:.2f} GiB beside {first:.2f} GiB"))
    return rows
