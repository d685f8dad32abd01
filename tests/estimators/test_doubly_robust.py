"""doubly_robust: the derivative of the doubly robust estimate itself, what it leaves of the variance, models that are wrong."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from contract import WORLDS, World, bound, exact_mean, gradients, moments, select
from finite_worlds import enumerate_paths, random_logits, random_mdp
from row_gradients import close

import varlab
from varlab import envs, policies, preparation
from varlab.checks import InputError
from varlab.estimators import AT_CUT, REGISTRY, Batch, make
from varlab.types import Values
from varlab.values import evaluate

WEIGHTINGS = ((1.0, True), (0.8, True), (0.8, False))
ORDER = ("reward_to_go", "value_baseline", "state_action_control_variate", "trajectory_control_variate")


def model(world, error):
    """The world with rewards that are off by ±error, written out pair by pair."""
    reward = world.mdp.reward.clone()
    for s in range(world.mdp.num_states):
        for a in range(world.mdp.num_actions):
            reward[s, a] += error if (s + a) % 2 == 0 else -error
    return replace(world.mdp, reward=reward)


def derivatives(world, error, gamma):
    """Q̂ [H, S, A] and ∂Q̂/∂θ [H, S, A, P] by automatic differentiation through the recursion."""
    logits = world.logits.clone().requires_grad_()
    _, q = evaluate(model(world, error), logits.softmax(-1), gamma, world.horizon)
    rows = [torch.autograd.grad(x, logits, retain_graph=True, allow_unused=True)[0] for x in q.flatten()]
    return q.detach(), torch.stack([torch.zeros_like(logits) if r is None else r for r in rows]).reshape(*q.shape, -1)


@pytest.mark.parametrize("error", (0.0, 0.4))
@pytest.mark.parametrize("gamma", (1.0, 0.8))
def test_it_is_the_derivative_of_the_doubly_robust_estimate(gamma, error):
    """V_t = V̂_t + ρ_t (r_t + γ V_{t+1} − Q̂_t), by automatic differentiation in θ' through ρ, Q̂ and V̂, at θ' = θ."""
    world = WORLDS["long"]()
    traj = world.paths.traj
    chosen = list(range(0, len(traj), len(traj) // 40))
    logits = world.logits.clone().requires_grad_()
    pi, fixed = logits.softmax(-1), world.logits.softmax(-1)
    _, q = evaluate(model(world, error), pi, gamma, world.horizon)
    rows = []
    for i in chosen:
        v = torch.zeros((), dtype=torch.float64)
        first, end = int(traj.offsets[i]), int(traj.offsets[i + 1])
        for row in range(end - 1, first - 1, -1):
            t, s, a = row - first, traj.state[row], traj.action[row]
            v = (pi[s] * q[t, s]).sum() + pi[s, a] / fixed[s, a] * (traj.reward[row] + gamma * v - q[t, s, a])
        rows.append(torch.autograd.grad(v, logits, retain_graph=True)[0].flatten())
    found = gradients(bound(make("doubly_robust", error=error), world, gamma), world, traj, world.wrong, gamma)
    close(found[chosen], torch.stack(rows), 1e-12)


@pytest.mark.parametrize("error", (0.0, 0.7))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("of", WORLDS)
def test_its_mean_is_that_of_reward_to_go_and_each_path_is_its_formula(of, gamma, weighting, error):
    world = WORLDS[of]()
    estimator, traj = make("doubly_robust", error=error), world.paths.traj
    q, dq = derivatives(world, error, gamma)
    pi = world.logits.softmax(-1)
    source = varlab.values.FunctionValues(q=lambda s, a, t: q[t, s, a], v=lambda s, t: 0.0 * t)
    plain = gradients(make("trajectory_control_variate"), world, traj, source, gamma, weighting)
    w = gamma ** traj.time.double() if weighting else torch.ones(traj.steps, dtype=torch.float64)
    mean = (pi[traj.state].unsqueeze(2) * dq[traj.time, traj.state]).sum(1)
    term = w.unsqueeze(1) * (mean - dq[traj.time, traj.state, traj.action])
    close(
        gradients(bound(estimator, world, gamma), world, traj, world.wrong, gamma, weighting),
        plain + torch.zeros_like(plain).index_add(0, traj.episode, term),
        1e-12,
    )
    expected = exact_mean(make("reward_to_go"), world, gamma=gamma, discount_weighting=weighting)
    close(exact_mean(estimator, world, gamma=gamma, discount_weighting=weighting), expected, 1e-12)


@pytest.mark.parametrize("rule", AT_CUT)
def test_at_a_cut_its_mean_is_that_of_reward_to_go_under_the_same_rule(rule):
    world = WORLDS["other"]()
    paths = enumerate_paths(world.mdp, world.horizon, 2)
    p = paths.probability(world.logits)
    ours, plain = (
        p @ gradients(bound(make(x), world, 0.9), world, paths.traj, world.wrong, 0.9, at_cut=rule)
        for x in ("doubly_robust", "reward_to_go")
    )
    close(ours, plain, 1e-12)


# ---- What is left of the variance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", (1.0, 0.8))
@pytest.mark.parametrize("of", WORLDS)
def test_with_the_true_model_only_starts_and_transitions_are_left(of, gamma):
    """tr Var ∇V_0(s_0) + Σ_t γ^2t E‖Z_t ξ_t + η_t‖², and trajectory-wise also Σ_t γ^2t E tr Var_a ∇Q_t(s_t, a)."""
    world = WORLDS[of]()
    q, dq = derivatives(world, 0.0, gamma)
    pi = world.logits.softmax(-1)
    score = torch.eye(pi.numel(), dtype=torch.float64).reshape(*pi.shape, -1)
    score = score - torch.einsum("sb,sbp->sp", pi, score).unsqueeze(1)
    v = (pi * q).sum(2)
    dv = (pi.unsqueeze(2) * (score * q.unsqueeze(3) + dq)).sum(2)  # [H, S, P]
    traj, p = world.paths.traj, world.probability
    start, jumps, actions = 0.0, 0.0, 0.0
    for i in range(len(traj)):
        first, end = int(traj.offsets[i]), int(traj.offsets[i + 1])
        start += p[i] * (dv[0, traj.state[first]] - world.gradient(gamma)).square().sum()
        z = torch.zeros(pi.numel(), dtype=torch.float64)
        for row in range(first, end):
            t, s, a = row - first, traj.state[row], traj.action[row]
            z = z + score[s, a]
            goes_on = row + 1 < end
            xi = traj.reward[row] - q[t, s, a] + (gamma * v[t + 1, traj.state[row + 1]] if goes_on else 0.0)
            eta = (gamma * dv[t + 1, traj.state[row + 1]] if goes_on else 0.0) - dq[t, s, a]
            spread = pi[s] @ (dq[t, s] - pi[s] @ dq[t, s]).square().sum(1)
            jumps += p[i] * gamma ** (2 * t) * (z * xi + eta).square().sum()
            actions += p[i] * gamma ** (2 * t) * spread
    (_, ours), (_, trajectory) = (moments(make(x), world, gamma=gamma) for x in ("doubly_robust", "trajectory_control_variate"))
    close(ours.sum(), start + jumps, 1e-12)
    close(trajectory.sum(), start + jumps + actions, 1e-12)
    assert float(actions) > 1e-3


@pytest.mark.parametrize("gamma", (1.0, 0.8))
@pytest.mark.parametrize("of", WORLDS)
def test_with_the_true_model_no_sampled_return_lies_below_it(of, gamma):
    world = WORLDS[of]()
    _, ours = moments(make("doubly_robust"), world, gamma=gamma)
    others = varlab.exact(world.env, world.policy, (*ORDER, "all_action"), gamma=gamma).variance
    # Only what averages over the transitions too lies lower, and it needs exact values for its mean.
    assert others[-1] < float(ours.sum()) < others[:-1].min()


def test_without_chance_in_the_world_there_is_no_variance():
    """Deterministic transitions and one start: every path gives ∇J, for γ^t weights."""
    mdp = random_mdp(1, states=4, actions=3, outcomes=1)
    world = World(replace(mdp, initial=torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)), random_logits(1, mdp), 4, 1)
    for gamma in (1.0, 0.8):
        g = gradients(bound(make("doubly_robust"), world, gamma), world, world.paths.traj, world.wrong, gamma)
        close(g, world.gradient(gamma).expand_as(g), 1e-12)
    dropped = gradients(bound(make("doubly_robust"), world, 0.8), world, world.paths.traj, world.wrong, 0.8, False)
    assert float(dropped.std(0).max()) > 0.01


def test_a_wrong_model_costs_variance_until_no_baseline_would_be_better():
    world = WORLDS["wide"]()
    found = [float(moments(make("doubly_robust", error=e), world)[1].sum()) for e in (0.0, 0.2, 0.4, 0.8)]
    assert found == sorted(found)
    none, value = varlab.exact(world.env, world.policy, ("reward_to_go", "value_baseline")).variance
    assert found[1] < value < found[3]


# ---- Mistakes, units, measurements ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong(REGISTRY["doubly_robust"]):
    """The mean over actions of ∇Q̂ one step late."""

    def state_phi(self, batch, weight):
        c, traj = self.model.at(batch.gamma).coefficients, batch.traj
        late = torch.cat([c[1:], torch.zeros_like(c[:1])])
        mean = (self.model.pi.unsqueeze(2) * (late - c)).sum(2)[traj.time, traj.state] * weight.unsqueeze(1)
        right = super().state_phi(batch, weight)
        return right + torch.zeros_like(right).flatten(1).index_add(0, traj.episode, mean).view_as(right)


def test_an_index_that_is_off_by_one_shows():
    """8 % of ‖∇J‖ at γ = 0.3."""
    world = WORLDS["wide"]()
    grad = world.gradient(0.3)
    assert 0.01 < float((exact_mean(Wrong(), world, gamma=0.3) - grad).norm() / grad.norm()) < 0.1


@pytest.mark.parametrize("unit", (2, 3))
def test_the_gradient_of_a_unit_is_the_mean_of_its_trajectories(unit):
    world = WORLDS["wide"]()
    traj = select(world.paths.traj, torch.arange(0, 240, 20))
    estimator = bound(make("doubly_robust", error=0.3), world, 0.9)
    each = gradients(estimator, world, traj, world.wrong, 0.9)
    close(gradients(estimator, world, traj, world.wrong, 0.9, unit=unit), each.unflatten(0, (-1, unit)).mean(1), 1e-13)


def test_a_measurement_holds_the_enumerated_variance_in_pieces_too(monkeypatch):
    world = WORLDS["long"]()
    mean, variance = moments(make("doubly_robust"), world, gamma=0.9)
    phi = ("trajectory_control_variate", "doubly_robust", "value_baseline", "doubly_robust(error=0.7)")
    settings = {"n": 3000, "gamma": 0.9, "pilot": 100, "dtype": "float64"}
    made = varlab.measure(world.env, world.policy, phi, **settings)
    row = made.summary.set_index("phi").loc["doubly_robust(error=0.0)"]
    assert row.variance_low < float(variance.sum()) < row.variance_high < made.summary.variance[2]
    assert row.bias_p_value > 0.01 and row.values_source == "none" and np.isnan(row.exact_variance)
    monkeypatch.setattr(preparation, "ROWS_AT_ONCE", 60)
    cut_up = varlab.measure(world.env, world.policy, phi, chunk=5, **settings)
    np.testing.assert_allclose(cut_up.moments.mean, made.moments.mean, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(cut_up.moments.m2, made.moments.m2, rtol=1e-9, atol=1e-13)


def test_other_worlds_are_one_sentence():
    cartpole = envs.make("CartPole-v1", horizon=5)
    with pytest.raises(InputError, match="A finite MDP was expected for doubly_robust.*but CartPole-v1 has no outcome lists"):
        varlab.measure(cartpole, policies.make("linear", cartpole), "doubly_robust", n=50)
    taxi = envs.make("Taxi-v4", horizon=100)
    with pytest.raises(InputError, match=r"H \(S A\)² of at most 1e\+08 was expected for doubly_robust.*name trajectory_control"):
        make("doubly_robust").bind(taxi, policies.make("softmax_table", taxi))
    world = WORLDS["wide"]()
    with pytest.raises(InputError, match="A world was expected for doubly_robust.*bind"):
        make("doubly_robust").phi(Batch(world.paths.traj, Values(), 1.0))
    with pytest.raises(InputError, match="A Φ with a recursion over states was expected.*doubly_robust"):
        varlab.exact(world.env, world.policy, "doubly_robust")
