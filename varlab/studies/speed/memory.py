"""Peak memory of whole measurements, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from varlab.studies.speed.race import row
from varlab.studies.speed.targets import LIMIT, Row

GIB = 1.5
#: n, reference, pilot and critic are all the same share of the work at every n.
CODE = """
import json, resource, time, torch, varlab
torch.set_num_threads({threads})
env = varlab.envs.make('CartPole-v1')
policy = varlab.policies.make('mlp', env)
began = time.perf_counter()
made = varlab.measure(env, policy, n={n}, n_reference={n}, sink=lambda rows: None)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - began]))
"""


def peak(n: int, threads: int) -> tuple[float, float]:
    """Measure every Φ of the source text on n CartPole trajectories, with a reference of n more.

    Args:
        n: trajectories.
        threads: of torch.

    Returns:
        Peak resident memory of the process in GiB, and seconds of the measurement.
    """
    done = subprocess.run([sys.executable, "-c", CODE.format(n=n, threads=threads)], check=True, capture_output=True, text=True)
    gib, took = json.loads(done.stdout.splitlines()[-1])
    return gib, took


def memory(sizes: Sequence[int], threads: int) -> list[Row]:
    """Measure with growing n.

    Args:
        sizes: values of n, smallest first.
        threads: of torch.

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
