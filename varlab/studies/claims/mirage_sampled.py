"""Action-dependent baselines on CartPole and Pendulum, MI-1, MI-2, MI-6, MI-7: components by cloned states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from varlab import envs, policies, storage, values
from varlab.analysis import estimates
from varlab.analysis import nested as statistics
from varlab.analysis import style as styles
from varlab.analysis.replicates import Replicated
from varlab.envs.base import Environment
from varlab.estimators.base import Batch
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies import nested as sampling
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.lambda_cartpole import world as balanced
from varlab.studies.claims.mirage import GAIN, MOST, NEGLIGIBLE, NOTHING, TUCKER
from varlab.studies.claims.verdicts import Effect
from varlab.types import Trajectories, Values
from varlab.values.critic import Critic, CriticSettings

LAM = 0.95
#: What the source's logs call nothing with GAE: (Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V) in [−0.32, 0.17].
NOTHING_GAE = 0.32
NO, V, V_T, Q, TD = "none", "V(s)", "V(s, t)", "Q(s, a)", "of δ(s, a)"
#: The component under the exact V, which is not known: a U-statistic.
EXACT = "exact V"


@dataclass(frozen=True)
class World:
    """Where components are sampled.

    Attributes:
        env: the environment.
        policy: whose gradient it is.
        gamma: γ.
        times: steps whose terms are sampled; components are summed over them.
        n: episodes of the default budget.
        actions: A in each state, two continuations each.
        critic: episodes that critics are fitted on, and how.
    """

    env: Environment
    policy: nn.Module
    gamma: float
    times: tuple[int, ...]
    n: int
    actions: int
    critic: CriticSettings


def worlds() -> dict[str, World]:
    """Return CartPole-v1 cut to 200 steps with a policy that mostly holds it up, and Pendulum-v1 with an untrained network."""
    cartpole, pendulum = envs.make("CartPole-v1", horizon=200), envs.make("Pendulum-v1", horizon=100)
    fitted = {"hidden": (32, 32), "epochs": 10}
    return {
        "CartPole-v1": World(
            cartpole, balanced()[1], 0.99, (0, 50, 100, 150), 4000, 4, CriticSettings(n=1000, **fitted)
        ),
        "Pendulum-v1": World(
            pendulum, policies.make("mlp", pendulum, hidden=(16, 16)), 0.97, (0, 50), 2000, 4, CriticSettings(n=400, **fitted)
        ),
    }  # fmt: skip


def critics(world: World, seed: int) -> dict[str, Critic]:
    """Fit V(s) and Q(s, a), V(s, t), and a critic whose Q regresses on r + γ V(s'), all to the same trajectories.

    Args:
        world: what they are for.
        seed: root seed.

    Returns:
        By name, the critics :data:`V`, :data:`V_T` and :data:`TD`.
    """
    streams, settings = Streams(seed), world.critic
    traj = rollout(world.env, world.policy, settings.n, streams.sequence("critic"))
    target = Batch(traj, Values(), world.gamma).reward_to_go
    found = {}
    for block, (name, aware) in enumerate(((V, False), (V_T, True))):
        told = replace(settings, time_aware=aware)
        found[name] = values.fit(world.env, traj, target, told, streams.sequence("fit", block), storage.digest)
    one_step = bootstrapped(traj, found[V], world.gamma)
    return found | {TD: values.fit(world.env, traj, one_step, settings, streams.sequence("fit", 2), storage.digest)}


def bootstrapped(traj: Trajectories, critic: Critic, gamma: float) -> Tensor:
    """Return r_t + γ V(s_{t+1}) [M], r_t alone where nothing follows: after termination and at the horizon."""
    v = critic(traj, frozenset({"v"})).v
    ahead = torch.cat([v[1:], v.new_zeros(1)])
    ahead[traj.last_row] = 0.0
    return traj.reward.double() + gamma * ahead


def components(world: World, n: int, seed: int) -> dict[str, Replicated]:
    """Sample the components of the chosen steps, summed.

    Args:
        world: where.
        n: episodes.
        seed: root seed.

    Returns:
        Σ_s and, by Φ, Σ_τ; Σ_a by baseline; under GAE(0), Σ_a of temporal differences by baseline.
    """
    known = critics(world, seed)

    def v(obs: Tensor, t: Tensor) -> Tensor:
        return known[V].network.value(obs, t).double()

    baselines: Mapping[str, sampling.Baseline] = {
        NO: lambda obs, action, t: torch.zeros(len(t), dtype=torch.float64),
        V: lambda obs, action, t: v(obs, t),
        V_T: lambda obs, action, t: known[V_T].network.value(obs, t),
        Q: lambda obs, action, t: known[V].network.action_value(obs, action),
        TD: lambda obs, action, t: known[TD].network.action_value(obs, action),
    }
    steps = sampling.nested(
        world.env, world.policy, world.times, n=n, gamma=world.gamma, discount_weighting=False, v=v, lams=(1.0, LAM, 0.0),
        baselines=baselines, actions=world.actions, seed=seed,
    )  # fmt: skip
    returns, gae, td = (
        statistics.summed([statistics.parts(s.samples[lam], s.baselines) for s in steps]) for lam in (1.0, LAM, 0.0)
    )
    best = [{("action", EXACT): statistics.best_value_part(s.samples[1.0])} for s in steps]
    returns |= statistics.summed(best)
    return {
        "Σ_s": returns["state", ""], "Σ_τ": returns["trajectory", ""], "Σ_τ of GAE": gae["trajectory", ""],
        "Σ_τ of δ": td["trajectory", ""], **{f"Σ_a, {b}": returns["action", b] for b in (NO, V, V_T, Q, EXACT)},
        **{f"Σ_a of δ, {b}": td["action", b] for b in (V, TD)},
    }  # fmt: skip


def effect_of(number: Replicated, log: bool = True) -> Effect:
    """Return a number with its jackknife interval, on the logarithm where it is positive throughout."""
    log = log and number.value > 0 and bool((number.without > 0).all())
    interval = number.interval(log=log)
    return Effect(number.value, interval.low, interval.high, number.n, log)


#: Components that the figure shows, over Σ_τ + Σ_a without a baseline.
SHOWN = {
    r"$\Sigma_a$, no baseline": f"Σ_a, {NO}", r"$\Sigma_a$, learned V(s)": f"Σ_a, {V}",
    r"$\Sigma_a$, learned V(s, t)": f"Σ_a, {V_T}", r"$\Sigma_a$, learned Q(s, a)": f"Σ_a, {Q}",
    r"$\Sigma_a$, exact V": f"Σ_a, {EXACT}", r"$\Sigma_\tau$, returns": "Σ_τ", rf"$\Sigma_\tau$, GAE({LAM:g})": "Σ_τ of GAE",
}  # fmt: skip


@study(
    "mirage_sampled",
    "Components of the variance of single steps' terms, summed over a few steps, over Σ_τ + Σ_a without a baseline: sampled by "
    "cloned states, with several actions in each and two continuations of each action. CartPole-v1 cut to 200 steps, γ = 0.99, a "
    "linear policy with episodes of about 130 steps, steps 0, 50, 100 and 150; Pendulum-v1, 100 steps, γ = 0.97, an untrained "
    "network, steps 0 and 50. Critics learned from other trajectories; the component under the exact V is a U-statistic, and an "
    "end of an interval outside the figure is 0 or less.",
    draw=lambda rows, style=None: draw(rows, style),
)
def mirage_sampled(budget: Budget) -> pd.DataFrame:
    """Sample components on both worlds, and the paired ratios that claims read.

    Args:
        budget: episodes (4,000 and 2,000) and seed.

    Returns:
        One row per environment and component, with an empty panel one per ratio.
    """
    rows = []
    for name, world in worlds().items():
        c = components(world, budget.n(world.n, least=100), budget.seed)
        none, v, q = (c[f"Σ_a, {b}"] for b in (NO, V, Q))
        for label, part in SHOWN.items():
            rows.append(row(label, effect_of(c[part] / (c["Σ_τ"] + none), log=EXACT not in part), panel=name, what=""))
        aware, tau = c[f"Σ_a, {V_T}"], c["Σ_τ"]
        told = {
            "share of Σ_a": none / (c["Σ_s"] + none + tau), "share with V": v / (c["Σ_s"] + v + tau),
            "without V": none / tau,
            "GAE": c["Σ_τ of GAE"] / tau, "returns over GAE": tau / c["Σ_τ of GAE"],
            "V(s, t)": aware / v, "V(s)": v / aware, "V(s, t), with Σ_τ": (tau + aware) / (tau + v),
            "V(s), with Σ_τ": (tau + v) / (tau + aware),
        }  # fmt: skip
        signed = {
            "Σ_a over Σ_τ": c[f"Σ_a, {EXACT}"] / tau,
            "saved by Q": (v - q) / (tau + v), "saved by Q from nothing": (none - q) / (tau + none),
            "saved of δ": (c[f"Σ_a of δ, {V}"] - c[f"Σ_a of δ, {TD}"]) / (c["Σ_τ of δ"] + c[f"Σ_a of δ, {V}"]),
        }  # fmt: skip
        rows += [row(name, effect_of(x), panel="", what=what) for what, x in told.items()]
        rows += [row(name, effect_of(x, log=False), panel="", what=what) for what, x in signed.items()]
    return pd.DataFrame(rows)


def draw(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the components of both worlds."""
    xlabel = r"over $\Sigma_\tau+\Sigma_a$ without a baseline"
    return estimates.draw(rows[rows["panel"] != ""], style, xlabel=xlabel, log="x")


def _of(env: str, what: str):  # noqa: ANN202
    """Return rows → a ratio of an environment."""
    return lambda rows: cell(rows, label=env, what=what)


CARTPOLE = "CartPole-v1, 200 steps, sums over steps 0, 50, 100 and 150"
PENDULUM = "Pendulum-v1, 100 steps, untrained policy, sums over steps 0 and 50"
claim(
    id="MI-1d", sentence="Without a baseline Σ_a dominates the variance of a step's term.", source=TUCKER, tag="C",
    study="mirage_sampled", statistic="Σ_a/(Σ_s + Σ_a + Σ_τ), at least half", direction="above", bound=MOST,
    effect=_of("CartPole-v1", "share of Σ_a"), condition=CARTPOLE, needs=("reward_to_go",),
    published="0.94 to 0.99 on HalfCheetah and Humanoid [C]",
    control=Control("so it does with a learned V", _of("CartPole-v1", "share with V")),
)  # fmt: skip
for _id, _env, _where in (("e", "Pendulum-v1", PENDULUM), ("g", "CartPole-v1", CARTPOLE)):
    claim(
        id=f"MI-1{_id}", sentence="With V as baseline Σ_a is negligible beside Σ_τ.", source=TUCKER, tag="C",
        study="mirage_sampled", statistic="Σ_a/Σ_τ with the exact V, by a U-statistic, at most 0.1", direction="below",
        bound=NEGLIGIBLE, effect=_of(_env, "Σ_a over Σ_τ"), condition=_where, needs=("value_baseline",),
        control=Control("so it is without a baseline", _of(_env, "without V")),
    )  # fmt: skip
claim(
    id="MI-2c", sentence="GAE lowers Σ_τ.", source=TUCKER, tag="C", study="mirage_sampled",
    statistic=f"Σ_τ of GAE({LAM:g}) with a learned V over that of returns", direction="below", bound=1.0,
    effect=_of("CartPole-v1", "GAE"), condition=CARTPOLE, needs=(f"gae(lam={LAM})",),
    published="27/712 on HalfCheetah, 53/730 on Humanoid [C]",
    control=Control("so do returns against GAE", _of("CartPole-v1", "returns over GAE")),
)  # fmt: skip
for _id, _env, _where in (("c", "CartPole-v1", CARTPOLE), ("e", "Pendulum-v1", PENDULUM)):
    claim(
        id=f"MI-6{_id}", sentence="A learned action-dependent baseline gives nothing over a learned state baseline.",
        source=TUCKER, tag="C", study="mirage_sampled", direction="within", bound=0.0, margin=NOTHING,
        effect=_of(_env, "saved by Q"), statistic="(Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V), paired, within 0.09 of 0",
        condition=f"{_where}, returns", needs=("value_baseline",), published="-0.09 to 0.06 in MuJoCo [C]",
        control=Control("nor over none", _of(_env, "saved by Q from nothing")),
    )  # fmt: skip
claim(
    id="MI-6d", sentence="A learned action-dependent baseline gives nothing over a learned state baseline.", source=TUCKER,
    tag="C", study="mirage_sampled", direction="within", bound=0.0, margin=NOTHING_GAE,
    effect=_of("CartPole-v1", "saved of δ"), needs=("td_residual",), published="-0.32 to 0.17 with GAE in MuJoCo [C]",
    statistic="(Σ_a^V − Σ_a^b)/(Σ_τ + Σ_a^V), paired, b(s, a) regressed on r + γV(s'), within 0.32 of 0",
    condition=f"in general: temporal differences, where transitions are deterministic; {CARTPOLE}",
    control=Control("nor, of returns, a learned Q over no baseline", _of("CartPole-v1", "saved by Q from nothing")),
)  # fmt: skip
for _id, _env, _where, _what, _words in (
    ("c", "CartPole-v1", CARTPOLE, "", "Σ_a"),
    ("d", "CartPole-v1", CARTPOLE, ", with Σ_τ", "Σ_τ + Σ_a"),
    ("e", "Pendulum-v1", PENDULUM, ", with Σ_τ", "Σ_τ + Σ_a"),
):
    claim(
        id=f"MI-7{_id}", sentence="A horizon-aware V gives a real gain.", source=TUCKER, tag="C", study="mirage_sampled",
        statistic=f"{_words} with a learned V(s, t) over the same with a learned V(s), paired, at most 0.8", direction="below",
        bound=GAIN, effect=_of(_env, f"V(s, t){_what}"), condition=_where, needs=("value_baseline",),
        control=Control("V(s) gives it over V(s, t)", _of(_env, f"V(s){_what}")),
    )  # fmt: skip
