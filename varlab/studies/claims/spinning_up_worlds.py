"""What the studies of Spinning Up share: sources, rows, wrong Φ that controls are made of, and small worlds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from varlab import policies, values
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.estimators.base import Batch, Estimator
from varlab.rng import Streams, torch_generator
from varlab.studies.claims.verdicts import Effect

TEXT = "Achiam (2018), Spinning Up in Deep RL, Part 3: Intro to Policy Optimization"
CODE = "Achiam (2018), Spinning Up in Deep RL, code of vpg and pg_math"
#: Relative deviation that rounding cannot make.
ROUNDING = 1e-9


def row(quantity: str, label: str, value: float, low: float | None = None, high: float | None = None, n: int = 0, **more) -> dict:  # noqa: ANN003
    """Return one estimate as a row; without interval it is exact."""
    value = float(value)
    ends = (value if low is None else float(low)), (value if high is None else float(high))
    return {"quantity": quantity, "label": label, "value": value, "value_low": ends[0], "value_high": ends[1], "n": n, **more}


def read(quantity: str, label: str, log: bool = False, **where: object) -> Callable[[pd.DataFrame], Effect]:
    """Return a reader of one row.

    Args:
        quantity: of the row.
        label: of the row.
        log: whether distances are measured on the logarithm.
        **where: further columns and what they hold.

    Returns:
        rows → effect.
    """

    def find(rows: pd.DataFrame) -> Effect:
        chosen = (rows["quantity"] == quantity) & (rows["label"] == label)
        for column, wanted in where.items():
            chosen &= rows[column] == wanted
        (found,) = rows[chosen].to_dict("records")
        return Effect(found["value"], found["value_low"], found["value_high"], int(found["n"]), log and found["n"] > 0)

    return find


def relative(mean: Tensor | np.ndarray, gradient: Tensor | np.ndarray) -> float:
    """Return ‖E g − ∇J‖/‖∇J‖."""
    mean, gradient = (np.asarray(x, dtype=np.float64) for x in (mean, gradient))
    return float(np.linalg.norm(mean - gradient) / np.linalg.norm(gradient))


def sine(mean: Tensor | np.ndarray, gradient: Tensor | np.ndarray) -> float:
    """Return the sine of the angle between E g and ∇J: what is left of E g across ∇J, over ‖E g‖."""
    mean, gradient = (np.asarray(x, dtype=np.float64) for x in (mean, gradient))
    across = mean - (mean @ gradient) / (gradient @ gradient) * gradient
    return float(np.linalg.norm(across) / np.linalg.norm(mean))


def autograd(env: Environment, policy: nn.Module, gamma: float = 1.0) -> np.ndarray:
    """Return ∇J_γ [P] by differentiating Bellman's recursion for J: a route that knows neither scores nor Φ."""
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    j = values.expected_return(env.finite, double, gamma, env.horizon)
    grads = torch.autograd.grad(j, list(policies.parameters(double).values()))
    return torch.cat([g.reshape(-1) for g in grads]).numpy()


def table(env: Environment, seed: int, number: int = 0, scale: float = 1.0) -> policies.SoftmaxTable:
    """Return a softmax table with logits N(0, scale²) from the θ stream."""
    generator = torch_generator(Streams(seed).sequence("theta", number))
    shape = env.num_features, env.num_actions
    return policies.SoftmaxTable(env, scale * torch.randn(shape, generator=generator, dtype=torch.float64))


def small(number: int = 0, seed: int = 0, states: int = 3, horizon: int = 4) -> tuple[Environment, policies.SoftmaxTable]:
    """Return a random MDP with rewards N(0, 1) in every step and outcomes that end episodes, and a softmax table on it."""
    generator = np.random.default_rng(Streams(seed).sequence("rollout", number))
    mdp = random_mdp(generator, states=states, actions=2, outcomes=2, ending=0.2)
    env = environment(mdp, horizon, "random MDP")
    return env, table(env, seed, number)


def early_or_late() -> Environment:
    """Return a world with three trajectories: stop at once for +1, or go on and then lose 1 or win 2.

    Length and return are correlated, and few trajectories make few units, so that units of 64 can be listed.
    """
    lists = [[[(1.0, 1, 1.0, True)], [(1.0, 1, 0.0, False)]], [[(1.0, 1, -1.0, True)], [(1.0, 1, 2.0, True)]]]
    return environment(FiniteMDP.from_lists(lists, initial=[1.0, 0.0]), 2, "early or late")


class Exploring(nn.Module):
    """Acts at random with probability ε, else by a categorical policy: actions that are not those of its scores."""

    def __init__(self, policy: nn.Module, eps: float) -> None:
        """Wrap ``policy``."""
        super().__init__()
        self.policy, self.eps = policy, eps

    def forward(self, obs: Tensor) -> Distribution:
        """Return the mixture."""
        probs = self.policy(obs).probs
        return Categorical(probs=(1 - self.eps) * probs + self.eps / probs.shape[-1])


@dataclass(frozen=True)
class Written(Estimator):
    """Φ by a function of the batch: what a user would write, and the wrong ones that controls need.

    Attributes:
        function: batch → [M].
        called: name that rows carry.
        asked: which values it reads.
    """

    function: Callable[[Batch], Tensor] = None
    called: str = "written"
    asked: frozenset[str] = frozenset()
    name = "written"
    unbiased = "biased"
    formula = "given by a function"
    source = "derived here"

    @property
    def label(self) -> str:
        """The name given."""
        return self.called

    @property
    def needs(self) -> frozenset[str]:
        """Values that the function reads."""
        return self.asked

    def phi(self, batch: Batch) -> Tensor:
        """Return what the function gives, [M]."""
        return self.function(batch)


def total(batch: Batch) -> Tensor:
    """Return R(τ) at every step, [M]."""
    return batch.reward_to_go[batch.traj.offsets[:-1]][batch.traj.episode]


def before(batch: Batch) -> Tensor:
    """Return Σ_{u<t} r_u [M] (γ = 1): what reward-to-go leaves out."""
    return total(batch) - batch.reward_to_go


def but_last(batch: Batch) -> Tensor:
    """Return 1 at every step of an episode but its last, 0 there, [M]."""
    out = torch.ones_like(batch.traj.reward)
    out[batch.traj.last_row] = 0.0
    return out


def of_other(wrong: str) -> Written:
    """Return a wrong Φ by name.

    - ``past``: Σ_{u<t} r_u alone, whose mean is 0.
    - ``past twice``: R(τ) + Σ_{u<t} r_u, unbiased and noisier.
    - ``mean log-probability``: R(τ)/T, the gradient of a mean of log-probabilities times the return.
    - ``from the next step``: G_{t+1}, off by one.
    - ``sees the action``: G_t − Q_t(s_t, a_t)/10, a baseline that sees the action.
    - ``reward alone``: r_t, the action value without what follows.
    - ``one``: 1, whose gradient is the score of the trajectory; ``without the last step``: the same, one score short.
    - ``mean over its own steps``: G_t/T, where a loss is averaged over the steps of each trajectory by itself.
    """
    made = {
        "past": (before, ()),
        "past twice": (lambda b: total(b) + before(b), ()),
        "mean log-probability": (lambda b: total(b) / b.traj.length[b.traj.episode], ()),
        "from the next step": (lambda b: b.reward_to_go - b.reward, ()),
        "sees the action": (lambda b: b.reward_to_go - 0.1 * b.values.q, ("q",)),
        "reward alone": (lambda b: b.reward, ()),
        "one": (lambda b: torch.ones_like(b.traj.reward), ()),
        "without the last step": (but_last, ()),
        "mean over its own steps": (lambda b: b.reward_to_go / b.traj.length[b.traj.episode], ()),
    }
    function, asked = made[wrong]
    return Written(function, wrong, frozenset(asked))
