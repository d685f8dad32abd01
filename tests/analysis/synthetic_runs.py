"""Runs made up for the tests of tables and figures: heavy-tailed gradients of eleven Φ on shared trajectories.

The summary is computed from the trajectories themselves, so that tables made from block moments have an independent twin.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pandas as pd

from varlab.types import Moments, Reference

SOURCE_TEXT = (
    "total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "baseline", "q_value", "advantage",
    "td_residual", "n_step(k=5)", "gae(lam=0.95)",
)  # fmt: skip
NOISE = (9.0, 5.0, 3.2, 2.4, 1.5, 1.9, 4.1, 1.2, 0.45, 0.7, 1.1)
BIAS = (0, 0, 0, 0, 0, 0, 0.004, 0.003, 0.06, 0.03, 0.008)


@dataclass(frozen=True)
class Run:
    """A made-up run.

    Attributes:
        gradients: [N, K, P] of every trajectory.
        reference_gradients: [M, P], or None if the reference is exact.
        moments, references, summary: what a run folder holds.
    """

    gradients: np.ndarray
    reference_gradients: np.ndarray | None
    moments: Moments
    references: dict
    summary: pd.DataFrame


def make(env="CartPole-v1", seed=0, gamma=1.0, n=2000, parameters=50, blocks=50, names=SOURCE_TEXT, exact=False, scale=1.0):
    """Return a run whose gradients are a signal plus Student noise with three and a half degrees of freedom."""
    rng = np.random.default_rng([seed, int(1000 * gamma), len(env)])
    signal = rng.standard_normal(parameters) / np.sqrt(parameters) * 0.25 * scale
    spectrum = np.arange(1, parameters + 1) ** -0.5

    def noise(m):
        tails = 1 / np.sqrt(rng.chisquare(3.5, (m, 1)) / 3.5)
        return rng.standard_normal((m, parameters)) * spectrum * tails * scale

    shared, means, g = noise(n), [], np.empty((n, len(names), parameters))
    for k in range(len(names)):
        bias = rng.standard_normal(parameters)
        means.append(signal + np.sqrt(BIAS[k % 11]) * scale * bias / np.linalg.norm(bias))
        own = noise(n)
        g[:, k] = means[k] + np.sqrt(NOISE[k % 11]) * (0.8 * shared + 0.6 * own) * (1.0 if gamma == 1 else gamma**20)
    parts = np.array_split(np.arange(n), blocks)
    mean = np.array([g[p].mean(0) for p in parts])
    moments = Moments(
        block_id=np.arange(blocks),
        count=np.array([len(p) for p in parts]),
        mean=mean,
        trace_m2=np.array([np.square(g[p] - g[p].mean(0)).sum((0, 2)) for p in parts]),
        m2=None,
        cross=np.array([((g[p] - g[p].mean(0)) * (g[p] - g[p].mean(0))[:, :1]).sum((0, 2)) for p in parts]),
        m4=np.array([np.square(np.square(g[p]).sum(2)).sum(0) for p in parts]),
        m2c=np.array([np.square(g[p]).sum((0, 2)) for p in parts]),
        steps=np.array([10 * len(p) for p in parts]),
        names=tuple(names),
    )
    objective = "J_1" if gamma == 1 else "J_gamma"
    if exact:
        r = None
        reference = Reference(signal, None, None, 1.0, "exact", 0, objective, f"ref{env[:4]}")
    else:
        r = signal + np.sqrt(1.5) * noise(10 * n)
        reference = Reference(
            r.mean(0), r.reshape(blocks, -1, parameters).mean(1), np.full(blocks, 10 * n // blocks), 1.0, "value_baseline",
            10 * n, objective, f"ref{env[:4]}{seed}",
        )  # fmt: skip
    rows = []
    norm_sq = reference.grad @ reference.grad - (0 if exact else r.var(0, ddof=1).sum() / len(r))
    for k, phi in enumerate(names):
        deviation = np.square(g[:, k] - g[:, k].mean(0)).sum(1)
        variance, other = deviation.sum() / (n - 1), np.square(g[:, 0] - g[:, 0].mean(0)).sum() / (n - 1)
        half = 1.96 * deviation.std() / np.sqrt(n) / variance
        squares = np.square(g[:, k].mean(0) - reference.grad).sum()
        bias = squares - variance / n - (0 if exact else r.var(0, ddof=1).sum() / len(r))
        cosine = (1 + bias / norm_sq + variance / norm_sq / 100) ** -0.5
        low, high = np.exp(-half), np.exp(half)
        ratio, nsr = variance / other, variance / norm_sq
        rows.append({
            "env": env, "policy": "mlp", "theta": "seed=0", "phi": phi, "gamma": gamma, "discount_weighting": True,
            "horizon": 500, "n": n, "n_reference": reference.n, "reference_kind": reference.kind, "objective": objective,
            "grad_norm": np.sqrt(norm_sq),
            "variance": variance, "variance_low": variance * low, "variance_high": variance * high,
            "variance_ratio": ratio, "variance_ratio_low": ratio * low**0.5 if k else 1.0,
            "variance_ratio_high": ratio * high**0.5 if k else 1.0,
            "bias_sq": bias, "bias_sq_low": max(0.0, bias - 3 * variance / n), "bias_sq_high": max(bias, 0) + 1.5 * variance / n,
            "bias_p_value": 0.5 / (k + 1), "mse": bias + variance / 100, "nsr": nsr,
            "kurtosis": np.mean(deviation**2) / np.mean(deviation) ** 2, "steps": 10 * n, "efficiency": 0.1 / variance,
            "exact_variance": variance * 1.01 if exact else np.nan, "seed": seed,
            "values_source": "none" if k < 2 else "exact" if exact else f"critic:1a2b{seed}",
            "batch_size": 100, "cut": 500, "at_cut": "bootstrap", "dtype": "float32", "device": "cpu",
            "mse_low": bias, "mse_high": bias + 2 * variance / 100,
            "nsr_low": nsr / 1.2, "nsr_high": np.inf if phi == "q_value" else nsr * 1.2,
            "cosine": cosine, "cosine_low": cosine * 0.9, "cosine_high": min(cosine * 1.1, 1.0),
            "grad_norm_low": np.sqrt(norm_sq) * 0.9, "grad_norm_high": np.sqrt(norm_sq) * 1.1,
            "exact_bias_sq": np.nan, "exact_nsr": np.nan, "flag": "reference-limited" if phi == "td_residual" else "",
            "reference_digest": reference.digest, "digest": f"{crc32(repr((env, seed, gamma, n)).encode()):08x}",
        })  # fmt: skip
    return Run(g, r, moments, {objective: reference}, pd.DataFrame(rows))
