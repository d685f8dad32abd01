"""variances(): those of hundreds of Φ from one backward pass, by inner products of scores instead of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from varlab import checks, estimators
from varlab.analysis.traces import ROUNDING, TraceBlock, kurtosis, rows
from varlab.cores import Groups
from varlab.envs.base import Environment
from varlab.estimators.base import Estimator
from varlab.layout import Layout
from varlab.plans import BLOCKS, plan
from varlab.preparation import Preparation, Progress
from varlab.types import Trajectories
from varlab.workers import one_thread_each


def variances(
    env: Environment | str,
    policy: nn.Module,
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    n: int = 20_000,
    level: float = 0.95,
    progress: Progress | None = None,
    **settings: object,
) -> pd.DataFrame:
    """Measure tr Cov g and ‖E g‖² of every Φ, and nothing that needs gradients one by one.

    The unbiased ½‖g − g'‖² of pairs of independent trajectories (:mod:`varlab.analysis.traces`) comes from the scores' inner
    products, which all Φ share: 256 of them cost little more than one. Variances of single parameters, biases and the distance to
    a reference are :func:`varlab.measure`'s.

    Args:
        env: a world, or a Gymnasium id.
        policy: module whose forward gives a torch Distribution.
        phi: names or estimators; ratios are to ``total_return`` if it is among them, else to the first.
        n: trajectories, a multiple of two units and at least 100 of them.
        level: coverage of the intervals.
        progress: called with (stream, trajectories done, trajectories in all).
        **settings: of :func:`varlab.measure`, except those of references, biases and batches.

    Returns:
        One row for each Φ: phi, n, steps (of an episode, on average), variance, variance_ratio, mean_sq (‖E g‖²), nsr, each with
        its interval, and flag.

    Raises:
        InputError: for settings that cannot be used, an odd number of units, or NaN and infinities.
    """
    with one_thread_each() as cores:
        return _variances(Preparation(plan(env, policy, phi, n=n, **settings), progress, cores), level)


def _variances(job: Preparation, level: float) -> pd.DataFrame:
    """Measure what a preparation is for; see :func:`variances`."""
    n = job.options["n"]
    pair = 2 * job.unit
    if n % pair or n < BLOCKS * pair:
        raise checks.InputError(
            f"Whole pairs of units of {job.unit} trajectories, at least {BLOCKS} of them, were expected, but n={n}; "
            f"set for instance n={max(BLOCKS, round(n / pair)) * pair}."
        )
    comparator = job.labels.index("total_return") if "total_return" in job.labels else 0
    pilot = job.sample("pilot", pair * max(1, job.options["pilot"] // pair), job.seed, in_units=True)
    trial = _reduced(job, 0, pilot, job.groups(pilot, 2))
    layout = Layout(n, BLOCKS, job.part_size(n, pilot.steps / len(pilot), saved=job.snapshots), unit=pair)
    blocks = [TraceBlock(len(job.phi), job.device) for _ in range(BLOCKS)]
    steps = done = 0
    for b, (block, spent) in job.parts(layout, lambda *part: (_reduced(job, *part), part[1].cost), together=2):
        blocks[b].merge(block)
        steps, done = steps + spent, done + pair * block.pairs
        job.progress("rollout", done, n)
    made = rows(
        blocks, job.labels, comparator, unit=job.unit, level=level, rounding=ROUNDING[job.dtype], pilot_kurtosis=kurtosis(trial)
    )  # fmt: skip
    return pd.DataFrame([{"phi": row["phi"], "n": row["n"], "steps": steps / n} | row for row in made])


def _reduced(job: Preparation, first: int, traj: Trajectories, groups: Groups) -> TraceBlock:
    """Return the sums over the pairs of some trajectories; pairs follow the order of sampling, never lengths."""
    block = TraceBlock(len(job.phi), job.device)
    norm_sq = torch.empty(len(traj) // job.unit, len(job.phi), dtype=torch.float64, device=job.device)
    for index, scores, phi in groups:
        squares, inner = (x.double() for x in scores.products(phi))
        norm_sq[index] = squares
        block.add(squares, inner)
    checks.finite_gradients(norm_sq, job.labels, job.env.name, job.unit_name, first // job.unit)
    return block
