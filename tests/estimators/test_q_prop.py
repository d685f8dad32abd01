"""q_prop: its formula by differentiation, its mean by quadrature for any Q, slopes of every source, and what cannot be done."""

from dataclasses import dataclass

import pytest
import torch
from row_gradients import assembled, close, finite, gradients, per_trajectory, sample
from tiny_gaussian import gaussian

import varlab
from varlab import envs, policies, storage, values
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.estimators import REGISTRY, Batch, make, parse
from varlab.estimators.nodes import with_nodes
from varlab.rng import Streams
from varlab.types import Values
from varlab.values import CriticSettings, FunctionValues
from varlab.values.linear_quadratic import QuadraticValues

WEIGHTINGS = ((1.0, True), (0.8, True), (0.8, False))
WIGGLY = FunctionValues(
    v=lambda s, t: torch.sin(s.sum(-1)) + t,
    q=lambda s, a, t: torch.cos(2 * a[..., 0] - a[..., 1] + s.sum(-1)) * (1 + t),
)


def slope(obs, mean, t):
    """∂q/∂a of WIGGLY by hand."""
    sine = -torch.sin(2 * mean[:, 0] - mean[:, 1] + obs.sum(-1)) * (1 + t)
    return torch.stack([2 * sine, -sine], 1)


def system(kind="linear", horizon=4):
    env = lqg.random_system(horizon, seed=1, state_dim=3, action_dim=2)
    return env, policies.prepare(policies.make(kind, env, theta_seed=1, hidden=(4,)), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("cut", (None, 3))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("kind", ("linear", "mlp"))
@pytest.mark.parametrize("lam", (1.0, 0.7))
def test_it_is_its_formula(lam, kind, gamma, weighting, cut):
    """Σ_t w_t (∇ log π(a_t | s_t)(Â_t − c_tᵀ(a_t − μ_t)) + ∇μ_tᵀ c_t) by differentiation, Â_t by a loop."""
    env, policy = system(kind)
    traj = sample(env, policy, 6, cut)
    d = policy(traj.obs)
    mean = d.base_dist.loc
    c = slope(traj.obs, mean.detach(), traj.time)
    v = WIGGLY.v(traj.obs, traj.time)
    end = WIGGLY.v(traj.last_obs, traj.length)
    left = torch.zeros(traj.steps, dtype=torch.float64)
    for row in range(traj.steps):
        i = int(traj.episode[row])
        last = int(traj.offsets[i + 1])
        for k in range(row, last):
            after = float(v[k + 1]) if k + 1 < last else float(end[i]) if cut else 0.0
            left[row] += (gamma * lam) ** (k - row) * (float(traj.reward[k]) + gamma * after - float(v[k]))
    left -= (c * (traj.action - mean.detach())).sum(1)
    w = gamma ** traj.time.double() if weighting else torch.ones_like(left)
    x = w * (d.log_prob(traj.action) * left + (mean * c).sum(1))
    close(
        gradients(policy, [make("q_prop", lam=lam)], traj, WIGGLY, gamma, weighting)[:, 0],
        per_trajectory(traj, x, list(policy.parameters())),
        1e-11,
    )


@pytest.mark.parametrize("gamma", (1.0, 0.8))
def test_it_leaves_the_mean_alone_whatever_q_is(gamma):
    """With λ = 1 for any V and Q; with λ < 1 given the right V, still for any Q."""
    world = gaussian()
    grad = world.policy_gradient(gamma)
    exact = FunctionValues(*world.action_values(world, gamma))
    crossed = FunctionValues(v=exact.v, q=WIGGLY.q)

    def off(phi, source):
        mean = world.mean(gradients(world.policy, [parse(phi)], world.traj, source, gamma)[:, 0])
        return float((mean - grad).norm() / grad.norm())

    for source in (exact, WIGGLY):
        assert off("q_prop", source) < 1e-13
    assert off("q_prop(lam=0.5)", exact) < 1e-13 and off("q_prop(lam=0.5)", crossed) < 1e-13
    assert off("q_prop(lam=0.5)", WIGGLY) > 0.01


@dataclass(frozen=True)
class Wrong(REGISTRY["q_prop"]):
    """The sign of the term that is put back turned round."""

    def node_phi(self, batch):
        return -super().node_phi(batch)


def test_a_sign_shows():
    """8 % of ‖∇J‖ where Q is a twentieth of the right one."""
    world = gaussian()
    grad = world.policy_gradient(1.0)
    v, q = world.action_values(world, 1.0)
    source = FunctionValues(v=v, q=lambda s, a, t: 0.05 * q(s, a, t))
    mean = world.mean(gradients(world.policy, [Wrong()], world.traj, source, 1.0)[:, 0])
    assert 0.01 < float((mean - grad).norm() / grad.norm()) < 0.1


def test_what_is_put_back_has_nothing_for_log_sigma():
    env, policy = system("mlp")
    traj = sample(env, policy, 5)
    made = assembled(policy, [make("q_prop")], traj, WIGGLY)
    nodes = made[1]
    assert nodes.action.shape == (traj.steps, 6, 2)
    obs = nodes.obs.repeat_interleave(6, 0)
    log_p = policy(obs).log_prob(nodes.action.flatten(0, 1))
    total = (log_p * nodes.weights[..., 0].flatten()).sum()
    by_name = dict(zip(dict(policy.named_parameters()), torch.autograd.grad(total, list(policy.parameters())), strict=True))
    assert float(by_name.pop("log_std.value").abs().max()) < 1e-12 < min(float(g.abs().max()) for g in by_name.values())


def test_a_measurement_on_a_linear_system_holds_the_gradient():
    env, policy = system()
    phi = ["value_baseline", "q_prop", "trajectory_control_variate(nodes=3)"]
    made = varlab.measure(env, policy, phi, n=1500, pilot=100, dtype="float64")
    assert (made.summary.bias_p_value > 0.01).all() and set(made.summary.values_source) == {"exact"}
    value, ours, trajectory = made.summary.variance
    assert trajectory < ours < value


# ---- Slopes, and what cannot be done --------------------------------------------------------------------------------------


def critic(env, policy):
    traj = sample(env, policy, 40, seed=5)
    target = Batch(traj, Values(), 1.0).reward_to_go
    settings = CriticSettings(hidden=(8,), epochs=1)
    return values.fit(env, traj, target, settings, Streams(0).sequence("fit"), storage.digest, torch.float64)


@pytest.mark.parametrize("kind", ("critic", "quadratic", "functions"))
def test_slopes_are_central_differences_of_q_at_the_mean(kind):
    env, policy = system()
    made = {"critic": critic, "quadratic": lambda e, p: QuadraticValues.of(e, p, 0.9), "functions": lambda e, p: WIGGLY}
    source = made[kind](env, policy)
    traj = with_nodes(policy, sample(env, policy, 4), 3, "coordinate")
    found = source(traj, frozenset({"q_slope"}))
    assert found.q_slope.dtype == torch.float64 and found.q_nodes is None and found.q is None and found.v is None
    q = source.network.action_value if kind == "critic" else None
    for dim in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[dim]
        at = [
            q(traj.obs, traj.nodes.mean + s) if q else source.q(traj.obs, traj.nodes.mean + s, traj.time)
            for s in (step, -step)
        ]
        torch.testing.assert_close(found.q_slope[:, dim], (at[0] - at[1]) / 2e-5, rtol=1e-6, atol=1e-7)
    assert float(found.q_slope.std()) > 1e-3


def test_discrete_actions_are_one_sentence():
    env, policy = finite("mlp")
    with pytest.raises(InputError, match="Continuous actions were expected for q_prop.*those of FiniteMDP are discrete"):
        varlab.measure(env, policy, "q_prop", n=50)
    traj = with_nodes(policy, sample(env, policy, 3), 3)
    with pytest.raises(InputError, match="Continuous actions were expected for q_prop"):
        make("q_prop").phi(Batch(traj, Values(v=traj.reward), 1.0))


def test_slopes_that_are_missing_are_one_sentence():
    env, policy = system()
    settings = {"n": 50, "pilot": 2}
    with pytest.raises(InputError, match="Values q_slope .* were expected for q_prop.*but the source mine gives none"):
        varlab.measure(
            env, policy, "q_prop", values=lambda t, need: Values(v=t.reward, v_last=t.reward, source="mine"), **settings
        )
    rounded = FunctionValues(v=WIGGLY.v, q=lambda s, a, t: a.detach().sum(-1), source="rounded")
    with pytest.raises(InputError, match="A Q that torch can differentiate .* the source rounded"):
        varlab.measure(env, policy, "q_prop", values=rounded, **settings)
    with pytest.raises(InputError, match="Continuous actions with a mean were expected for the slope of Q"):
        WIGGLY(sample(env, policy, 2), frozenset({"q_slope"}))


def test_functions_without_q_are_one_sentence():
    env, policy = system()
    with pytest.raises(InputError, match="A function q was expected"):
        varlab.measure(env, policy, "q_prop", n=50, pilot=2, values=FunctionValues(v=WIGGLY.v))


def test_pendulum_takes_it():
    env = envs.make("Pendulum-v1", horizon=4)
    made = varlab.measure(
        env, policies.make("mlp", env, hidden=(4,)), ["value_baseline", "q_prop"], n=100, n_reference=100, pilot=60,
        critic=CriticSettings(n=60, hidden=(8,), epochs=2),
    )  # fmt: skip
    assert made.summary.variance_ratio.notna().all() and (made.summary.variance > 0).all()
