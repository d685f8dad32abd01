"""variances(): those of hundreds of Φ from one backward pass, by inner products of scores instead of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import nn

from varlab import checks, estimators
from varlab.analysis.traces import ROUNDING, TraceBlock, kurtosis, rows
from varlab.envs.base import Environment
from varlab.estimators.base import Estimator
from varlab.layout import Layout
from varlab.plans import BLOCKS, plan
from varlab.preparation import Preparation, Progress
from varlab.rng import Streams
from varlab.rollout import parts
from varlab.types import Trajectories


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
    job = Preparation(plan(env, policy, phi, n=n, **settings), progress)
    pair = 2 * job.unit
    if n % pair or n < BLOCKS * pair:
        raise checks.InputError(
            f"Whole pairs of units of {job.unit} trajectories, at least {BLOCKS} of them, were expected, but n={n}; "
            f"set for instance n={max(BLOCKS, round(n / pair)) * pair}."
        )
    labels = [e.label for e in job.phi]
    comparator = labels.index("total_return") if "total_return" in labels else 0
    pilot, trial = job.sample("pilot", pair * max(1, job.options["pilot"] // pair), job.seed, in_units=True), _empty(job)
    _add(job, pilot, trial)
    layout = Layout(n, BLOCKS, job.part_size(n, pilot.steps / len(pilot), saved=job.snapshots), unit=pair)
    blocks = [_empty(job) for _ in range(BLOCKS)]
    steps = done = 0
    same = {"cut": job.options["cut"], "device": job.device, "group": job.group, "snapshots": job.snapshots}
    for b, traj in parts(job.env, job.behaviour, layout, Streams(job.seed), "rollout", **same):
        _add(job, traj, blocks[b], done)
        steps, done = steps + traj.cost, done + len(traj)
        job.progress("rollout", done, n)
    made = rows(
        blocks, labels, comparator, unit=job.unit, level=level, rounding=ROUNDING[job.dtype], pilot_kurtosis=kurtosis(trial)
    )  # fmt: skip
    return pd.DataFrame([{"phi": row["phi"], "n": row["n"], "steps": steps / n} | row for row in made])


def _empty(job: Preparation) -> TraceBlock:
    return TraceBlock(len(job.phi), job.device)


def _add(job: Preparation, traj: Trajectories, block: TraceBlock, first: int = 0) -> None:
    """Add the pairs of some trajectories; pairs follow the order in which they were sampled, never their lengths."""
    for index, (norm_sq, inner) in job.each(job.terms(traj, together=2), lambda scores, phi: scores.products(phi), together=2):
        job.check_gradient(norm_sq, index, "trajectory" if job.unit == 1 else "unit", first // job.unit)
        block.add(norm_sq, inner)
