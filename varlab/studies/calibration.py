"""Do the intervals cover? Repeated measurements on worlds whose mean and variance are known exactly.

For every world, Φ, n and statistic: the share of 95 % intervals that hold the exact value, counted over all repeats, flagged or
not; the share of false alarms of the bias test at 5 %, and its power at ‖bias‖ = 3 √(tr Cov/n).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from varlab import checks, envs, oracles, policies
from varlab.analysis.statistics import summarise
from varlab.envs.base import Environment
from varlab.oracles.exact import ExactMoments
from varlab.rng import Streams, numpy_generator
from varlab.studies.repeats import Case, repeats, sampled_references
from varlab.types import Moments, Reference
from varlab.values import FunctionValues

STATISTICS = ("variance", "variance_ratio", "bias_sq", "nsr", "cosine", "mse")
BATCH_SIZE = 100
LEVEL = 0.05
#: Length of the bias at which power is measured, in units of √(tr Cov/n).
POWER_AT = 3.0
FIVE = ("total_return", "reward_to_go", "value_baseline", "td_residual", "gae(lam=0.95)")
RETURNS = ("total_return", "reward_to_go", "value_baseline")


def _world(env_id: str, policy: str, scale: float = 1.0, **kwargs: object):  # noqa: ANN202
    def make() -> tuple[Environment, torch.nn.Module]:
        env = envs.make(f"varlab/{env_id}-v0" if "-" not in env_id else env_id, **kwargs)
        return env, policies.make(policy, env, scale=scale, hidden=(8,))

    return make


def wrong_values(env: Environment) -> FunctionValues:
    """Return fixed random values of every state, action and time: whatever bootstraps from them is biased."""
    s, a = env.finite.num_states, env.finite.num_actions
    draw = torch.Generator().manual_seed(5)
    v = torch.randn(env.horizon + 1, s, generator=draw, dtype=torch.float64)
    q = torch.randn(env.horizon, s, a, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


#: Worlds of every kind that the oracles know: dense and sparse rewards, few and many parameters, light and heavy tails.
CASES: Mapping[str, Case] = {
    "Gaussian bandit, 1 action": Case(_world("GaussianBandit", "linear", dim=1), RETURNS[1:]),
    "Gaussian bandit, 4 actions": Case(_world("GaussianBandit", "linear", dim=4), RETURNS[1:]),
    "Gaussian bandit, sampled reference": Case(_world("GaussianBandit", "linear", dim=4), RETURNS[1:], {}, 32, small=True),
    "Gaussian bandit, 20 actions": Case(_world("GaussianBandit", "linear", dim=20), RETURNS[1:]),
    "sign flip": Case(_world("SignFlip", "linear"), FIVE, {"gamma": 0.5}),
    "compounding": Case(_world("Compounding", "softmax_table", scale=0.5), FIVE),
    "compounding, sampled reference": Case(_world("Compounding", "softmax_table", scale=0.5), RETURNS, {}, 16, small=True),
    "random LQG": Case(
        _world("RandomLQG", "linear", scale=0.1, horizon=10, seed=1, state_dim=2, action_dim=1), RETURNS
    ),
    "random MDP": Case(_world("RandomMDP", "softmax_table", seed=1), FIVE, small=True),
    "random MDP, wrong values": Case(
        _world("RandomMDP", "mlp", scale=4.0, seed=2), FIVE, {"gamma": 0.9, "values": wrong_values}, small=True
    ),
    "FrozenLake": Case(_world("FrozenLake-v1", "softmax_table", scale=0.5), FIVE, small=True),
    "slippery CliffWalking": Case(
        _world("CliffWalking-v1", "softmax_table", horizon=12, is_slippery=True), FIVE, small=True
    ),
}  # fmt: skip


def jobs(worlds: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Return which worlds are measured at which n, the small n first; some take too long at more than the smallest."""
    return [(w, n) for n in sorted(sizes) for w in worlds if n == min(sizes) or not CASES[w].small]


def truths(exact: ExactMoments) -> dict[str, np.ndarray]:
    """Return the exact value [K] of every statistic; ρ_N = ⟨E g, ∇J⟩/(‖∇J‖ √(‖E g‖² + variance/N))."""
    length, own = (exact.gradient**2).sum(), (exact.mean**2).sum(1)
    spread = own + exact.variance / BATCH_SIZE
    bias_sq = np.where(exact.bias_sq > 1e-20 * length, exact.bias_sq, 0.0)
    return {
        "variance": exact.variance,
        "variance_ratio": exact.variance / exact.variance[0],
        "bias_sq": bias_sq,
        "nsr": exact.nsr,
        "cosine": exact.mean @ exact.gradient / np.sqrt(length * spread),
        "mse": bias_sq + exact.variance / BATCH_SIZE,
    }


def calibrate(name: str, n: int, count: int, seed: int = 0) -> pd.DataFrame:
    """Repeat one measurement and count.

    Args:
        name: a key of :data:`CASES`.
        n: trajectories of each measurement, a multiple of 50.
        count: repeats.
        seed: root seed.

    Returns:
        One row per Φ and statistic: world, phi, n, statistic, kurtosis, exact, repeats, coverage, below and above (shares of
        intervals with the exact value on that side of them), flagged (share of repeats), unflagged_coverage, width (median of
        high − low over the exact value), constant (whether no interval has a width), noise (tr Cov/n). Among the statistics are
        also ``false_alarms`` and ``power``, whose ``coverage`` is the share of p-values of at most 5 %.

    Raises:
        InputError: for an unknown world, an n that does not fill 50 blocks, or no repeat.
    """
    case = CASES[checks.one_of("world", name, CASES)]
    count = checks.positive_int("repeats", count)
    if checks.positive_int("n", n) % 50:
        raise checks.InputError(f"An n that fills 50 equal blocks was expected, but n={n}; give a multiple of 50.")
    job = case.prepare(n, seed)
    pilot = job.pilot()
    objective = job.options["objectives"][0]
    own = job.references.of(objective, pilot, None)
    exact = _exact(case, job)
    truth = truths(exact)
    references = None
    if case.reference_share:
        references = sampled_references(case, seed, n * case.reference_share, count, own)
    hits = {s: np.zeros((count, len(job.phi), 4)) for s in STATISTICS}
    flags, alarms = (np.zeros((count, len(job.phi)), dtype=bool) for _ in range(2))
    powers: list[list[bool]] = []
    proofs = job.proven(objective)
    fourth, square = np.zeros(len(job.phi)), np.zeros(len(job.phi))
    last = None
    for r, repeat in enumerate(repeats(job, pilot, n, count)):
        moments = repeat.moments
        reference = next(references) if references else own
        draw = numpy_generator(Streams(seed).sequence("bootstrap", r))
        rows = summarise(
            moments, reference, batch_size=BATCH_SIZE, rng=draw,
            unbiased=proofs, pilot_kurtosis=repeat.pilot_kurtosis,
        )  # fmt: skip
        fourth, square = fourth + moments.m4.sum(0), square + moments.m2c.sum(0)
        flags[r] = [bool(set(row["flag"].split("; ")) - {"", "zero-variance"}) for row in rows]
        alarms[r] = [row["bias_p_value"] <= LEVEL for row in rows]
        for statistic in STATISTICS:
            for k, row in enumerate(rows):
                low, high, value = row[f"{statistic}_low"], row[f"{statistic}_high"], truth[statistic][k]
                room = 1e-9 * abs(value)  # an interval of no width holds its value up to rounding
                below, above = value < low - room, value > high + room
                hits[statistic][r, k] = (not (below or above), below, above, (high - low) / (abs(value) or 1.0))
        if r % 4 == 3:  # a quarter tells a power well enough
            powers.append(_detected(moments, last, reference, exact, draw))
        last = moments
    kurtosis = n * count * fourth / square**2
    head = {"world": name, "n": n, "repeats": count, "reference": "sampled" if references else "exact"}
    table = []
    for k, estimator in enumerate(job.phi):
        common = {**head, "phi": estimator.label, "kurtosis": kurtosis[k], "flagged": flags[:, k].mean()}
        unflagged = ~flags[:, k]
        for statistic in STATISTICS:
            held, below, above, width = hits[statistic][:, k].T
            without = held[unflagged].mean() if unflagged.any() else np.nan
            table.append({
                **common, "statistic": statistic, "exact": truth[statistic][k], "coverage": held.mean(), "below": below.mean(),
                "above": above.mean(), "unflagged_coverage": without, "width": float(np.median(width)),
                "constant": bool((width == 0).all()), "noise": exact.variance[k] / n,
            })  # fmt: skip
        zero = truth["bias_sq"][k] == 0
        for statistic, share in (("false_alarms", alarms[:, k]), ("power", np.array(powers)[:, k])):
            if zero:
                table.append({**common, "statistic": statistic, "exact": LEVEL, "coverage": share.mean(), "constant": False})
    return pd.DataFrame(table)


def _exact(case: Case, job) -> ExactMoments:  # noqa: ANN001
    env, policy = case.make()
    settings = {k: v(env) if k == "values" and callable(v) else v for k, v in case.settings.items()}
    return oracles.exact(env, policy, [e.label for e in job.phi], **settings)


def _detected(
    moments: Moments, last: Moments, reference: Reference, exact: ExactMoments, draw: np.random.Generator
) -> list[bool]:
    """Whether a bias of 3 √(tr/n) is found, for every Φ, along the error of another repeat: where the estimator itself errs."""
    out = []
    for k, mean in enumerate(exact.mean):
        error = last.mean[:, k].mean(0) - mean
        shift = POWER_AT * np.sqrt(exact.variance[k] / moments.n) * error / max(float(np.linalg.norm(error)), 1e-300)
        one = {name: getattr(moments, name)[:, [k]] for name in ("trace_m2", "cross", "m4", "m2c")}
        moved = replace(moments, mean=moments.mean[:, [k]] + shift, names=moments.names[k : k + 1], **one)
        out.append(summarise(moved, reference, batch_size=BATCH_SIZE, rng=draw)[0]["bias_p_value"] <= LEVEL)
    return out
