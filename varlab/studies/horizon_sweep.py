"""Measurements at several horizons, each with random numbers of its own, so that a slope over them has an honest interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from torch import nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.experiment import measure
from varlab.rng import Streams


def horizon_sweep(
    world: Callable[[int], tuple[Environment, nn.Module]],
    horizons: Sequence[int],
    phi: Sequence[str],
    *,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    **settings: object,
) -> pd.DataFrame:
    """Measure every Φ at every horizon.

    Args:
        world: horizon → environment and policy.
        horizons: H, each once.
        phi: names of Φ.
        seed: root seed from which those of the horizons are made.
        seeds: seeds of the horizons themselves, if they are to be set.
        **settings: of :func:`varlab.measure`, such as n and gamma.

    Returns:
        The rows of all summaries, as :func:`varlab.analysis.slopes.slope_table` takes them; ``run`` is the horizon.

    Raises:
        InputError: if a horizon occurs twice, or there is not one seed for each.
    """
    seeds = Streams(seed).sequence("rollout").generate_state(len(horizons)).tolist() if seeds is None else list(seeds)
    if len(set(horizons)) < len(horizons) or len(seeds) != len(horizons):
        raise checks.InputError(
            f"Each horizon once and a seed for each were expected, but horizons={list(horizons)} came with {len(seeds)} seeds; "
            "mend the lists."
        )
    parts = []
    for horizon, own in zip(horizons, seeds, strict=True):
        env, policy = world(horizon)
        parts.append(measure(env, policy, phi, seed=own, **settings).summary.assign(run=str(horizon)))
    return pd.concat(parts, ignore_index=True)
