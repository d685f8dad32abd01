"""factorised_baseline: each dimension's score with a baseline of its own; closed forms on the Gaussian bandit."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from row_gradients import close, gradients, per_trajectory, sample
from tiny_gaussian import gaussian
from torch.distributions import Normal

import varlab
from varlab import envs, plans, policies, preparation
from varlab.envs import lqg
from varlab.envs.closed_form import gaussian_bandit, gaussian_bandit_variance
from varlab.estimators import REGISTRY, Batch, make, parse
from varlab.estimators.nodes import gauss_hermite, with_nodes
from varlab.types import Values
from varlab.values import CriticSettings, FunctionValues

FORMS = ("mean", "optimal")
WEIGHTINGS = ((1.0, True), (0.8, True), (0.8, False))
WIGGLY = FunctionValues(
    v=lambda s, t: 0.0 * t,
    q=lambda s, a, t: torch.cos(2 * a[..., 0] - a[..., 1] + s.sum(-1)) * (1 + t) + a[..., 0] * a[..., 1] ** 2,
)


def in_double(policy):
    return policies.prepare(policy, torch.float64, torch.device("cpu"))


def system(kind="mlp", dims=3):
    env = lqg.random_system(4, seed=1, state_dim=3, action_dim=dims)
    return env, in_double(policies.make(kind, env, theta_seed=1, hidden=(4,)))


@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("kind", ("linear", "mlp"))
@pytest.mark.parametrize("of", FORMS)
def test_it_is_a_sum_over_dimensions_of_their_own_scores(of, kind, gamma, weighting):
    """Σ_t w_t Σ_d ∇ log π_d(a_td | s_t) (G_t − b_d) by differentiation, with b_d by a loop over one dimension's nodes."""
    env, policy = system(kind)
    traj = sample(env, policy, 6)
    x, p = (y.numpy() for y in gauss_hermite(4, 1))
    d = policy(traj.obs).base_dist
    x = x[:, 0]
    left = torch.zeros(traj.steps, 3, dtype=torch.float64)
    for row in range(traj.steps):
        t, end = int(traj.time[row]), int(traj.offsets[traj.episode[row] + 1])
        reward_to_go = sum(gamma ** (k - row) * float(traj.reward[k]) for k in range(row, end))
        for dim in range(3):
            b = total = 0.0
            for node, weight in zip(x, p, strict=True):
                a = traj.action[row].clone()
                a[dim] = float(d.loc[row, dim].detach()) + float(d.scale[row, dim].detach()) * node
                tilt = weight * (node**2 if of == "optimal" else 1.0)
                b += tilt * float(WIGGLY.q(traj.obs[row][None], a[None], torch.tensor([t])))
                total += tilt
            left[row, dim] = (gamma**t if weighting else 1.0) * (reward_to_go - b / total)
    expected = per_trajectory(traj, (d.log_prob(traj.action) * left).sum(1), list(policy.parameters()))
    close(gradients(policy, [make("factorised_baseline", of=of, nodes=4)], traj, WIGGLY, gamma, weighting)[:, 0], expected, 1e-11)


@pytest.mark.parametrize("nodes", (3, 5))
@pytest.mark.parametrize("gamma", (1.0, 0.8))
@pytest.mark.parametrize("of", FORMS)
def test_it_leaves_the_mean_alone_whatever_q_is(of, gamma, nodes):
    world = gaussian()
    grad = world.policy_gradient(gamma)
    for source in (FunctionValues(*world.action_values(world, gamma)), WIGGLY):
        e = make("factorised_baseline", of=of, nodes=nodes)
        mean = world.mean(gradients(world.policy, [e], world.traj, source, gamma)[:, 0])
        assert float((mean - grad).norm() / grad.norm()) < 1e-13


@dataclass(frozen=True)
class Leaking(REGISTRY["factorised_baseline"]):
    """A baseline that sees a twentieth of its own dimension's action."""

    def baselines(self, batch):
        return super().baselines(batch) + 0.05 * (batch.traj.action - batch.traj.nodes.mean)


def test_a_baseline_that_sees_its_own_dimension_shows():
    """3 % of ‖∇J‖."""
    world = gaussian()
    grad = world.policy_gradient(1.0)
    mean = world.mean(gradients(world.policy, [Leaking()], world.traj, WIGGLY, 1.0)[:, 0])
    assert 0.01 < float((mean - grad).norm() / grad.norm()) < 0.1


def test_nodes_of_one_coordinate_move_that_coordinate_alone():
    env, policy = system()
    traj = with_nodes(policy, sample(env, policy, 3), 4, "coordinate")
    d, moved = policy(traj.obs).base_dist, traj.nodes.action.unflatten(1, (3, 4))
    points, weight = gauss_hermite(4, 1)
    assert traj.nodes.action.shape == (traj.steps, 12, 3) and traj.nodes.taken is None
    close(traj.nodes.weight, weight.repeat(3).expand(traj.steps, -1))
    for dim in range(3):
        for other in range(3):
            at = traj.action[:, other, None].expand(-1, 4)
            if other == dim:
                at = d.loc[:, dim, None] + d.scale[:, dim, None] * points[:, 0]
            close(moved[:, dim, :, other], at.double())


# ---- The Gaussian bandit --------------------------------------------------------------------------------------------------


def bandit(dims, std=0.7):
    """The policy N(0, s² I) with the mean as only parameter, and Q = −‖a‖²."""
    env = gaussian_bandit(dims)
    policy = policies.make("linear", env)
    for name, p in policy.named_parameters():
        p.requires_grad_(name == "net.bias")
        torch.nn.init.constant_(p, float(np.log(std)) if name == "log_std.value" else 0.0)
    source = FunctionValues(
        v=lambda s, t: -dims * std**2 + 0.0 * t, q=lambda s, a, t: -a.double().square().sum(-1), source="closed form"
    )
    return env, policy, source


@pytest.mark.parametrize("dims", (1, 10, 1000))
def test_on_the_bandit_every_coordinate_is_a_polynomial_of_its_own_action(dims):
    """g_d = (a_d/s²)(3 s² − a_d²), of variance 6 s² whatever m; with the mean as baseline (a_d/s²)(s² − a_d²), of 10 s²."""
    env, policy, source = bandit(dims)
    policy, var = in_double(policy), float(np.exp(2 * float(np.float32(np.log(0.7)))))
    traj = sample(env, policy, 3)
    a = traj.action
    for of, least, factor, expected in (("optimal", 3, 3, 6), ("mean", 3, 1, 10)):
        found = gradients(policy, [make("factorised_baseline", of=of, nodes=least)], traj, source)[:, 0]
        close(found, a / var * (factor * var - a**2), 1e-9)
        # E (a/s²)² (c s² − a²)² = s² (c² − 6 c + 15), and the mean, E g = (c − 3) E a, is 0.
        assert factor**2 - 6 * factor + 15 == expected
    assert gaussian_bandit_variance(dims, "factorised") == 6


@pytest.mark.parametrize("of", FORMS)
def test_on_one_dimension_the_variance_by_quadrature_is_the_closed_form(of):
    """One dimension leaves the baseline nothing to see: it is the best constant or the mean of Q."""
    _, policy, source = bandit(1)
    policy = in_double(policy)
    points, weight = gauss_hermite(6, 1)
    std = float(policy.log_std.value.exp())
    action = std * points
    traj = row_of_bandits(action)
    g = gradients(policy, [make("factorised_baseline", of=of)], traj, source)[:, 0, 0]
    assert float(weight @ g) == pytest.approx(0, abs=1e-13)
    known = gaussian_bandit_variance(1, "factorised" if of == "optimal" else "value", std)
    assert float(weight @ g**2) == pytest.approx(known, rel=1e-12)


def row_of_bandits(action):
    """One episode for each action."""
    env, policy, _ = bandit(action.shape[1])
    traj = sample(env, in_double(policy), len(action))
    return plans.Trajectories(
        obs=traj.obs, action=action, reward=-action.square().sum(1), offsets=traj.offsets, terminated=traj.terminated,
        truncated=traj.truncated, last_obs=traj.last_obs, horizon=1,
    )  # fmt: skip


@pytest.mark.parametrize(("dims", "n", "phi"), [(10, 4000, FORMS), (1000, 50, FORMS[1:])])
def test_measured_variances_hold_the_closed_form(dims, n, phi):
    env, policy, source = bandit(dims)
    names = [f"factorised_baseline(nodes=3, of={of!r})" for of in phi]
    made = varlab.measure(env, policy, [*names, "value_baseline"], n=n, pilot=10, values=source)
    rows = made.summary.set_index("phi")
    for of, name in zip(phi, names, strict=True):
        known = dims * gaussian_bandit_variance(dims, "factorised", 0.7) * {"optimal": 1, "mean": 10 / 6}[of]
        assert rows.variance_low[name] < known < rows.variance_high[name]
        assert rows.bias_p_value[name] > 0.01
        width = rows.variance_high[name] / rows.variance_low[name]
        assert width < 1.3, width
    value = rows.variance["value_baseline"] / (dims * gaussian_bandit_variance(dims, "value", 0.7))
    assert 0.5 < value < 2


def test_wide_actions_are_taken_few_at_a_time():
    env, policy, source = bandit(1000)
    settings = {"n": 50, "values": source, "pilot": 2, "dtype": "float64"}
    job = preparation.Preparation(plans.plan(env, policy, "factorised_baseline(nodes=3)", **settings))
    made = list(job.terms(sample(env, job.policy, 3)))
    assert [first for first, _ in made] == [0, 1, 2]
    for _, of_piece in made:
        assert of_piece[1].action.shape == (1, 3000, 1000) and of_piece[1].action.numel() < preparation.NUMBERS_AT_ONCE


def test_exact_values_of_a_linear_system_do_not_copy_a_matrix_for_each_row():
    """400 dimensions, 1200 nodes a step: matrices for each row would be 1.5 GB a step."""
    env, policy, source = bandit(400)
    settings = {"n": 50, "pilot": 2, "dtype": "float64"}
    job = preparation.Preparation(plans.plan(env, policy, "factorised_baseline(nodes=3)", **settings))
    traj = with_nodes(job.policy, sample(env, job.policy, 1), 3, "coordinate")
    assert job.source.source == "exact"
    close(job.source(traj, frozenset({"q_nodes"})).q_nodes, source(traj, frozenset({"q_nodes"})).q_nodes, 1e-10)


# ---- Discrete actions -----------------------------------------------------------------------------------------------------


def test_a_policy_that_always_takes_one_action_divides_by_nothing():
    env = envs.make("FrozenLake-v1", horizon=3)
    policy = in_double(policies.make("softmax_table", env))
    with torch.no_grad():
        policy.logits.weight[:, 2] = 2000.0
    traj = with_nodes(policy, sample(env, policy, 2), 5, "coordinate")
    q = torch.ones_like(traj.nodes.weight)
    for of in FORMS:
        phi = make("factorised_baseline", of=of).phi(Batch(traj, Values(q_nodes=q), 1.0))
        assert bool(torch.isfinite(phi).all())


def test_a_critic_serves_it_on_gaussian_actions():
    env = envs.make("Pendulum-v1", horizon=4)
    policy = policies.make("mlp", env, hidden=(4,))
    settings = {"dtype": "float64", "pilot": 60, "critic": CriticSettings(n=40, hidden=(4,), epochs=1)}
    phi = [*(f"factorised_baseline(of={of!r})" for of in FORMS), "value_baseline", *CRITICS]
    made = varlab.measure(env, policy, phi, n=100, n_reference=100, **settings)
    assert (made.summary.variance > 0).all() and made.summary.variance.nunique() == len(phi)
    assert set(made.summary.values_source) == {made.critic.source}


CRITICS = ("state_action_control_variate", "trajectory_control_variate", "q_prop", "q_prop(lam=0.9)")


def test_normal_heads_without_independent_are_the_same():
    env, policy = system("linear", 2)

    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = policy

        def forward(self, obs):
            d = policy(obs).base_dist
            return Normal(d.loc, d.scale)

    traj = sample(env, policy, 4)
    for phi in ("factorised_baseline", "q_prop", "trajectory_control_variate"):
        ours, theirs = (gradients(p, [parse(phi)], traj, WIGGLY) for p in (policy, Bare()))
        close(ours, theirs, 1e-11)
