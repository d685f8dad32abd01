"""Exact variance components: against every trajectory of tiny worlds, and their sum against the exact total."""

from dataclasses import dataclass, field

import exact_means
import finite_worlds
import numpy as np
import pytest
import tiny_world
import torch
from components_by_hand import by_hand, equal

import varlab
from varlab import envs, estimators, policies, values
from varlab.checks import InputError
from varlab.estimators import Batch, Estimator, weight
from varlab.estimators.recursion import Recursion
from varlab.oracles import components as room
from varlab.oracles.components import components

CHOICES = (
    "total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "q_value", "advantage",
    "td_residual", "n_step(k=1)", "n_step(k=2)", "n_step(k=3)", "n_step(k=7)", "gae(lam=0.6)", "gae(lam=1.0)",
)  # fmt: skip


@dataclass(frozen=True)
class CentredReturn(Estimator):
    """Φ_t = R_γ − b(s_0), with b given by a table."""

    b: torch.Tensor = field(repr=False, default=None)
    name = "centred_return"
    weighted = False
    formula = "R_γ − b(s_0)"
    source = "none"

    def phi(self, batch):
        first = batch.traj.offsets[:-1]
        return (batch.reward_to_go - self.b[batch.traj.state])[first][batch.traj.episode]

    def recursion(self, world):
        return Recursion(world.reward, world.gamma, subtract=lambda t: self.b.numpy(), total=True)


@pytest.mark.parametrize("kind", ["table", "mlp"])
@pytest.mark.parametrize(("gamma", "weighting"), [(1.0, True), (0.8, True), (0.8, False)])
def test_the_tiny_world_by_enumeration(kind, gamma, weighting):
    world = tiny_world.finite(kind)
    log_p = world.pi().log()[world.traj.state, world.traj.action]
    z = tiny_world.jacobian(log_p, world.theta)
    batch = exact_means.batch(world, gamma)
    b = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    for phi in (*CHOICES, CentredReturn(b), estimators.Baseline(lambda s, t: 0.5 * s - t, "line")):
        estimator = estimators.resolve(phi)[0]
        if estimator.fits:  # the same numbers on both sides
            estimator = estimator.fit(batch)
        ours = components(world.env, world.policy, estimator, gamma=gamma, discount_weighting=weighting)
        equal(ours, by_hand(world.traj, world.weight, z, weight(estimator, batch, weighting)))


@pytest.mark.parametrize("at_cut", estimators.AT_CUT)
def test_a_cut_and_wrong_values_by_enumeration(at_cut):
    mdp, horizon, cut = finite_worlds.random_mdp(3, ending=0.2), 5, 3
    env, logits = envs.environment(mdp, horizon), finite_worlds.random_logits(4, mdp)
    wrong = values.FunctionValues(lambda obs, t: 0.4 * obs - 0.3 * t + 1.0, lambda obs, t, a: 0.2 * obs * a - 0.1 * t)
    every = finite_worlds.enumerate_paths(mdp, horizon, cut)
    batch = Batch(every.traj, wrong(every.traj, frozenset("vq")), 0.9, at_cut)
    policy = policies.SoftmaxTable(env, logits)
    for phi in ("total_return", "reward_to_go", "q_value", "advantage", "td_residual", "n_step(k=2)", "gae(lam=0.7)"):
        ours = components(env, policy, phi, gamma=0.9, values=wrong, cut=cut, at_cut=at_cut)
        phi_t = weight(estimators.parse(phi), batch, True)
        equal(ours, by_hand(every.traj, every.probability(logits), every.scores(logits), phi_t))


@pytest.mark.parametrize("size", [1, 2**22])
def test_they_sum_to_the_exact_variance_on_frozenlake(monkeypatch, size):
    """Whatever the groups of starting times."""
    monkeypatch.setattr(room, "FIELD_SIZE", size)
    env = envs.make("FrozenLake-v1", horizon=30)
    policy = policies.make("softmax_table", env, theta_seed=1)
    for phi in ("total_return", "value_baseline", "n_step(k=5)", "gae(lam=0.95)"):
        total = varlab.exact(env, policy, phi, gamma=0.98).variance[0]
        ours = components(env, policy, phi, gamma=0.98)
        assert abs(ours.total / total - 1) < 1e-10
        assert ours.state.shape == (30,) and ours.cross.shape == (30, 30)
        assert min(ours.state.min(), ours.action.min(), ours.trajectory.min()) > -1e-15


def test_what_theory_says_of_the_parts():
    """A baseline moves the action part alone (with V it is smaller here), and Q has no trajectory part."""
    world = tiny_world.finite(shift=3.0)
    plain, centred, q, a = (
        components(world.env, world.policy, phi) for phi in ("reward_to_go", "value_baseline", "q_value", "advantage")
    )
    for other in (centred, q, a):
        np.testing.assert_allclose(other.state, plain.state, rtol=0, atol=1e-13)
    np.testing.assert_allclose(centred.trajectory, plain.trajectory, rtol=0, atol=1e-12)
    np.testing.assert_allclose(q.trajectory, 0.0, atol=1e-13)
    np.testing.assert_allclose(q.action, plain.action, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.action, centred.action, rtol=0, atol=1e-12)
    assert (centred.action < plain.action).all()


def test_the_steps_alone_are_not_the_variance():
    """What the field leaves out is more than a twentieth here, and takes either sign."""
    world = tiny_world.finite("mlp", shift=3.0)  # whose parameters serve all states and times
    whole = components(world.env, world.policy, "reward_to_go")
    assert whole.cross.sum() > 0.05 * whole.total
    signs = set()
    for seed in range(6):
        other = tiny_world.finite(theta_seed=seed)
        signs.add(np.sign(components(other.env, other.policy, "gae(lam=0.5)").cross.sum()))
    assert signs == {-1.0, 1.0}


def test_constant_return_shows_in_the_covariances():
    """r_0 = +1, r_1 = −1: R = 0 has no variance, while reward-to-go leaves its second step alone with 1/4 per parameter."""
    mdp = envs.FiniteMDP.from_lists([[[(1.0, 1, 1.0, False)]] * 2, [[(1.0, 1, -1.0, False)]] * 2], [1.0, 0.0])
    env = envs.environment(mdp, 2)
    policy = policies.SoftmaxTable(env)
    assert components(env, policy, "total_return").total == 0.0
    later = components(env, policy, "reward_to_go")
    np.testing.assert_allclose(later.action, [0.0, 0.5], atol=1e-15)
    assert later.state.sum() == later.trajectory.sum() == later.cross.sum() == 0.0


def test_bad_input_is_one_sentence():
    env = envs.make("CartPole-v1")
    with pytest.raises(InputError, match="A finite MDP was expected"):
        components(env, policies.make("mlp", env), "reward_to_go")
    world = tiny_world.finite()
    with pytest.raises(InputError, match="One Φ was expected"):
        components(world.env, world.policy, ["reward_to_go", "q_value"])
    with pytest.raises(InputError, match="Values q were expected"):
        only_v = values.FunctionValues(lambda obs, t: 0.0 * obs)
        components(world.env, world.policy, "q_value", values=only_v)

    class NoRecursion(estimators.REGISTRY["reward_to_go"]):
        def recursion(self, world):
            return None

    class Window(estimators.REGISTRY["reward_to_go"]):
        def recursion(self, world):
            return Recursion(world.reward, 1.0, window=2, total=True)

    for wrong, said in ((NoRecursion(), "has none"), (Window(), "has a window")):
        with pytest.raises(InputError, match=said):
            components(world.env, world.policy, wrong)


def test_values_named_otherwise_are_refused():
    env = envs.make("FrozenLake-v1", horizon=3)
    with pytest.raises(InputError, match="No source of values is called 'critic'"):
        components(env, policies.make("softmax_table", env), "gae", values="critic")
