"""Which layers carry the variance: tr Cov split by the policy's parameter tensors, from moments per parameter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from varlab import checks
from varlab.analysis.blocks import CentredBlocks, pooled_variance
from varlab.analysis.intervals import positive_interval, share_interval
from varlab.types import Moments


def layer_table(moments: Moments, layers: Mapping[str, int], by: str = "tensor", level: float = 0.95) -> pd.DataFrame:
    """Split tr Cov of every Φ by layer.

    The variance of a layer is the sum of diag Cov over its entries of θ, pooled over blocks as the whole trace is; so the
    layers of one Φ sum to its variance and their shares to 1.

    Args:
        moments: of K choices, with moments per parameter.
        layers: name of each parameter tensor → its number of entries, in the order of θ: a result's ``layers``.
        by: ``tensor``, or ``module`` to add up the tensors of one module (weight and bias).
        level: coverage of the jackknife intervals.

    Returns:
        One row per Φ and layer: phi, layer, parameters, variance and share, each of the latter with ``_low`` and ``_high``. The
        share is NaN for a Φ without variance.

    Raises:
        InputError: if moments per parameter were not kept, or the layers are those of another policy.
    """
    checks.one_of("way to split a policy", by, ("tensor", "module"))
    if moments.m2 is None:
        raise checks.InputError(
            "Moments per parameter were expected, but this run kept traces alone; measure it with per_parameter=true and enough "
            "memory_limit."
        )
    total, size = sum(layers.values()), moments.mean.shape[2]
    if total != size:
        raise checks.InputError(
            f"Layers of {size} entries in all were expected, but {dict(layers) or 'none'} came; take them from the run itself, "
            "or measure it again if it does not name them."
        )
    index: dict[str, list[np.ndarray]] = {}
    start = 0
    for name, entries in layers.items():
        module = name.rpartition(".")[0] or name
        index.setdefault(module if by == "module" else name, []).append(np.arange(start, start + entries))
        start += entries
    rows = []
    for k, phi in enumerate(moments.names):
        parts = {name: _variance(moments, k, np.concatenate(where)) for name, where in index.items()}
        whole, without = (sum(part[i] for part in parts.values()) for i in (0, 1))
        for name, (value, loo) in parts.items():
            low, high = positive_interval(value, [loo], level)
            row = {"phi": phi, "layer": name, "parameters": sum(map(len, index[name])), "variance": value}
            row |= {"variance_low": low, "variance_high": high}
            resolved = whole > 0 and bool((without > 0).all())
            share = value / whole if whole > 0 else np.nan
            ends = share_interval(share, [loo / without], level) if resolved else (np.nan, np.nan)
            rows.append({**row, "share": share, "share_low": ends[0], "share_high": ends[1]})
    return pd.DataFrame(rows)


def _variance(moments: Moments, k: int, index: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the pooled variance of some entries of θ per trajectory, and [B] without each block."""
    low = None if moments.low is None else moments.low[:, k, index]
    blocks = CentredBlocks.of(moments.units, moments.mean[:, k, index], low)
    value, loo = pooled_variance(blocks.count, moments.m2[:, k, index].sum(1), blocks.dev_sq)
    return moments.unit * value, moments.unit * loo
