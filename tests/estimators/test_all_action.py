"""all_action: loops over π itself, closed forms for Gaussian actions, exact moments by enumeration, and a whole measurement."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from finite_worlds import enumerate_paths
from row_gradients import HORIZON, assembled, close, each, finite, gradients, per_trajectory, sample
from torch import nn
from torch.distributions import Beta, Independent, LogNormal

import varlab
from varlab import envs, estimators, plans, policies, preparation
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.estimators import AT_CUT, make
from varlab.estimators.nodes import gauss_hermite, with_nodes
from varlab.types import Values
from varlab.values import CriticSettings, ExactValues, FunctionValues
from varlab.values.linear_quadratic import QuadraticValues

POLICIES = ("softmax_table", "mlp", "twice", "masked")
WEIGHTINGS = ((1.0, True), (0.8, True), (0.8, False))


def wrong_values():
    draw = torch.Generator().manual_seed(3)
    v = torch.randn(HORIZON + 1, 3, generator=draw, dtype=torch.float64)
    q = torch.randn(HORIZON, 3, 3, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


def step_weight(traj, gamma, weighting):
    return gamma ** traj.time.double() if weighting else torch.ones_like(traj.reward)


# ---- Discrete actions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", (None, 3))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("kind", POLICIES)
def test_it_is_the_sum_over_actions_of_the_gradient_of_pi(kind, gamma, weighting, cut):
    """Σ_t w_t Σ_a ∇π(a | s_t) Q_t(s_t, a) by loops and differentiation of π, not of log π."""
    env, policy = finite(kind)
    traj, source = sample(env, policy, 10, cut), wrong_values()
    assert len(set(traj.length.tolist())) > 2 or cut
    rows = []
    for i in range(len(traj)):
        total = 0.0
        for t, s in enumerate(traj.state[int(traj.offsets[i]) : int(traj.offsets[i + 1])]):
            pi = policy(s[None]).probs[0]
            w = gamma**t if weighting else 1.0
            total = total + w * sum(pi[a] * source.q(s, torch.tensor(a), torch.tensor(t)) for a in range(3))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()))]))
    close(gradients(policy, ["all_action"], traj, source, gamma, weighting)[:, 0], torch.stack(rows))


def test_the_action_taken_the_reward_and_the_rule_at_a_cut_do_not_enter():
    env, policy = finite("softmax_table")
    traj = sample(env, policy, 20, 3)
    g = gradients(policy, ["all_action"], traj, wrong_values())
    changed = replace(traj, action=(traj.action + 1) % 3, reward=traj.reward + 7)
    assert torch.equal(g, gradients(policy, ["all_action"], changed, wrong_values()))
    for rule in AT_CUT:
        assert torch.equal(g, gradients(policy, ["all_action"], traj, wrong_values(), at_cut=rule))


@dataclass(frozen=True)
class Wrong(estimators.REGISTRY["all_action"]):
    """All actions with one mistake."""

    how: str = ""

    def node_phi(self, batch):
        q, traj = batch.values.q_nodes, batch.traj
        if self.how == "action after":
            return q.roll(1, 1)
        if self.how == "step after":
            return torch.cat([q[1:], q[:1]])
        return q / traj.nodes.weight  # π left out of the sum


@functools.cache
def enumerated(cut):
    """Every path of the small world."""
    env, _ = finite("mlp", actions=2, horizon=4)
    return enumerate_paths(env.finite, 4, cut)


def moments(kind, estimator, source=None, gamma=1.0, weighting=True, cut=None):
    """E g and diag Cov g over every path of the small world, and what the oracle says of all_action."""
    env, policy = finite(kind, actions=2, horizon=4)
    paths = enumerated(cut)
    with torch.no_grad():
        step = policy(paths.traj.obs).log_prob(paths.traj.action)
    p = paths.world * torch.zeros(len(paths.traj), dtype=torch.float64).index_add(0, paths.traj.episode, step).exp()
    assert abs(float(p.sum()) - 1) < 1e-12
    exact = ExactValues.of(env.finite, policy, gamma, 4)
    g = each(policy, assembled(policy, [estimator], paths.traj, source or exact, gamma, weighting), 4096)[:, 0]
    mean = p @ g
    settings = {"gamma": gamma, "discount_weighting": weighting, "cut": cut, "values": source or "exact"}
    return mean, (p @ (g - mean).square()).numpy(), varlab.exact(env, policy, "all_action", **settings)


@pytest.mark.parametrize("how", ("right", "action after", "step after", "no π"))
@pytest.mark.parametrize("gamma", (1.0, 0.8))
def test_its_mean_is_the_gradient_and_a_mistake_shows(gamma, how):
    mean, variance, truth = moments("mlp", make("all_action") if how == "right" else Wrong(how=how), gamma=gamma)
    off = float((mean - torch.from_numpy(truth.gradient)).norm()) / np.linalg.norm(truth.gradient)
    assert off < 1e-12 if how == "right" else off > 0.02
    assert how != "right" or np.abs(variance - truth.variance_per_parameter[0]).max() < 1e-13


@pytest.mark.parametrize("wrong", (False, True), ids=("exact values", "wrong values"))
@pytest.mark.parametrize("cut", (None, 2))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("kind", ("softmax_table", "mlp", "masked"))
def test_the_oracle_gives_mean_and_variance_of_what_is_measured(kind, gamma, weighting, cut, wrong):
    source = FunctionValues(v=lambda s, t: 1.0 * s, q=lambda s, a, t: torch.cos(3.0 * s + 2 * a + t)) if wrong else None
    mean, variance, truth = moments(kind, make("all_action"), source, gamma, weighting, cut)
    close(mean, torch.from_numpy(truth.mean[0]), 1e-12)
    np.testing.assert_allclose(variance, truth.variance_per_parameter[0], rtol=1e-10, atol=1e-14)
    assert truth.variance[0] > 1e-4


# ---- Gaussian actions -----------------------------------------------------------------------------------------------------


def linear_system():
    env = lqg.random_system(4, seed=1, state_dim=3, action_dim=2)
    policy = policies.prepare(policies.make("linear", env, theta_seed=1), torch.float64, torch.device("cpu"))
    with torch.no_grad():
        policy.log_std.value.copy_(torch.tensor([-0.4, 0.3]))
    return env, policy


@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("nodes", (3, 5))
def test_on_a_linear_system_three_nodes_are_exact(nodes, gamma, weighting):
    """E_a Q_t(s, a) of a quadratic Q is Q_t(s, μ) + Σ_d N_dd σ_d²; its derivative with respect to θ, step by step."""
    env, policy = linear_system()
    source = QuadraticValues.of(env, policy, gamma)
    traj = sample(env, policy, 12, cut=3)
    d = policy(traj.obs).base_dist
    curvature = source.q_hessian[traj.time][:, 3:, 3:].diagonal(dim1=1, dim2=2)
    mean_q = source.q(traj.obs, d.loc, traj.time) + (curvature * d.scale**2).sum(1)
    expected = per_trajectory(traj, step_weight(traj, gamma, weighting) * mean_q, list(policy.parameters()))
    close(gradients(policy, [f"all_action({nodes})"], traj, source, gamma, weighting)[:, 0], expected, 1e-10)


def test_two_nodes_would_lose_the_score_of_log_sigma():
    points, weights = gauss_hermite(2, 2)
    assert float((weights[:, None] * (points**2 - 1) * points**2).abs().max()) < 1e-15  # E is 2
    points, weights = gauss_hermite(3, 2)
    close(weights @ ((points**2 - 1) * points**2), torch.full((2,), 2.0, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize("independent", (True, False))
def test_nodes_converge_where_q_is_no_polynomial(independent):
    """Q = cos(u·a + c·s) has E_a Q = cos(u·μ + c·s) exp(−Σ u_d² σ_d²/2); the error falls fast with m."""
    env, policy = linear_system()
    if not independent:  # a Normal whose log_prob is not summed over dimensions
        linear, policy = policy, nn.Module()
        policy.linear = linear
        policy.forward = lambda obs: linear(obs).base_dist
    u, c = torch.tensor([0.9, -0.7], dtype=torch.float64), torch.tensor([0.4, -0.2, 0.3], dtype=torch.float64)
    source = FunctionValues(v=lambda s, t: 0.0 * t, q=lambda s, a, t: torch.cos(a @ u + s @ c))
    traj = sample(env, policy, 10)
    d = policy(traj.obs)
    d = d.base_dist if independent else d
    mean_q = torch.cos(d.loc @ u + traj.obs @ c) * torch.exp(-(u**2 * d.scale**2).sum(1) / 2)
    expected = per_trajectory(traj, mean_q, list(policy.parameters()))
    found = gradients(policy, [f"all_action({m})" for m in (3, 5, 8, 12)], traj, source)
    off = [float((found[:, k] - expected).norm() / expected.norm()) for k in range(4)]
    assert off[0] > 3 * off[1] > 9 * off[2] and off[3] < 1e-8, off


def test_gauss_hermite_is_a_product_rule():
    points, weights = gauss_hermite(4, 3)
    assert points.shape == (64, 3) and weights.shape == (64,) and len(points.unique(dim=0)) == 64
    moments = weights @ (points[:, 0] ** 6 * points[:, 1] ** 4 * points[:, 2] ** 2)
    assert float(moments) == pytest.approx(15 * 3 * 1, rel=1e-12) and float(weights.sum()) == pytest.approx(1, rel=1e-14)
    assert gauss_hermite(5, 1)[0].shape == (5, 1)


# ---- A measurement --------------------------------------------------------------------------------------------------------

SMALL = {"dtype": "float64", "pilot": 60, "critic": CriticSettings(n=40, hidden=(4,), epochs=1)}
OTHERS = ("total_return", "value_baseline", "q_value")


def test_a_measurement_holds_its_exact_variance_and_no_bias():
    env, policy = finite("mlp")
    made = varlab.measure(env, policy, ["total_return", "q_value", "all_action"], n=4000, gamma=0.9, **SMALL)
    row = made.summary.set_index("phi").loc["all_action"]
    assert row.exact_variance == varlab.exact(env, policy, "all_action", gamma=0.9).variance[0]
    assert row.variance_low < row.exact_variance < row.variance_high < made.summary.variance[1]
    assert row.exact_bias_sq < 1e-25 and row.bias_p_value > 0.01 and row.values_source == "exact"


@pytest.mark.parametrize("settings", ({"gamma": 0.9}, {"cut": 3, "at_cut": "bootstrap"}, {"values": "critic"}), ids=str)
def test_rows_beside_it_are_the_rows_without_it(settings):
    env, policy = finite("mlp")
    settings = {"n": 150, **SMALL, **settings, "reference": "sampled", "n_reference": 150}
    alone, beside = (varlab.measure(env, policy, phi, **settings) for phi in (OTHERS, (*OTHERS[:2], "all_action", OTHERS[2])))
    keep = [0, 1, 3]
    np.testing.assert_allclose(beside.moments.mean[:, keep], alone.moments.mean, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(beside.moments.m2[:, keep], alone.moments.m2, rtol=1e-9, atol=1e-13)
    ((name, reference),) = alone.references.items()
    assert np.array_equal(beside.references[name].grad, reference.grad)


@pytest.mark.parametrize("kind", ("mlp", "twice"))
def test_pieces_and_chunks_change_nothing(kind, monkeypatch):
    env, policy = finite(kind)
    phi = ("total_return", "all_action", "q_value")
    settings = {"n": 200, "gamma": 0.9, **SMALL, "part_size": 150}
    whole = varlab.measure(env, policy, phi, **settings)
    monkeypatch.setattr(preparation, "ROWS_AT_ONCE", 12)
    cut_up = varlab.measure(env, policy, phi, chunk=4, **settings)
    for name in ("mean", "m2", "cross", "m4"):
        np.testing.assert_allclose(getattr(cut_up.moments, name), getattr(whole.moments, name), rtol=1e-9, atol=1e-13)
    frame, other = whole.trajectories, cut_up.trajectories
    np.testing.assert_allclose(frame["norm_sq[all_action]"], other["norm_sq[all_action]"], rtol=1e-5)
    assert frame["length"].equals(other["length"])


def test_the_pilot_of_a_job_in_pieces_is_that_of_the_whole(monkeypatch):
    """Centres, variances and the variance that sizes the reference, which are appended to the choices piece by piece."""
    env, policy = finite("mlp")
    settings = {"n": 100, "gamma": 0.9, "reference": "sampled", "objectives": ("J_1", "J_gamma"), **SMALL}

    def pilot(phi):
        return preparation.Preparation(plans.plan(env, policy, phi, **settings)).pilot()

    whole, without = pilot(("all_action", "total_return")), pilot("total_return")
    monkeypatch.setattr(preparation, "ROWS_AT_ONCE", 12)
    cut_up = pilot(("all_action", "total_return"))
    close(cut_up.center, whole.center)
    close(cut_up.variance, whole.variance)
    close(whole.variance[1:], without.variance)
    assert float(whole.variance.min()) > 1e-3 and float(whole.center.norm(dim=1).min()) > 1e-3
    for name, variance in without.reference_variance.items():
        assert whole.reference_variance[name] == pytest.approx(variance, rel=1e-10)
        assert cut_up.reference_variance[name] == pytest.approx(variance, rel=1e-10)


def test_gaussian_actions_with_a_critic_and_two_rules_in_one_job():
    env = envs.make("Pendulum-v1", horizon=4)
    policy = policies.make("mlp", env, hidden=(4,))
    made = varlab.measure(env, policy, ["q_value", "all_action", "all_action(nodes=9)"], n=100, n_reference=100, **SMALL)
    q, five, nine = made.summary.variance
    assert five == pytest.approx(nine, rel=1e-3) and five != nine and five < q
    assert made.summary.exact_variance.isna().all()


# ---- What cannot be done --------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Actions in ℝ³ from a distribution of some kind."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Linear(3, 3), kind

    def forward(self, obs):
        x = self.net(obs)
        return Independent(Beta(x.exp(), x.exp()) if self.kind == "Beta" else LogNormal(0.1 * x, 0.1), 1)


@pytest.mark.parametrize("kind", ("Beta", "LogNormal"))
def test_other_continuous_distributions_are_one_sentence(kind):
    env = lqg.random_system(2, seed=1, state_dim=3, action_dim=3)
    policy = policies.prepare(Heads(kind), torch.float64, torch.device("cpu"))
    with pytest.raises(
        InputError, match=rf"categorical or diagonal Gaussian policy was expected on random LQG.*{kind}"
    ) as caught:
        varlab.measure(env, policy, "all_action", n=50, **{**SMALL, "critic": CriticSettings(n=2, epochs=1)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "nodes", "mend"), [(3, 11, "set nodes=10"), (5, 5, "set nodes=4"), (7, 3, "reads only the actions taken")]
)
def test_too_many_nodes_are_one_sentence(dims, nodes, mend):
    env = lqg.random_system(4, seed=1, action_dim=dims)
    with pytest.raises(
        InputError, match=rf"At most 1024 nodes .*all_action.*{dims} action dimensions.*make {nodes**dims}; .*{mend}"
    ):
        varlab.measure(env, policies.make("linear", env), make("all_action", nodes=nodes), n=50)


def test_a_source_without_values_at_nodes_is_one_sentence():
    env, policy = finite("mlp")
    with pytest.raises(InputError, match="Values q_nodes .* were expected for all_action, but the source mine gives none"):
        varlab.measure(env, policy, "all_action", n=50, values=lambda traj, need: Values(q=traj.reward, source="mine"))


def test_psi_of_a_wrong_shape_is_one_sentence():
    @dataclass(frozen=True)
    class Flat(estimators.NodeEstimator):
        name, formula, source = "flat", "-", "-"

        def phi(self, batch):
            return torch.zeros_like(batch.traj.reward)

        def node_phi(self, batch):
            return batch.traj.reward

    env, policy = finite("mlp")
    with pytest.raises(InputError, match=r"One ψ_tj for each of the \d+ steps and 3 nodes was expected from flat"):
        gradients(policy, [Flat()], sample(env, policy, 5), None, at_cut="terminal")


def test_nodes_move_with_their_trajectories_and_are_left_behind_where_some_are_joined():
    env, policy = finite("mlp")
    traj = with_nodes(policy, sample(env, policy, 5), 5)
    assert traj.nodes.action.shape == traj.nodes.weight.shape == (traj.steps, 3)
    close(traj.nodes.weight.sum(1), torch.ones(traj.steps, dtype=torch.float64))
    assert traj.to("meta").nodes.weight.device.type == "meta"
    assert type(traj).join([traj, traj]).nodes is None
    assert torch.equal(traj.nodes.weight, policy(traj.obs).probs.detach())
