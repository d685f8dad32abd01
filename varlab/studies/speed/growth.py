"""How time grows: of a whole measurement with n, of per-trajectory gradients with K, T and P."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import varlab
from varlab import envs, policies
from varlab.studies.speed import works
from varlab.studies.speed.own import Own
from varlab.studies.speed.race import Budget, prepare, row
from varlab.studies.speed.results import MomentsResult, PairsResult, Result, TraceResult
from varlab.studies.speed.targets import IN_PROPORTION, Row

#: Grids of one setting each; the others stay at K = 8, T = 100 and 64×64.
GRIDS: Mapping[str, Sequence[object]] = {"K": (1, 8, 64, 256), "T": (20, 100, 1000), "P": ((64, 64), (128, 128), (256, 256))}
RESULTS: tuple[type[Result], ...] = (MomentsResult, TraceResult, PairsResult)


def in_n(budget: Budget, sizes: Sequence[int] = (20_000, 40_000, 80_000)) -> list[Row]:
    """Time whole measurements of growing n (n_reference = n), in turn.

    Args:
        budget: repeats.
        sizes: values of n, smallest first.

    Returns:
        A row for each n: the time in proportion to the smallest n over the time taken.
    """
    env = envs.make("CartPole-v1")
    policy = policies.make("mlp", env)

    def timed(n: int) -> float:
        return varlab.measure(env, policy, n=n, n_reference=n, sink=lambda rows: None).wall

    timed(sizes[0])
    taken = [[timed(n) for n in sizes] for _ in range(budget.rounds)]
    return [_grown(f"time of a measurement, n; {sizes[0]:,} to {n:,}", n / sizes[0], taken, i) for i, n in enumerate(sizes) if i]


def in_shapes(budget: Budget, device: str = "cpu", grids: Mapping[str, Sequence[object]] = GRIDS) -> list[Row]:
    """Time varlab's three results over K, T and P, the points of a grid in turn; seconds are per trajectory.

    Args:
        budget: repeats.
        device: torch device.
        grids: setting → its values; P is set by the hidden layers.

    Returns:
        A row for each point but the smallest.
    """
    rows = []
    for setting, values in grids.items():
        shapes = [works.make(**{{"K": "k", "T": "t", "P": "hidden"}[setting]: value}, device=device) for value in values]
        amounts = [{"K": w.k, "T": w.obs.shape[1], "P": w.num_parameters}[setting] for w in shapes]
        for result in RESULTS:
            runs: list[Callable[[], float]] = [prepare(Own, w, result, budget.longest)[0] for w in shapes]
            taken = [[run() / w.n for run, w in zip(runs, shapes, strict=True)] for _ in range(budget.rounds)]
            rows += [
                _grown(f"time of {result.name}, {setting}; {amounts[0]:,} to {a:,}", a / amounts[0], taken, i)
                for i, a in enumerate(amounts)
                if i
            ]
    return rows


def _grown(work: str, factor: float, taken: Sequence[Sequence[float]], i: int) -> Row:
    """Return factor × time of the first / time of the i-th, over rounds."""
    own = sorted(times[i] for times in taken)[len(taken) // 2]
    return row(work, IN_PROPORTION, [factor * times[0] / times[i] for times in taken], own, f"{factor:g} times the work")
