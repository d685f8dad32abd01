"""One step of θ against plain loops: ascent, Adam, what Φ fits from the batch before, normalisation, every registered Φ."""

from dataclasses import dataclass, field, replace

import hand
import numpy as np
import pytest
import torch
from torch import nn

from varlab import envs, estimators, policies
from varlab.estimators import Estimator
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.training import train
from varlab.training.batches import by_steps

EXACT = {"rtol": 0, "atol": 1e-10}


def run(env, policy, phi, **settings):
    return train(env, policy, phi, **{"episodes": 30, "dtype": "float64", **settings})


@pytest.mark.parametrize(("phi", "weights"), [("total_return", hand.total_return), ("reward_to_go", hand.reward_to_go)])
def test_one_epoch_of_ascent_is_one_step_along_the_mean_gradient(phi, weights):
    env, policy = hand.world()
    start = hand.table(policy.state_dict()).clone()
    made = run(env, policy, phi, epochs=1, optimizer="ascent", lr=0.7)
    g = hand.gradient(start, hand.batch(env, start, 0, 30), weights)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), start + 0.7 * g, **EXACT)
    assert made.curve["gradient_norm"][0] == pytest.approx(float(g.norm()), rel=1e-10)
    assert float(g.norm()) > 0.1  # the step is far larger than the tolerance
    assert torch.equal(hand.table(policy.state_dict()), start)  # the caller's policy is left alone


def test_discounts_and_step_weights_reach_the_gradient():
    env, policy = hand.world()
    start, gamma = hand.table(policy.state_dict()), 0.8
    for weighting in (True, False):
        made = run(env, policy, "reward_to_go", epochs=1, optimizer="ascent", lr=1.0, gamma=gamma, discount_weighting=weighting)

        def phi(i, t, rewards, weighting=weighting):
            to_go = sum(gamma ** (u - t) * r for u, r in enumerate(rewards) if u >= t)
            return to_go * (gamma**t if weighting else 1)

        expected = start + hand.gradient(start, hand.batch(env, start, 0, 30), phi)
        torch.testing.assert_close(hand.table(made.checkpoints["late"]), expected, **EXACT)


def test_adam_is_torchs_adam_on_that_gradient():
    """Three epochs, so that the moments carry over."""
    env, policy = hand.world()
    made = run(env, policy, "reward_to_go", epochs=3, optimizer="adam", lr=0.05)
    theta = nn.Parameter(hand.table(policy.state_dict()).clone())
    adam = torch.optim.Adam([theta], lr=0.05)
    for epoch in range(3):
        theta.grad = -hand.gradient(theta.detach(), hand.batch(env, theta.detach(), epoch, 30), hand.reward_to_go)
        adam.step()
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), theta.detach(), **EXACT)


def test_a_fitted_baseline_comes_from_the_batch_before():
    env, policy = hand.world()
    made = run(env, policy, "constant_baseline", epochs=2, optimizer="ascent", lr=0.5)
    theta = hand.table(policy.state_dict()).clone()
    before = hand.batch(env, theta, 0, 30, stream="train_first")
    steps = before.steps
    for epoch in range(2):
        to_go = [hand.reward_to_go(0, t, r) for _, _, r in hand.episodes(before) for t in range(len(r))]
        b = sum(to_go) / len(to_go)
        before = hand.batch(env, theta, epoch, 30)
        steps += before.steps
        theta = theta + 0.5 * hand.gradient(theta, before, lambda i, t, r, b=b: hand.reward_to_go(i, t, r) - b)
        assert made.curve["steps"][epoch] == steps
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), theta, **EXACT)
    assert made.steps == {"train": steps - made.steps["train_first"], "train_first": made.steps["train_first"]}


def test_normalisation_is_off_by_default_and_standardises_over_the_steps_of_the_batch():
    env, policy = hand.world()
    start, settings = hand.table(policy.state_dict()), {"epochs": 1, "optimizer": "ascent", "lr": 1.0}
    plain, off, on = (
        run(env, policy, "reward_to_go", **settings, **more) for more in ({}, {"normalise": False}, {"normalise": True})
    )
    assert plain.digest == off.digest != on.digest
    traj = hand.batch(env, start, 0, 30)
    flat = np.array([hand.reward_to_go(0, t, r) for _, _, r in hand.episodes(traj) for t in range(len(r))])
    for made, mean, scale in ((plain, 0.0, 1.0), (on, flat.mean(), flat.std() + 1e-8)):

        def phi(i, t, rewards, mean=mean, scale=scale):
            return (hand.reward_to_go(i, t, rewards) - mean) / scale

        expected = start + hand.gradient(start, traj, phi)
        torch.testing.assert_close(hand.table(made.checkpoints["late"]), expected, **EXACT)
    assert on.curve["phi"][0] == "standardised(reward_to_go)" and any("biased" in note for note in on.notes) and not plain.notes


def test_normalisation_comes_before_the_step_weight():
    """w_t multiplies the standardised Φ; a mean over weighted Φ would be another estimator."""
    env, policy = hand.world()
    start, gamma = hand.table(policy.state_dict()), 0.6
    made = run(env, policy, "reward_to_go", epochs=1, optimizer="ascent", lr=1.0, gamma=gamma, normalise=True)
    traj = hand.batch(env, start, 0, 30)

    def to_go(i, t, rewards):
        return sum(gamma ** (u - t) * r for u, r in enumerate(rewards) if u >= t)

    flat = np.array([to_go(0, t, r) for _, _, r in hand.episodes(traj) for t in range(len(r))])
    g = hand.gradient(start, traj, lambda i, t, r: gamma**t * (to_go(i, t, r) - flat.mean()) / (flat.std() + 1e-8))
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), start + g, **EXACT)


@pytest.mark.parametrize("phi", [*sorted(estimators.REGISTRY), *estimators.SOURCE_TEXT[-2:]])
def test_every_registered_phi_trains(phi):
    env, policy = hand.world()
    if phi == "q_prop":  # it expands Q about the mean action
        env = envs.make("varlab/PointMass-v0", horizon=4)
        policy = policies.make("linear", env)
    groups = {"group_size": 5} if phi == "james_stein" else {}  # several groups in a batch
    for values in ("exact", "critic"):
        made = run(env, policy, phi, epochs=2, values=values, optimizer="ascent", lr=0.01, **groups)
        init, late = (torch.cat([x.flatten() for x in made.checkpoints[name].values()]) for name in ("init", "late"))
        assert bool(torch.isfinite(late).all()) and float((late - init).norm()) > 1e-6
        assert made.curve["gradient_norm"].gt(0).all()


def test_normalised_gae_is_the_normalised_advantage_of_the_catalogue():
    env, policy = hand.world()
    settings = {"epochs": 2, "values": "exact", "optimizer": "ascent", "lr": 0.3, "gamma": 0.9}
    switch, member = (
        run(env, policy, "gae(lam=0.9)", normalise=True, **settings),
        run(env, policy, "normalised_advantage(lam=0.9)", **settings),
    )
    torch.testing.assert_close(hand.table(switch.checkpoints["late"]), hand.table(member.checkpoints["late"]), **EXACT)


class Bare(nn.Module):
    """A softmax table whose parameter no module holds: its scores come from torch.func."""

    def __init__(self, logits):
        super().__init__()
        self.theta = nn.Parameter(logits.clone())

    def forward(self, obs):
        return policies.base.categorical(self.theta[obs])


def test_scores_of_both_kinds_follow_theta():
    """Three epochs: a score map that kept θ_0 would leave the other's path."""
    env, policy = hand.world()
    settings = {"epochs": 3, "optimizer": "ascent", "lr": 0.5}
    factored = run(env, policy, "reward_to_go", **settings)
    functional = run(env, Bare(hand.table(policy.state_dict())), "reward_to_go", **settings)
    torch.testing.assert_close(functional.checkpoints["late"]["theta"], hand.table(factored.checkpoints["late"]), **EXACT)


def test_float32_stays_near_float64():
    env, policy = hand.world()
    settings = {"epochs": 1, "optimizer": "ascent", "lr": 0.5}
    single, double = (run(env, policy.float(), "reward_to_go", dtype=d, **settings) for d in ("float32", "float64"))
    assert hand.table(single.checkpoints["late"]).dtype == torch.float32
    torch.testing.assert_close(
        hand.table(single.checkpoints["late"]).double(), hand.table(double.checkpoints["late"]), rtol=0, atol=1e-5
    )


@dataclass(frozen=True)
class MeanOfOthers(Estimator):
    """R_i less the mean return of the other trajectories of its group."""

    name = "mean_of_others"
    batchwise = True
    weighted = False

    def phi(self, batch):
        total = batch.reward_to_go[batch.traj.offsets[:-1]].view(-1, batch.group)
        others = (total.sum(1, keepdim=True) - total) / (batch.group - 1)
        return (total - others).flatten()[batch.traj.episode]


@pytest.mark.parametrize(("group_size", "shared"), [(None, True), (5, False), (5, True)])
def test_a_batch_is_the_unit_of_estimators_of_groups(group_size, shared):
    env, policy = hand.world()
    start = hand.table(policy.state_dict())
    settings = {"epochs": 1, "optimizer": "ascent", "lr": 0.5, "group_size": group_size, "shared_start": shared}
    made = run(env, policy, MeanOfOthers(), **settings)
    group = group_size if group_size and shared else 1
    traj = rollout(env, policy, 30, Streams(0).sequence("train", 0, 0), group=group)
    starts = traj.obs[traj.offsets[:-1]].view(-1, group_size or 30)
    assert bool((starts == starts[:, :1]).all()) is (group > 1)
    returns = [sum(r) for _, _, r in hand.episodes(traj)]
    size = group_size or 30

    def phi(i, t, rewards):
        others = [returns[j] for j in range(i // size * size, (i // size + 1) * size) if j != i]
        return returns[i] - sum(others) / len(others)

    expected = start + 0.5 * hand.gradient(start, traj, phi)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), expected, **EXACT)


def test_a_quota_is_one_unit_too():
    env, policy = hand.world()
    start = hand.table(policy.state_dict())
    made = train(env, policy, MeanOfOthers(), steps=25, epochs=1, optimizer="ascent", lr=0.5, at_cut="terminal", dtype="float64")
    traj = by_steps(env, policy, Streams(0), torch.device("cpu"), 25)("train", 0)
    returns = [sum(r) for _, _, r in hand.episodes(traj)]

    def phi(i, t, rewards):
        return returns[i] - (sum(returns) - returns[i]) / (len(returns) - 1)

    expected = start + 0.5 * hand.gradient(start, traj, phi)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), expected, **EXACT)


@dataclass(frozen=True)
class Bound(Estimator):
    """A reward-to-go times a matrix that depends on θ, and a second sum of scores with coefficients that are fitted."""

    name = "bound"
    fits = True
    theta: torch.Tensor | None = field(default=None, repr=False)
    fitted: torch.Tensor | None = field(default=None, repr=False)

    @property
    def matrix(self):
        return torch.diag(self.theta.flatten().exp())

    @property
    def coefficients(self):
        return self.fitted

    def bind(self, env, policy):
        return replace(self, theta=policy.logits.weight.detach().clone())

    def fit(self, batch):
        assert batch.policy is not None and batch.scores is not None and batch.env is not None
        return replace(self, fitted=batch.reward_to_go.mean() * torch.arange(6.0, dtype=torch.float64))

    def companion(self, batch):
        return batch.reward_to_go + 1.0

    def phi(self, batch):
        return batch.reward_to_go


def test_matrices_and_further_sums_follow_theta():
    env, policy = hand.world()
    made = run(env, policy, Bound(), epochs=2, optimizer="ascent", lr=0.1)
    theta, before = hand.table(policy.state_dict()).clone(), None
    for epoch in range(2):
        before = before or hand.batch(env, theta, 0, 30, stream="train_first")
        to_go = [hand.reward_to_go(0, t, r) for _, _, r in hand.episodes(before) for t in range(len(r))]
        c = (sum(to_go) / len(to_go) * torch.arange(6.0, dtype=torch.float64)).view(3, 2)
        before = hand.batch(env, theta, epoch, 30)
        second = hand.gradient(theta, before, lambda i, t, r: hand.reward_to_go(i, t, r) + 1)
        theta = theta + 0.1 * theta.exp() * (hand.gradient(theta, before, hand.reward_to_go) + c * second)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), theta, **EXACT)
