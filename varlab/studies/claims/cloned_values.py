"""Do Monte Carlo values from K continuations rank steps better than a learned V, at equal environment steps?

The world is a random tree: A choices at each of T depths, a success that pays 1 at the end with a probability that the whole path
decides by independent effects of its nodes. V is then a chance of success, and the mean of K continuations from s is binomial,
Bin(K, V(s))/K: what it ranks right, and how much variance its error adds, are sums and need no sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import torch

from varlab import policies, storage, values
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.finite import FiniteMDP, environment
from varlab.estimators.base import Batch
from varlab.oracles.exact import exact, world_of
from varlab.oracles.world import World
from varlab.rng import Streams, numpy_generator
from varlab.rollout import rollout
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.verdicts import Effect
from varlab.types import Values
from varlab.values import CriticSettings, ExactValues

VINEPPO = "Kazemnejad, Aghajohari, Portelance, Sordoni, Reddy, Courville, Le Roux 2025 (VinePPO)"
CHOICES, DEPTH = 3, 8
#: Continuations from every visited state, trajectories whose values they are, and how a critic learns from as many steps.
CONTINUATIONS, TRAJECTORIES = 9, 16
CRITIC = CriticSettings(epochs=20, minibatch=256)
LEARNED, CLONED = "learned V", f"K = {CONTINUATIONS} continuations"


@dataclass(frozen=True)
class Tree:
    """A random tree as a finite MDP whose observation is the path: one-hot choices, 0 at depths to come.

    Attributes:
        mdp: the process; states are numbered depth by depth.
        first: [T + 1] number of the first state of each depth.
    """

    mdp: FiniteMDP
    first: np.ndarray

    @classmethod
    def of(cls, generator: np.random.Generator, choices: int = CHOICES, depth: int = DEPTH) -> Tree:
        """Draw the effects of all nodes, N(0, 1) each; a path succeeds with probability sigmoid of their sum."""
        first = np.cumsum([0, *(choices**d for d in range(depth))])
        shape = (int(first[-1]), choices, 2)
        probability, next_state, reward, obs = (np.zeros(s) for s in (shape, shape, shape, (shape[0], depth * choices)))
        terminated, effect = np.zeros(shape, dtype=bool), np.zeros(1)
        probability[..., 0], reward[..., 1] = 1.0, 1.0
        for d in range(depth):
            node, here = np.arange(choices**d), slice(first[d], first[d + 1])
            for u in range(d):
                obs[first[d] + node, u * choices + node // choices ** (d - 1 - u) % choices] = 1.0
            effect = (effect[:, None] + generator.standard_normal((choices**d, choices))).ravel()
            if d < depth - 1:
                next_state[here] = (first[d + 1] + node[:, None] * choices + np.arange(choices))[..., None]
            else:
                success = (1 / (1 + np.exp(-effect))).reshape(-1, choices)
                probability[here], terminated[here] = np.stack([1 - success, success], -1), True
        initial = np.eye(1, shape[0])[0]
        tables = (torch.from_numpy(x) for x in (probability, next_state.astype(np.int64), reward, terminated, initial))
        return cls(FiniteMDP(*tables, observations=torch.from_numpy(obs)), first)


def by_state(tree: Tree, v: np.ndarray) -> np.ndarray:
    """Return V [S] of a table [T + 1, S]: every state has one time."""
    return np.concatenate([v[d, tree.first[d] : tree.first[d + 1]] for d in range(len(tree.first) - 1)])


def ranked(tree: Tree, visits: np.ndarray, right: object) -> list[float]:
    """Return, by depth of the choice, the chance that two steps open to the policy are ranked right.

    Args:
        tree: the world.
        visits: [T, S] of the policy.
        right: (states i, states j) → chance that the pair is ordered as the exact V orders it, 1/2 for a tie.

    Returns:
        T − 1 numbers, each over the pairs of children of the visited nodes of a depth.
    """
    out = []
    for d in range(len(tree.first) - 2):
        here = slice(tree.first[d], tree.first[d + 1])
        children = tree.mdp.next_state[here, :, 0].numpy()
        pairs = [(a, b) for a in range(children.shape[1]) for b in range(a)]
        found = sum(right(children[:, a], children[:, b]) for a, b in pairs) / len(pairs)
        out.append(float(visits[d, here] @ found / visits[d, here].sum()))
    return out


def of_table(v: np.ndarray, guess: np.ndarray):  # noqa: ANN201
    """Return (i, j) → 1 where the guess [S] orders a pair as v [S] does, 0 where it does not, 1/2 for a tie."""
    return lambda i, j: np.where(guess[i] == guess[j], 0.5, np.sign(v[i] - v[j]) == np.sign(guess[i] - guess[j]))


def of_continuations(v: np.ndarray, k: int):  # noqa: ANN201
    """Return (i, j) → P(the better state has more successes of k) + ½ P(equally many)."""
    counts = np.arange(k + 1)

    def right(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        better, worse = np.maximum(v[i], v[j])[:, None], np.minimum(v[i], v[j])[:, None]
        law = scipy.stats.binom
        return (law.pmf(counts, k, better) * (law.cdf(counts, k, worse) - law.pmf(counts, k, worse) / 2)).sum(1)

    return right


def cloning_excess(world: World, v: np.ndarray, k: int) -> float:
    """Return what the errors of k-continuation values add to the variance of Σ_t z_t (G_t − V̂_t): E Σ_t ‖z_t‖² V (1 − V)/k.

    The errors are independent of all else, with mean 0 and variance V (1 − V)/k given the state.

    Args:
        world: a tree with exact values.
        v: [S] chance of success.
        k: continuations.

    Returns:
        The difference of variances.
    """
    square = (world.pi * (world.scores**2).sum(-1)).sum(1)
    return float((world.visits * square * v * (1 - v)).sum() / k)


@study(
    "cloned_values",
    f"A random tree of {CHOICES} choices at {DEPTH} depths. Chance that two next steps are ranked right, by depth, exactly for "
    f"the mean of K = {CONTINUATIONS} continuations and as a mean over ten learned V (two hidden layers of 64 on the path), each "
    f"fitted on the environment steps that the continuations of {TRAJECTORIES} trajectories take. The dashed line is chance.",
    draw=lambda rows, style=None: draw(rows, style),
)
def cloned_values(budget: Budget) -> pd.DataFrame:
    """Return ranks by depth, and variances of returns less V for V learned, by continuations, exact and none.

    Args:
        budget: number of learned V (10) and seed.

    Returns:
        One row per statistic (rank, variance), label and depth with value, its 95 % interval over learned V, and n.
    """
    n = budget.n(10, least=3, multiple=1)
    tree = Tree.of(numpy_generator(Streams(budget.seed).sequence("theta")))
    env = environment(tree.mdp, DEPTH, "tree")
    policy = policies.make("linear", env, theta_seed=budget.seed).double()
    source = ExactValues.of(tree.mdp, policy, 1.0, DEPTH)
    world = world_of(env, policy, source, 1.0, None, "bootstrap")
    v = by_state(tree, source.v.numpy())
    episodes = TRAJECTORIES * CONTINUATIONS * (DEPTH + 1) // 2
    ranks, spread = [], []
    for number in range(n):
        streams = Streams(budget.seed)
        traj = rollout(env, policy, episodes, streams.sequence("critic", number))
        target = Batch(traj, Values(), 1.0).reward_to_go
        critic = values.fit(env, traj, target, CRITIC, streams.sequence("fit", number), storage.digest)
        guess = critic.table(tree.mdp, DEPTH)[0][0].numpy()
        ranks.append(ranked(tree, world.visits, of_table(v, guess)))
        spread.append(float(exact(env, policy, "value_baseline", values=critic).variance[0]))
    plain, baseline = exact(env, policy, ["reward_to_go", "value_baseline"]).variance
    rows = [("rank", LEARNED, d + 1, *_interval(np.array(ranks)[:, d]), n) for d in range(DEPTH - 1)]
    halves = {"early": slice(0, DEPTH // 2 - 1), "late": slice(DEPTH // 2, None), "all": slice(None)}
    cloned = np.array(ranked(tree, world.visits, of_continuations(v, CONTINUATIONS)))
    single = np.array(ranked(tree, world.visits, of_continuations(v, 1)))
    rows += [("rank", CLONED, d + 1, x, x, x, 0) for d, x in enumerate(cloned)]
    for half, where in halves.items():
        own = np.array(ranks)[:, where].mean(1)
        rows.append((f"rank, {half}", LEARNED, 0, *_interval(own), n))
        rows.append((f"rank, {half}", CLONED, 0, *[float(cloned[where].mean())] * 3, 0))
        rows.append((f"gain, {half}", CLONED, 0, *_interval(cloned[where].mean() - own), n))
        rows.append((f"gain, {half}", "K = 1", 0, *_interval(single[where].mean() - own), n))
    excess = cloning_excess(world, v, CONTINUATIONS)
    cost = 1 + CONTINUATIONS * (DEPTH + 1) / 2
    rows.append(("variance ratio", CLONED, 0, *_interval((baseline + excess) / np.array(spread)), n))
    rows.append(("variance ratio", "K = 1", 0, *_interval((baseline + CONTINUATIONS * excess) / np.array(spread)), n))
    rows.append(("cost ratio", CLONED, 0, *[(baseline + excess) * cost / plain] * 3, 0))
    rows.append(("cost ratio", "exact V at the same cost", 0, *[baseline * cost / plain] * 3, 0))
    return pd.DataFrame(rows, columns=["statistic", "label", "x", "value", "value_low", "value_high", "n"])


def _interval(x: np.ndarray) -> tuple[float, float, float]:
    """Return mean and Student's 95 % interval."""
    mean, half = float(x.mean()), float(scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return mean, mean - half, mean + half


def draw(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the chance of a right order over depth."""
    table = rows[rows["statistic"] == "rank"]
    ends = table[["value_low", "value_high"]].clip(0.0, 1.0)  # of a chance
    table = table.assign(value_low=ends["value_low"], value_high=ends["value_high"])
    return estimates.draw(table, style, xlabel="depth of the step", ylabel="chance of the right order", line=0.5)


def _row(statistic: str, label: str):  # noqa: ANN202
    """Return rows → the value of that name."""

    def effect(rows: pd.DataFrame) -> Effect:
        (row,) = rows[(rows["statistic"] == statistic) & (rows["label"] == label)].to_dict("records")
        return Effect(row["value"], row["value_low"], row["value_high"], int(row["n"]))

    return effect


BARELY = 0.6
EQUAL = f"tree of {CHOICES}^{DEPTH} paths, at equal environment steps for {TRAJECTORIES} trajectories"
claim(
    id="VP-1a",
    sentence="A learned V barely beats chance at ranking steps.",
    condition=f"{EQUAL}, all depths", source=VINEPPO, tag="A", study="cloned_values", needs=("value_baseline",),
    statistic="chance of the right order of two next steps, mean over depths: at most 0.6 (chance is 0.5)",
    effect=_row("rank, all", LEARNED), direction="below", bound=BARELY,
    control=Control("the same of Monte Carlo values, K = 9", _row("rank, all", CLONED)),
)  # fmt: skip
claim(
    id="VP-1b",
    sentence="A learned V barely beats chance at ranking steps.",
    condition=f"{EQUAL}, the later half of the depths, whose states hardly recur", source=VINEPPO, tag="A", study="cloned_values",
    statistic="chance of the right order of two next steps, mean over the later depths: at most 0.6", needs=("value_baseline",),
    effect=_row("rank, late", LEARNED), direction="below", bound=BARELY,
    control=Control("the same in the earlier half", _row("rank, early", LEARNED)),
)  # fmt: skip
claim(
    id="VP-1c",
    sentence="Monte Carlo values by resets rank steps better than a learned V.",
    condition=f"{EQUAL}, the later half of the depths, K = 9", source=VINEPPO, tag="A", study="cloned_values",
    statistic="chance of the right order, continuations less learned V", needs=("value_baseline",),
    effect=_row("gain, late", CLONED), direction="above", bound=0.1,
    control=Control("the same in the earlier half", _row("gain, early", CLONED)),
)  # fmt: skip
claim(
    id="VP-1d",
    sentence="Monte Carlo values by resets lower the variance of the gradient below that of a learned V.",
    condition=f"{EQUAL}, K = 9, returns less V", source=VINEPPO, tag="A", study="cloned_values",
    statistic="ratio of variances, continuations over learned V", needs=("value_baseline",),
    effect=_row("variance ratio", CLONED), direction="below", bound=1.0,
    control=Control("the same with K = 1 continuation", _row("variance ratio", "K = 1")),
)  # fmt: skip
claim(
    id="VP-1e",
    sentence="Monte Carlo values by resets pay for themselves: less variance per environment step than without any V.",
    condition=f"tree of {CHOICES}^{DEPTH} paths, K = 9, returns less V against returns alone",
    source="derived here: branches charged", tag="X", study="cloned_values",
    statistic="ratio of variance × environment steps (exact)", needs=("reward_to_go",),
    effect=_row("cost ratio", CLONED), direction="below", bound=1.0,
    control=Control("the same with exact V, were it to cost as much", _row("cost ratio", "exact V at the same cost")),
)  # fmt: skip
