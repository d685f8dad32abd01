"""Learned critics V_φ and Q_φ, fitted by the mean-squared error on trajectories of their own.

    φ_k = argmin_φ E_{s_t, Ĝ_t ∼ π_k} (V_φ(s_t) − G_t)²,

by steps of gradient descent that start from the previous policy's φ_{k−1} where there is one. Q_φ(s_t, a_t) regresses on the
same reward-to-go. V_φ may regress on λ-returns instead (:mod:`varlab.values.targets`), which are made anew from V_φ before every
pass over the data (fitted iteration of the policy's values), and it may see t/H. Source: Spinning Up in Deep RL, Part 3 (Achiam,
2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, rng
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP
from varlab.policies.base import features
from varlab.policies.networks import ACTIVATIONS, mlp
from varlab.types import Trajectories, Values
from varlab.values.functions import at_nodes, slope_at_mean
from varlab.values.targets import TARGETS, lambda_returns
from varlab.workers import in_order


@dataclass(frozen=True)
class CriticSettings:
    """How critics are fitted.

    Attributes:
        n: trajectories of the critic stream.
        hidden: widths of the hidden layers.
        activation: name of the activation.
        lr: step size of Adam.
        epochs: passes over the data, where ``steps`` is None.
        minibatch: steps of the environment in one gradient step.
        steps: gradient steps, in as many passes as they take: a dial of critic error, 0 for untrained; None: ``epochs`` decide.
        seed: root seed of data, initialisation and shuffling; the measurement's seed if None.
        init: φ of a previous critic (``Critic.state``), or None for a fresh start.
        target: what V_φ regresses on, monte_carlo (reward-to-go) or td_lambda (λ-returns); Q_φ keeps the reward-to-go.
        lam: λ of td_lambda.
        time_aware: whether V_φ sees t/H beside the observation.
    """

    n: int = 2000
    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    lr: float = 3e-3
    epochs: int = 10
    minibatch: int = 1024
    steps: int | None = None
    seed: int | None = None
    init: Mapping[str, Tensor] | None = None
    target: str = "monte_carlo"
    lam: float = 0.95
    time_aware: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: for a count below one, a step size that is not positive, an unknown target or λ outside [0, 1].
        """
        checks.one_of("critic.target", self.target, TARGETS)
        object.__setattr__(self, "lam", checks.in_range("critic.lam", self.lam, 0.0, 1.0))
        if not isinstance(self.time_aware, bool):
            raise checks.InputError(f"critic.time_aware must be true or false, but it is {self.time_aware!r}; set one of them.")
        for name in ("n", "epochs", "minibatch"):
            checks.positive_int(f"critic.{name}", getattr(self, name))
        if self.steps is not None:
            checks.positive_int("critic.steps", self.steps, 0)
        checks.one_of("critic.activation", self.activation, ACTIVATIONS)
        for width in self.hidden:
            checks.positive_int("critic.hidden", width)
        if not self.lr > 0:
            raise checks.InputError(
                f"A positive critic.lr was expected, but it is {self.lr!r}; set for instance critic.lr=0.003."
            )


class CriticNetwork(nn.Module):
    """V_φ and Q_φ side by side, each a perceptron whose output is scaled by the spread of the returns.

    The scale and the shift are buffers, set from the first data that the critic sees, and kept on a warm start.
    """

    def __init__(self, env: Environment, hidden: Sequence[int], activation: str, time_aware: bool = False) -> None:
        """Build both networks."""
        super().__init__()
        self.horizon, self.time_aware = env.horizon, time_aware
        self.num_classes = env.num_features if env.discrete_observations else None
        self.discrete = env.discrete_actions
        function = ACTIVATIONS[checks.one_of("activation", activation, ACTIVATIONS)]
        self.v = mlp([env.num_features + time_aware, *hidden, 1], function)
        q_in, q_out = (env.num_features, env.num_actions) if self.discrete else (env.num_features + env.num_actions, 1)
        self.q = mlp([q_in, *hidden, q_out], function)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def value(self, obs: Tensor, time: Tensor | None = None) -> Tensor:
        """Return V_φ(s) [n], or V_φ(s, t) at times [n] where the network sees them."""
        x = self._features(obs)
        if self.time_aware:
            x = torch.cat([x, time.to(x.dtype).unsqueeze(-1) / self.horizon], -1)
        return self.shift + self.scale * self.v(x).squeeze(-1)

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return Q_φ(s, a) [n]."""
        x = self._features(obs)
        if self.discrete:
            out = self.q(x).gather(-1, action.unsqueeze(-1))
        else:
            out = self.q(torch.cat([x, action.to(x.dtype)], -1))
        return self.shift + self.scale * out.squeeze(-1)

    def _features(self, obs: Tensor) -> Tensor:
        return features(obs, self.num_classes, self.scale.dtype)


@dataclass(frozen=True)
class Critic:
    """Fitted critics.

    Attributes:
        network: V_φ and Q_φ.
        source: ``critic:<digest of φ>``.
        steps: environment steps spent on the data.
        explained_variance: 1 − Var(G − V_φ)/Var(G) on the fitting data.
        losses: mean-squared error of V_φ before the first and after the last pass.
    """

    network: CriticNetwork
    source: str
    steps: int
    explained_variance: float
    losses: tuple[float, float]

    def state_dict(self) -> dict[str, Tensor]:
        """Return φ: what ``CriticSettings.init`` takes for the next policy."""
        return self.network.state_dict()

    @torch.no_grad()
    def table(self, mdp: FiniteMDP, horizon: int) -> tuple[Tensor, Tensor]:
        """Return V_φ [H + 1, S] and Q_φ [H, S, A] on the states of a finite MDP, the same at every time that is not seen."""
        seen = mdp.seen.to(self.network.scale.device)
        actions = torch.arange(mdp.num_actions, device=seen.device)
        q = torch.stack([self.network.action_value(seen, a.expand(len(seen))) for a in actions], 1).double()
        times = torch.arange(horizon + 1 if self.network.time_aware else 1, device=seen.device)
        v = torch.stack([self.network.value(seen, t.expand(len(seen))) for t in times]).double()
        return v.expand(horizon + 1, -1), q.expand(horizon, -1, -1)

    @torch.no_grad()
    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Evaluate the critics at the visited steps.

        Args:
            traj: trajectories of the critic's environment.
            need: which of ``v``, ``q``, ``q_nodes`` and ``q_slope`` are wanted.

        Returns:
            Values at every step, float64.
        """
        net = self.network

        def q(obs: Tensor, action: Tensor, t: Tensor) -> Tensor:
            return net.action_value(obs, action)

        v = net.value(traj.obs, traj.time).double() if "v" in need else None
        stale = None
        if v is not None:  # the wrong state, at the right time
            stale = net.value(traj.obs[traj.last_row], traj.length).double() if net.time_aware else v[traj.last_row]
        return Values(
            v=v,
            v_stale=stale,
            v_last=net.value(traj.last_obs, traj.length).double() if "v" in need else None,
            q=net.action_value(traj.obs, traj.action).double() if "q" in need else None,
            q_nodes=at_nodes(q, traj).double() if "q_nodes" in need else None,
            q_slope=slope_at_mean(q, traj, self.source) if "q_slope" in need else None,
            source=self.source,
            steps=self.steps,
        )


def new_network(
    env: Environment,
    settings: CriticSettings,
    sequence: np.random.SeedSequence,
    dtype: torch.dtype,
    device: torch.device | str,
    time_aware: bool = False,
) -> CriticNetwork:
    """Return V_φ and Q_φ with torch's default initialisation, drawn from ``sequence``."""
    with rng.global_generator(int(sequence.generate_state(1)[0])):  # torch's initialisers know no other
        net = CriticNetwork(env, settings.hidden, settings.activation, time_aware)
    return net.to(dtype=dtype, device=device)


def adam(net: CriticNetwork, lr: float) -> torch.optim.Adam:
    """Return the optimiser of both networks."""
    return torch.optim.Adam([*net.v.parameters(), *net.q.parameters()], lr=lr)


def descend(
    net: CriticNetwork,
    optimizer: torch.optim.Optimizer,
    traj: Trajectories,
    goal: Tensor,
    minibatches: Iterable[Tensor | None],
    need: frozenset[str] = frozenset({"v", "q"}),
    v_goal: Tensor | None = None,
) -> None:
    """Take one step of gradient descent on the mean-squared error for each minibatch.

    The loss is in units of the returns' spread, so that one step size suits every reward scale.

    Args:
        net: changed in place.
        optimizer: of its parameters.
        traj: M steps.
        goal: [M] reward-to-go, in the dtype of the networks.
        minibatches: rows of each step; None stands for all M.
        need: which of ``v`` and ``q`` are fitted.
        v_goal: [M] the target of V_φ, where it is not ``goal``.
    """
    everything = (traj.obs, traj.time, traj.action, goal, goal if v_goal is None else v_goal)
    for rows in minibatches:
        obs, time, action, g, of_v = (x if rows is None else x[rows.to(x.device)] for x in everything)
        loss = g.new_zeros(())
        if "v" in need:
            loss = loss + ((net.value(obs, time) - of_v) / net.scale).square().mean()
        if "q" in need:
            loss = loss + ((net.action_value(obs, action) - g) / net.scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def start_from(net: CriticNetwork, init: Mapping[str, Tensor], env: str, hidden: Sequence[int]) -> None:
    """Put φ of a previous critic in place.

    Raises:
        InputError: if it has other shapes.
    """
    try:
        net.load_state_dict({k: torch.as_tensor(v) for k, v in init.items()})
    except RuntimeError as error:
        raise checks.InputError(
            f"φ of a critic with hidden layers {list(hidden)} for {env} was expected, but it does not fit: "
            f"{' '.join(str(error).split())}; start from a critic of the same network."
        ) from error


def set_scale(net: CriticNetwork, target: Tensor) -> None:
    """Let the outputs start at the mean of the first returns, in units of their spread."""
    net.shift.fill_(float(target.mean()))
    net.scale.fill_(max(float(target.std(correction=0)), 1e-8))


def explained_variance(residual: Tensor, target: Tensor) -> float:
    """Return 1 − Var(residual) / Var(target), NaN where the target does not vary."""
    spread = float(target.var(correction=0))
    return 1 - float(residual.var(correction=0)) / spread if spread > 0 else float("nan")


@torch.no_grad()
def _lambda_returns(net: CriticNetwork, traj: Trajectories, gamma: float, lam: float) -> Tensor:
    v, v_last = net.value(traj.obs, traj.time), net.value(traj.last_obs, traj.length)
    return lambda_returns(traj, v.double(), v_last.double(), gamma, lam)


def fit(
    env: Environment,
    traj: Trajectories,
    target: Tensor,
    settings: CriticSettings,
    sequence: np.random.SeedSequence,
    digest: object,
    dtype: torch.dtype = torch.float32,
    gamma: float | None = None,
    cores: int = 1,
) -> Critic:
    """Fit V_φ and Q_φ to their targets by Adam on the same minibatches; they share no parameter, so that two cores can.

    Args:
        env: gives input sizes.
        traj: the critic stream's trajectories.
        target: [M] reward-to-go G_t.
        settings: network and optimiser.
        sequence: seed of initialisation and shuffling.
        digest: function from a mapping of arrays to a short content digest.
        dtype: of the networks.
        gamma: γ of λ-returns.
        cores: how many there are to use.

    Returns:
        The fitted critics.

    Raises:
        InputError: if φ to start from has other shapes, the fit diverges, or λ-returns are asked for without γ.
    """
    if settings.target == "td_lambda" and gamma is None:
        raise checks.InputError("A discount was expected because critic.target=td_lambda, but gamma=None; pass gamma=….")
    start, shuffle = rng.children(sequence, 2)
    net = new_network(env, settings, start, dtype, traj.obs.device, settings.time_aware)
    goal = target.to(dtype)
    if settings.init is None:
        set_scale(net, target)
    else:
        start_from(net, settings.init, env.name, settings.hidden)
    with torch.no_grad():
        before = float((net.value(traj.obs, traj.time) - goal).square().mean())
    # Made here, because the first one loads half of torch, which workers then have.
    optimizers = {which: torch.optim.Adam(getattr(net, which).parameters(), lr=settings.lr) for which in ("v", "q")}

    def fitted(which: str) -> dict[str, Tensor]:
        for minibatches in _passes(traj.steps, settings, rng.torch_generator(shuffle)):
            bootstrapped = which == "v" and settings.target == "td_lambda"
            v_goal = _lambda_returns(net, traj, gamma, settings.lam).to(dtype) if bootstrapped else None
            descend(net, optimizers[which], traj, goal, minibatches, frozenset({which}), v_goal)
        return getattr(net, which).state_dict()

    cores = cores if traj.obs.device.type == "cpu" else 1
    for which, state in zip(optimizers, in_order(fitted, optimizers, cores), strict=True):
        getattr(net, which).load_state_dict(state)
    net.requires_grad_(False)
    residual = net.value(traj.obs, traj.time).double() - target
    after = float(residual.square().mean())
    if not np.isfinite(after):
        raise checks.InputError(
            f"A finite error was expected after fitting the critic on {env.name}, but it is {after}; lower "
            f"critic.lr={settings.lr}."
        )
    state = {k: v.detach().cpu().numpy() for k, v in net.state_dict().items()}
    return Critic(net, f"critic:{digest(state)[:8]}", traj.cost, explained_variance(residual, target), (before, after))


def _passes(n: int, settings: CriticSettings, generator: torch.Generator) -> Iterator[Sequence[Tensor]]:
    """Give the minibatches of each pass in a new order; the last pass ends with the last gradient step that is wanted."""
    each = -(-n // settings.minibatch)
    wanted = settings.epochs * each if settings.steps is None else settings.steps
    for begun in range(0, wanted, each):
        yield torch.randperm(n, generator=generator).split(settings.minibatch)[: wanted - begun]
