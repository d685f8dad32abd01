"""Efficiency per environment step: variance times what a trajectory costs, for every Φ and relative to one of them.

The product variance × cost is what counts when steps are bought: with a budget of C steps the mean over C/cost trajectories has
the variance variance × cost / C. Source: The Asymptotic Efficiency of Simulation Estimators (Glynn and Whitt, 1992).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from varlab import checks
from varlab.analysis.blocks import CentredBlocks, pooled_variance
from varlab.analysis.intervals import paired_ratio, positive_interval
from varlab.types import Moments


def efficiency_table(
    moments: Moments, summary: pd.DataFrame, relative_to: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Tabulate variance × environment steps per trajectory.

    The steps of a Φ are those of its trajectories (inner episodes of parameter exploration included), of the branches that give
    it cloned values, and its share of what is spent once, the data of critics and of fitted baselines, over the n trajectories
    of the run. Trajectories and branches of a block are left out with it by the jackknife; what is spent once per trajectory
    stays as it is.

    Args:
        moments: block moments of K choices.
        summary: the run's own; its ``steps`` are the whole cost of a Φ.
        relative_to: the Φ that others are compared with; the comparator of the moments if None.
        level: coverage of the intervals.

    Returns:
        One row per Φ: phi, sampled_steps, branch_steps and fixed_steps (all per trajectory; branch_steps NaN in runs that did
        not count them by block, their sum then in fixed_steps), steps (their sum), work (variance × steps), efficiency (1/work),
        relative_variance and relative_work (over that of ``relative_to``, paired: trajectories are shared), and the name
        relative_to; steps, work and both ratios with ``_low`` and ``_high``. The ratios are NaN for Φ in other units than ∇J
        (column ``target``).

    Raises:
        InputError: if the Φ to compare with is not among the choices.
    """
    names = list(moments.names)
    base = moments.comparator if relative_to is None else names.index(checks.one_of("Φ of this run", relative_to, names))
    whole = summary.drop_duplicates("phi").set_index("phi")
    n, count = moments.n, moments.count.astype(np.float64)
    found = []
    for k, phi in enumerate(names):
        blocks = CentredBlocks.of_choice(moments, k)
        variance = [moments.unit * v for v in pooled_variance(blocks.count, moments.trace_m2[:, k], blocks.dev_sq)]
        branches = np.zeros(len(count)) if moments.charged is None else moments.charged[:, k]
        own = (moments.steps + branches).astype(np.float64)
        fixed = (float(whole.loc[phi, "steps"]) - own.sum()) / n
        steps = (own.sum() / n + fixed, (own.sum() - own) / (n - count) + fixed)
        branch = np.nan if moments.charged is None else branches.sum() / n
        found.append((branch, fixed, steps, variance, (variance[0] * steps[0], variance[1] * steps[1])))
    rows = []
    for k, (branch, fixed, steps, variance, work) in enumerate(found):
        row = {"phi": names[k], "sampled_steps": moments.steps.sum() / n, "branch_steps": branch, "fixed_steps": fixed}
        for name, (value, loo) in (("steps", steps), ("work", work)):
            row[name] = value
            row[f"{name}_low"], row[f"{name}_high"] = positive_interval(value, [loo], level)
        row["efficiency"] = 1.0 / work[0] if work[0] > 0 else np.inf
        kinds = [whole.loc[phi, "target"] if "target" in whole else "gradient" for phi in (names[k], names[base])]
        other = k != base and (kinds[0] != kinds[1] or kinds[0] == "direction")
        for name, mine, theirs in (("variance", variance, found[base][3]), ("work", work, found[base][4])):
            ratio, ends = paired_ratio(mine, theirs, k == base, level)
            values = (np.nan,) * 3 if other else (ratio, *ends)
            row |= dict(zip((f"relative_{name}{end}" for end in ("", "_low", "_high")), values, strict=True))
        rows.append({**row, "relative_to": names[base]})
    return pd.DataFrame(rows)
