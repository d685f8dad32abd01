"""Linear-quadratic-Gaussian systems: s' = A s + B a + ω, ω ~ N(0, Σ_ω), r = −(sᵀ Q s + aᵀ R a), simulated as tensors.

Under a policy that is linear in s with Gaussian noise a trajectory is jointly Gaussian, so that values, gradients and the
variance of estimators are known without sampling. Episodes run to the horizon; nothing terminates.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.envs.base import Environment, starts


@dataclass(frozen=True)
class LinearQuadratic:
    """A linear system with Gaussian noise and a quadratic cost; all tensors float64.

    Attributes:
        a: [S, S] A.
        b: [S, D] B, D action dimensions.
        state_cost: [S, S] Q, made symmetric.
        action_cost: [D, D] R, made symmetric.
        noise: [S, S] covariance Σ_ω of ω, zero for deterministic dynamics.
        initial_mean: [S] mean of s_0.
        initial_covariance: [S, S] covariance of the Gaussian s_0, zero for a fixed start.
    """

    a: Tensor
    b: Tensor
    state_cost: Tensor
    action_cost: Tensor
    noise: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor

    def __post_init__(self) -> None:
        """Check shapes, numbers and covariances.

        Raises:
            InputError: naming the first field that is wrong.
        """
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).to(torch.float64))
        if self.b.dim() != 2:
            raise checks.InputError(
                f"A matrix b of shape [S, D] was expected for a linear system, but it has shape {tuple(self.b.shape)}; write one "
                "row per state dimension."
            )
        s, d = self.b.shape
        square = {"a": s, "state_cost": s, "action_cost": d, "noise": s, "initial_covariance": s}
        for name, shape in {**{k: (n, n) for k, n in square.items()}, "initial_mean": (s,)}.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise checks.InputError(
                    f"{name} of shape {shape} was expected for a linear system with {s} state and {d} action dimensions, but it "
                    f"has shape {tuple(value.shape)}; reshape it."
                )
        for name in self.__dataclass_fields__:
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise checks.InputError(f"Finite numbers were expected in {name}, but it holds NaN or infinity; mend it.")
        for name in ("state_cost", "action_cost"):
            object.__setattr__(self, name, (getattr(self, name) + getattr(self, name).T) / 2)
        for name in ("noise", "initial_covariance"):
            root(name, getattr(self, name))

    @property
    def state_dim(self) -> int:
        """S."""
        return self.b.shape[0]

    @property
    def action_dim(self) -> int:
        """D."""
        return self.b.shape[1]

    @property
    def spectral_radius(self) -> float:
        """Largest |eigenvalue of A|; below 1 the system without control is stable."""
        return float(torch.linalg.eigvals(self.a).abs().max())

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        """Return r = −(sᵀ Q s + aᵀ R a) [n] for states [n, S] and actions [n, D]."""
        return -((state @ self.state_cost) * state).sum(-1) - ((action @ self.action_cost) * action).sum(-1)


def root(name: str, covariance: Tensor) -> Tensor:
    """Return L [S, rank] with L Lᵀ = covariance.

    Args:
        name: name for the message.
        covariance: [S, S].

    Returns:
        The root; it has no columns for directions without noise.

    Raises:
        InputError: if the matrix is not symmetric or has a negative eigenvalue.
    """
    values, vectors = torch.linalg.eigh(covariance)
    limit = 1e-12 * max(float(values.abs().max()), 1e-300)
    if not torch.allclose(covariance, covariance.T, rtol=1e-10, atol=limit) or float(values.min()) < -limit:
        raise checks.InputError(
            f"A symmetric {name} without negative eigenvalues was expected, but it is {covariance.tolist()}; a covariance is "
            "L Lᵀ for some matrix L."
        )
    kept = values > limit
    return vectors[:, kept] * values[kept].sqrt()


class LQGSimulator:
    """Many episodes of a linear system as one batch of float64 tensors."""

    def __init__(self, system: LinearQuadratic, device: torch.device) -> None:
        """Move the matrices to ``device``."""
        self.device = device
        self.system = LinearQuadratic(**{k: getattr(system, k).to(device) for k in system.__dataclass_fields__})
        self.noise_root = root("noise", system.noise).to(device)
        self.initial_root = root("initial_covariance", system.initial_covariance).to(device)

    def _draw(self, n: int, matrix: Tensor) -> Tensor:
        shape = (n, matrix.shape[1])
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float64) @ matrix.T

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes, each ``group`` consecutive ones in one state, and return their states [n, S]."""
        self.generator = rng.torch_generator(seed, self.device)
        first = self.system.initial_mean + self._draw(starts(n, group), self.initial_root)
        self.state = first.repeat_interleave(group, 0)
        return self.state

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by s' = A s + B a + ω; return s', the reward of (s, a), and that nothing terminated."""
        a = action.to(torch.float64)
        reward = self.system.reward(self.state, a)
        n = a.shape[0]
        self.state = self.state @ self.system.a.T + a @ self.system.b.T + self._draw(n, self.noise_root)
        return self.state, reward, torch.zeros(n, dtype=torch.bool, device=self.device)

    def keep(self, alive: Tensor) -> None:
        """Drop episodes that another rule ended."""
        self.state = self.state[alive]

    def snapshot(self) -> Tensor:
        """Return the states of the live episodes, [n, S]."""
        return self.state

    def restore(self, saved: Tensor, seed: np.random.SeedSequence) -> None:
        """Go on from states [n, S]."""
        self.state = saved
        self.reseed(seed)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Draw noise from ``seed`` from now on."""
        self.generator = rng.torch_generator(seed, self.device)


@dataclass(frozen=True)
class LQG(Environment):
    """An environment whose dynamics are a :class:`LinearQuadratic` system.

    Attributes:
        system: the dynamics, which exact values and variances read.
    """

    system: LinearQuadratic | None = None


def environment(system: LinearQuadratic, horizon: int, name: str = "LQG") -> LQG:
    """Return a linear system as an environment with H = ``horizon``; the policy sees the state itself."""

    def box(size: int) -> gymnasium.Space:
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    return LQG(
        name=name,
        horizon=horizon,
        observation_space=box(system.state_dim),
        action_space=box(system.action_dim),
        make_simulator=lambda device: LQGSimulator(system, device),
        part_size=4096,
        identity={"name": name, **{k: getattr(system, k) for k in system.__dataclass_fields__}},
        system=system,
    )


def point_mass(
    horizon: int = 100,
    *,
    dim: int = 2,
    dt: float = 0.05,
    mass: float = 1.0,
    state_cost: float = 1.0,
    action_cost: float = 0.01,
    noise: float = 1e-5,
) -> LQG:
    """Return the point mass that is pushed to the origin, s = (position, velocity), a = force.

    position' = position + dt · velocity, velocity' = velocity + (dt / mass) · force, each with noise of variance ``noise``.
    In two dimensions it starts at position (3, 4) with velocity (0.5, −0.5), in others at 3 and 0.5 in each. Source of
    dynamics and numbers: The Mirage of Action-Dependent Baselines in Reinforcement Learning (Tucker, Bhupatiraju, Gu, Turner,
    Ghahramani, Levine, 2018), where γ = 0.99, Σ_a = 1e-4 I and the policy is an open-loop mean at each time step.

    Args:
        horizon: H.
        dim: dimensions of space; S = 2 dim, D = dim.
        dt: length of a step.
        mass: of the point.
        state_cost: q, Q = q I.
        action_cost: r, R = r I.
        noise: variance of each entry of ω.

    Returns:
        The environment.
    """
    dim = checks.positive_int("dim", dim)
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    start = [3.0, 4.0, 0.5, -0.5] if dim == 2 else [3.0] * dim + [0.5] * dim
    system = LinearQuadratic(
        a=torch.cat([torch.cat([eye, dt * eye], 1), torch.cat([zero, eye], 1)]),
        b=torch.cat([zero, dt / mass * eye]),
        state_cost=state_cost * torch.eye(2 * dim),
        action_cost=action_cost * eye,
        noise=noise * torch.eye(2 * dim, dtype=torch.float64),
        initial_mean=torch.tensor(start, dtype=torch.float64),
        initial_covariance=torch.zeros(2 * dim, 2 * dim),
    )
    return environment(system, horizon, "point mass")


def with_clock(env: LQG) -> LQG:
    """Return the same system with a one-hot clock behind its state: (s, e_t), e_t → e_{t+1}.

    On it a policy that is linear in the state can have any mean μ_t at each step, W = [0, μ_0, …, μ_{H−1}], whatever s_t is: an
    open-loop policy. Costs, noise and so values and returns are those of the system.

    Args:
        env: a linear system with S state dimensions.

    Returns:
        The environment, with S + H state dimensions.
    """
    system, horizon = env.system, env.horizon

    def padded(matrix: Tensor, columns: int = 0) -> Tensor:
        return torch.nn.functional.pad(matrix, (0, columns, 0, horizon))

    first = torch.zeros(horizon, dtype=torch.float64)
    first[0] = 1.0
    clocked = LinearQuadratic(
        a=torch.block_diag(system.a, torch.diag(torch.ones(horizon - 1, dtype=torch.float64), -1)),
        b=padded(system.b),
        state_cost=padded(system.state_cost, horizon),
        action_cost=system.action_cost,
        noise=padded(system.noise, horizon),
        initial_mean=torch.cat([system.initial_mean, first]),
        initial_covariance=padded(system.initial_covariance, horizon),
    )
    return environment(clocked, horizon, f"{env.name} with a clock")


def random_system(
    horizon: int,
    *,
    seed: int,
    state_dim: int = 4,
    action_dim: int = 2,
    spectral_radius: float = 0.9,
    noise: float = 0.1,
) -> LQG:
    """Return a random system whose A has a set spectral radius.

    A is a matrix of standard normal numbers scaled to the radius, B has standard normal numbers divided by √S, Q = I, R = 0.1 I,
    Σ_ω = ``noise`` I and s_0 ~ N(1, I/4): the same numbers for the same seed and sizes.

    Args:
        horizon: H.
        seed: of the matrices.
        state_dim: S.
        action_dim: D.
        spectral_radius: max |eigenvalue of A|, below 1 for a stable system.
        noise: variance of each entry of ω.

    Returns:
        The environment.
    """
    s, d = checks.positive_int("state_dim", state_dim), checks.positive_int("action_dim", action_dim)
    radius = checks.in_range("spectral_radius", spectral_radius, 0.0, np.inf)
    generator = np.random.default_rng(checks.positive_int("seed", seed, least=0))
    a, b = generator.standard_normal((s, s)), generator.standard_normal((s, d)) / np.sqrt(s)
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    eye = torch.eye(s, dtype=torch.float64)
    system = LinearQuadratic(
        a=torch.from_numpy(a),
        b=torch.from_numpy(b),
        state_cost=eye,
        action_cost=0.1 * torch.eye(d, dtype=torch.float64),
        noise=noise * eye,
        initial_mean=torch.ones(s),
        initial_covariance=eye / 4,
    )
    return environment(system, horizon, "random LQG")
