"""The loop: sample a batch at θ_k, weigh its scores by Φ, step to θ_{k+1}, let the critic follow.

    ĝ_k = 1/|D_k| Σ_{τ ∈ D_k} Σ_t w_t ∇_θ log π_θ(a_t | s_t) Φ_t,    θ_{k+1} = θ_k + α ĝ_k,  or a step of Adam on ĝ_k.

Source: Spinning Up in Deep RL, Part 3 and Vanilla Policy Gradient (Achiam, 2018); Adam: A Method for Stochastic Optimization
(Kingma and Ba, 2015).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from varlab import checks, policies, scores, terms
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator, FitBatch
from varlab.rng import Streams
from varlab.sources import ValueSource
from varlab.training import batches, critics
from varlab.training.plans import TrainingPlan, plan
from varlab.training.record import COLUMNS, Training, state_of
from varlab.types import Trajectories, Values
from varlab.values import critic as values_critic

Progress = Callable[[str, int, int], None]

#: Rows of scores in one pass.
ROWS = 2**16
#: Steps of the first batch on which the score map is probed.
PROBE = 16


def train(
    env: Environment | str, policy: nn.Module, phi: str | Estimator, *, progress: Progress | None = None, **settings: object
) -> Training:
    """Train a policy by vanilla policy gradient with any Φ.

    Args:
        env: a world, or a Gymnasium id.
        policy: module whose forward gives a torch Distribution, at θ_0; it is copied, never changed.
        phi: a name such as ``gae(lam=0.97)``, or an :class:`~varlab.estimators.Estimator`. What it fits (a constant baseline,
            say) comes from the batch before; a batch of its own comes before the first one.
        progress: called with ("train", epochs done, epochs in all).
        **settings: as follows.
            epochs: steps of θ (50).
            episodes: N independent episodes in every batch (64).
            steps: instead of ``episodes``, a quota of environment steps; it cuts the last episode and is its own, biased
                estimator of the gradient (:mod:`varlab.training.batches`).
            group_size: G consecutive episodes that form a group, for estimators of groups (the whole batch; the batch is one unit
                in any case).
            shared_start: whether the episodes of such a group of G begin in one state (True).
            optimizer: ``ascent``, θ ← θ + α ĝ, or ``adam``.
            lr: α (0.003).
            normalise: whether Φ is standardised over the steps of the batch (False).
            gamma: discount γ (1).
            discount_weighting: whether step t is weighted by γ^t (True).
            at_cut: what follows the episode that a quota cuts: terminal, bootstrap or wrong_state (bootstrap).
            values: critic, exact (at every θ), auto (exact where the world has them), or a function of trajectories (critic).
            critic: :class:`~varlab.training.CriticUpdates`.
            checkpoints: epochs after which θ is kept, besides init, mid and late.
            seed: root seed (0).
            dtype: float32 or float64.
            device: torch device.
            env_label, policy_label: names that the rows carry.

    Returns:
        The record; ``.curve`` is a DataFrame, ``.policy_at("mid")`` a policy to measure.

    Raises:
        InputError: for settings that cannot be used, or NaN and infinities from environment, policy, values or gradient.
    """  # noqa: DOC502
    return run(plan(env, policy, phi, **settings), progress)


def run(planned: TrainingPlan, progress: Progress | None = None) -> Training:
    """Carry out a plan. Arguments and result are those of :func:`train`."""
    began = time.perf_counter()
    job, epochs = _Run(planned), planned.options["epochs"]
    wanted = {"init": 0, "mid": epochs // 2, "late": epochs, **{str(e): e for e in planned.options["checkpoints"]}}
    kept, rows = {}, []
    for epoch in range(epochs + 1):
        kept |= {name: state_of(job.policy) for name, at in wanted.items() if at == epoch}
        if epoch < epochs:
            rows.append(job.step(epoch))
            if progress is not None:
                progress("train", epoch + 1, epochs)
    labels = {"env": planned.options["env_label"], "policy": planned.options["policy_label"], "phi": planned.phi.label}
    labels |= {"seed": planned.options["seed"], "setting": planned.setting, "digest": planned.digest}
    trained = copy.deepcopy(planned.policy)
    trained.load_state_dict(kept["late"])
    following = isinstance(job.values, critics.FollowingCritic)
    return Training(
        curve=pd.DataFrame([{**labels, **row} for row in rows])[list(COLUMNS)],
        checkpoints={name: kept[name] for name in wanted},
        policy=trained,
        critic=job.values.state_dict() if following else None,
        digest=planned.digest,
        settings=planned.settings,
        steps=dict(job.steps),
        wall=time.perf_counter() - began,
        notes=_notes(planned),
    )


class _Run:
    """One plan with its objects in place."""

    def __init__(self, planned: TrainingPlan) -> None:
        """Copy the policy; find where batches and values come from; fit what Φ takes from other data."""
        self.options, self.env = planned.options, planned.env
        self.dtype, device = checks.dtype_of(self.options["dtype"]), self.options["device"]
        self.gamma, streams = self.options["gamma"], Streams(self.options["seed"])
        self.policy = policies.prepare(planned.policy, self.dtype, device)
        self.theta = list(policies.parameters(self.policy).values())
        quota, same = self.options["steps"], (self.env, self.policy, streams, device)
        if quota is None:
            group = (self.options["group_size"] or 1) if self.options["shared_start"] else 1
            self.collect = batches.by_episodes(*same, self.options["episodes"], group)
        else:
            self.collect = batches.by_steps(*same, quota)
        # A rule that looks values up at a cut needs V even where Φ does not.
        cuts = quota is not None and self.options["at_cut"] != "terminal"
        self.cut_needs = frozenset({"v"}) if cuts else frozenset()
        self.need = planned.phi.needs | self.cut_needs
        self.values = self._values(streams, device)
        # θ minimises nothing here: both optimisers go uphill.
        optimizer = {"ascent": torch.optim.SGD, "adam": torch.optim.Adam}[self.options["optimizer"]]
        self.optimizer = optimizer(self.theta, lr=self.options["lr"], maximize=True)
        self.steps, self.scores, self.phi = {"train": 0}, None, planned.phi
        if planned.phi.fits:
            first = self.collect("train_first", 0)
            self.steps["train_first"] = first.cost
            self._bind(first)
            self._fit(self.read(self.values.source(self.policy))(first, self.need))

    def _bind(self, traj: Trajectories) -> None:
        """Give Φ what it takes from the world and the present θ; make the score map where there is none yet."""
        if self.scores is None:
            count = min(PROBE, traj.steps)
            self.scores = scores.make(self.policy, traj.obs[:count], traj.action[:count], self.env.name)
        self.phi = self.phi.bind(self.env, policies.prepare(self.policy, torch.float64, self.options["device"]))

    def _fit(self, batch: Batch) -> None:
        """Give Φ the numbers that it takes from data of its own: a batch at the θ that drew it, read by the next epoch."""
        told = {"env": self.env, "policy": self.policy, "scores": self.scores}
        same = (batch.traj, batch.values, self.gamma, batch.at_cut)
        self.phi = self.phi.fit(FitBatch(*same, **told, discount_weighting=self.options["discount_weighting"]))

    def _values(
        self, streams: Streams, device: torch.device
    ) -> critics.FollowingCritic | critics.ExactAtTheta | critics.GivenValues:
        wanted = self.options["values"]
        if not self.need or not isinstance(wanted, str):
            return critics.GivenValues(wanted if self.need else None)
        if wanted == "exact":
            return critics.ExactAtTheta(self.env, self.gamma, device)
        settings, sequence = self.options["critic"], streams.sequence("train_fit")
        return critics.FollowingCritic(self.env, settings, self.need, sequence, self.dtype, device)

    def read(self, source: ValueSource | None) -> terms.Reader:
        """Return what gives Φ its batch: trajectories with the values asked for and those that a cut needs, each read once."""
        known: dict[tuple[int, frozenset[str]], Batch] = {}

        def reader(traj: Trajectories, asks: frozenset[str]) -> Batch:
            asks |= self.cut_needs
            if (id(traj), asks) not in known:
                values = source(traj, asks) if asks else Values()
                # The batch is the unit: what it holds is what is drawn anew, independently, in every epoch.
                units = (self.options["group_size"] or len(traj), len(traj)) if self.phi.batchwise else (1, 1)
                known[id(traj), asks] = Batch(traj, values, self.gamma, self.options["at_cut"], *units)
            return known[id(traj), asks]

        return reader

    @property
    def spent(self) -> int:
        """Environment steps so far, of batches and of values that a user's source paid for."""
        given = self.values.given if isinstance(self.values, critics.GivenValues) else None
        return sum(self.steps.values()) + getattr(given, "steps", 0)

    def step(self, epoch: int) -> dict[str, float]:
        """Take one step of θ; return the row of its batch."""
        traj = self.collect("train", epoch)
        self.steps["train"] += traj.cost
        self._bind(traj)
        read, phi, unit = self.read(self.values.source(self.policy)), [self.phi], len(traj) if self.phi.batchwise else 1
        made = terms.assemble(phi, traj, self.policy, read, self.options["discount_weighting"], unit)
        gradient = terms.summed(made, self.scores, self.dtype, ROWS, terms.matrices(phi))[0] / (len(traj) // unit)
        batch = read(traj, self.need)
        row = {"epoch": epoch, "steps": self.spent, "episodes": len(traj), **_returns(traj), **_critic_error(batch)}
        row["gradient_norm"] = self._checked_norm(gradient, epoch)
        if self.phi.fits:  # before θ moves
            self._fit(batch)
        self.values.update(traj, batch.reward_to_go)
        self._ascend(gradient)
        return row

    def _checked_norm(self, gradient: Tensor, epoch: int) -> float:
        norm = float(gradient.norm())
        if not np.isfinite(norm):
            raise checks.InputError(
                f"A finite gradient was expected on {self.env.name}, but {self.phi.label} gave NaN or infinity in epoch {epoch}; "
                f"lower lr={self.options['lr']:g}, or look at the values there."
            )
        return norm

    def _ascend(self, gradient: Tensor) -> None:
        for p, g in zip(self.theta, gradient.split([p.numel() for p in self.theta]), strict=True):
            p.grad = g.view_as(p).to(p.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not all(bool(torch.isfinite(p).all()) for p in self.theta):
            raise checks.InputError(
                f"A finite θ was expected on {self.env.name}, but a step along a gradient of norm {float(gradient.norm()):.3g} "
                f"overflowed; lower lr={self.options['lr']:g}."
            )


def _returns(traj: Trajectories) -> dict[str, float]:
    """Return mean, standard error and length of the episodes that were not cut short; a cut one does not show its return."""
    # The episode that a quota cuts is longer than others on average: the mean over the rest leans to short episodes, by about
    # one episode's weight in the batch.
    whole = ~batches.cut_short(traj)
    total = traj.reward.new_zeros(len(traj)).index_add(0, traj.episode, traj.reward)[whole].cpu().numpy()
    n = len(total)
    return {
        "mean_return": float(total.mean()) if n else float("nan"),
        "standard_error": float(total.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        "mean_length": float(traj.length[whole].double().mean()) if n else float("nan"),
    }


def _critic_error(batch: Batch) -> dict[str, float]:
    """Squared error and explained variance of V, or of Q where V was not read, against the reward-to-go."""
    read = batch.values.v if batch.values.v is not None else batch.values.q
    if read is None:
        return {"critic_loss": float("nan"), "explained_variance": float("nan")}
    residual = read - batch.reward_to_go
    explained = values_critic.explained_variance(residual, batch.reward_to_go)
    return {"critic_loss": float(residual.square().mean()), "explained_variance": explained}


def _notes(planned: TrainingPlan) -> tuple[str, ...]:
    """Sentences that a reader of the curve should know."""
    told = []
    if planned.options["steps"] is not None:
        told.append(
            f"Every batch is a quota of {planned.options['steps']} steps whose last episode is cut "
            f"(at_cut={planned.options['at_cut']}): the mean over its episodes is a biased estimator of the gradient, whatever Φ "
            "claims."
        )
    if planned.phi.unbiased == "biased":
        told.append(f"{planned.phi.label} is a biased estimator of the gradient.")
    return tuple(told)
