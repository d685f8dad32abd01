"""CartPole-v1 with T = 200: past rewards and baselines (SU-6 to SU-9), and the simplest code (SU-1).

The policy is logistic with four parameters, at θ = 0, at a θ that holds the pole up about twice as long, and at one that holds it
up about five times as long. With R = G_t + D, D_t = Σ_{u<t} r_u the past that reward-to-go drops,

    Var(R) = Var(G) + Var(D) + 2 Cov(G, D)

in traces of the gradients' covariances: what dropping gains is Var(D) + 2 Cov(G, D), which may be negative. All Φ are weights of
the same trajectories; V is a critic fitted on trajectories of its own, the constant the mean of G_t on those.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

import varlab
from varlab import envs, policies
from varlab.analysis import bias
from varlab.analysis.blocks import CentredBlocks, pooled_variance
from varlab.analysis.intervals import LINEAR, LOG, Scale, jackknife_interval
from varlab.estimators.baselines import Baseline
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import cartpole_figure, relative_bias
from varlab.studies.claims.spinning_up_worlds import of_other, row
from varlab.types import Moments, Reference

HORIZON = 200
#: Where θ stands: weights of position, velocity, angle and angular velocity, fixed before any of these measurements, and n.
THETA = {
    "θ = 0": ((0.0, 0.0, 0.0, 0.0), 60_000),
    "θ holds twice as long": ((0.0, 0.3, 1.0, 1.0), 10_000),
    "θ holds five times as long": ((0.0, 0.5, 3.0, 2.0), 6_000),
}
PHI = ("total_return", "reward_to_go", "constant_baseline", "value_baseline")
#: Trajectories of the reference over n: its Φ, G_t − V, has about a tenth of the variance of the total return.
REFERENCE = 2
#: Hidden layer of the simplest code's policy.
HIDDEN = (32,)


class Traces:
    """Traces of the covariances of all choices with their values without each block, and functions of them with intervals."""

    def __init__(self, moments: Moments) -> None:
        """Pool the blocks of every choice."""
        self.moments, self.of = moments, {}
        for k, name in enumerate(moments.names):
            blocks = CentredBlocks.of_choice(moments, k)
            self.of[name] = pooled_variance(moments.units.astype(float), moments.trace_m2[:, k], blocks.dev_sq)

    def row(
        self, quantity: str, label: str, function: Callable[..., np.ndarray], names: tuple[str, ...], scale: Scale, **more
    ) -> dict:  # noqa: ANN003
        """Return a smooth function of traces with its jackknife interval."""
        value = float(function(*(self.of[n][0] for n in names)))
        loo = function(*(self.of[n][1] for n in names))
        return row(quantity, label, value, *jackknife_interval(value, [loo], scale=scale), self.moments.n, **more)


def square(moments: Moments, name: str, over: float, generator: np.random.Generator, label: str, **more) -> dict:  # noqa: ANN003
    """Return ‖E g‖²/``over`` of one choice without the bias of noise, with its interval."""
    k = moments.names.index(name)
    blocks = CentredBlocks.of_choice(moments, k)
    norm_sq, inner = float(blocks.mean @ blocks.mean), blocks.dev @ blocks.mean
    factor = bias.contribution(blocks.weight)
    gram, signs = factor[:, None] * blocks.gram * factor, bias.random_signs(generator, bias.LEAST_DRAWS, len(factor))
    null = bias.null_gram(blocks.weight, np.ones_like(factor), blocks.gram, inner, norm_sq)
    ends = bias.sign_multiplier(norm_sq, factor * inner, gram, signs, len(factor) - 1, 0.95, 0.0, null).interval
    value = bias.pair_square(norm_sq, inner, blocks.dev_sq, blocks.weight)
    return row("squared mean", label, value / over, ends.low / over, ends.high / over, moments.n, **more)


def _biases(summary: pd.DataFrame, reference: Reference, **more) -> list[dict]:  # noqa: ANN003
    size = float(reference.grad @ reference.grad)
    return [
        row("squared bias", r["phi"], r["bias_sq"] / size, r["bias_sq_low"] / size, r["bias_sq_high"] / size, r["n"], **more)
        for r in summary.to_dict("records")
    ]


def at(panel: str, budget: Budget) -> list[dict]:
    """Return all rows of one θ."""
    env = envs.make("CartPole-v1", HORIZON)
    weight, n = THETA[panel]
    policy, wrong = policies.Logistic(env, weight), [of_other(w) for w in ("past", "past twice", "mean log-probability")]
    added = Baseline(lambda obs, t: -20.0 * obs.new_ones(len(obs)), "20 added")
    found = varlab.measure(env, policy, [*PHI, *wrong, added], n=(n := budget.n(n)), n_reference=REFERENCE * n, seed=budget.seed)
    reference, traces = found.references["J_1"], Traces(found.moments)
    r, g, d = "total_return", "reward_to_go", "past"
    more = {"panel": panel}
    rows = [
        *_biases(found.summary, reference, **more),
        square(
            found.moments,
            d,
            float(reference.grad @ reference.grad),
            numpy_generator(Streams(budget.seed).sequence("bootstrap", 9)),
            d,
            **more,
        ),
        traces.row("part", "Var(G)/Var(R)", lambda r, g: g / r, (r, g), LOG, **more),
        traces.row("part", "Var(D)/Var(R)", lambda r, d: d / r, (r, d), LOG, **more),
        traces.row("part", "2 Cov(G, D)/Var(R)", lambda r, g, d: (r - g - d) / r, (r, g, d), LINEAR, **more),
        traces.row("part", "2 Cov(G, D)/Var(D)", lambda r, g, d: (r - g - d) / d, (r, g, d), LINEAR, **more),
        traces.row("part", "trajectories saved", lambda r, g: 1 - g / r, (r, g), LINEAR, **more),
        row("mean length", "J", reference.j, n=reference.n, **more),
    ]
    for label in (r, "constant_baseline", "value_baseline", "past twice", "20 added"):
        rows.append(traces.row("ratio to reward-to-go", label, lambda x, g: x / g, (label, g), LOG, **more))
    rows.append(
        traces.row(
            "ratio to constant", "value_baseline", lambda x, c: x / c, ("value_baseline", "constant_baseline"), LOG, **more
        )
    )
    rows.append(traces.row("ratio to total return", "past twice", lambda x, r: x / r, ("past twice", r), LOG, **more))
    return rows


@study(
    "su_cartpole",
    "CartPole-v1, T = 200, logistic policy of four parameters at three θ: variances of one trajectory's gradient over that of "
    "the total return, and the parts Var(R) = Var(G) + Var(D) + 2 Cov(G, D) that dropping past rewards D changes.",
    cartpole_figure,
)
def cartpole(budget: Budget) -> pd.DataFrame:
    """Return the rows of every θ."""
    return pd.DataFrame([r for panel in THETA for r in at(panel, budget)])


@study(
    "su_simplest",
    "‖E g − ∇J‖²/‖∇J‖² on CartPole with T = 200 and a perceptron of 32 tanh units, the world and policy of the source's code.",
    relative_bias,
)
def simplest(budget: Budget) -> pd.DataFrame:
    """Return squared biases at a random θ against a reference from other trajectories, and the squared mean of the score."""
    env = envs.make("CartPole-v1", HORIZON)  # v0 is the same world with this limit
    policy = policies.make("mlp", env, theta_seed=budget.seed, hidden=HIDDEN)
    phi = ["total_return", "reward_to_go", *(of_other(w) for w in ("mean log-probability", "one"))]
    found = varlab.measure(env, policy, phi, n=(n := budget.n(100_000)), n_reference=REFERENCE * n, seed=budget.seed)
    rows = [x for x in _biases(found.summary, found.references["J_1"]) if x["label"] != "one"]
    spread = float(found.summary.set_index("phi")["variance"]["one"])
    generator = numpy_generator(Streams(budget.seed).sequence("bootstrap", 9))
    return pd.DataFrame([*rows, square(found.moments, "one", spread, generator, "score of a trajectory")])
