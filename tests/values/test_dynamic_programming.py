"""Exact values, J and ∇J against brute-force enumeration, autograd through the recursion, and finite differences of J."""

import pytest
import torch
from finite_worlds import enumerate_paths, random_logits, random_mdp
from torch import nn
from torch.distributions import Categorical

from varlab import envs, policies, values
from varlab.checks import InputError
from varlab.envs.geometric import with_termination
from varlab.values import dynamic_programming as dp

HORIZON = 4
GAMMAS = (1.0, 0.9, 0.0)


def table(env, seed=0):
    return policies.make("softmax_table", env, theta_seed=seed).double()


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def branch(mdp, pi, gamma, state, action, steps):
    """Q with ``steps`` to go, by recursion over single outcomes and no table."""
    if steps == 0:
        return 0.0
    total = 0.0
    for o in range(mdp.probability.shape[2]):
        ahead = 0.0
        if not mdp.terminated[state, action, o]:
            following = int(mdp.next_state[state, action, o])
            ahead = sum(float(pi[following, b]) * branch(mdp, pi, gamma, following, b, steps - 1) for b in range(mdp.num_actions))
        total += float(mdp.probability[state, action, o]) * (float(mdp.reward[state, action, o]) + gamma * ahead)
    return total


@pytest.mark.parametrize("gamma", GAMMAS)
def test_values_are_those_of_the_tree_of_outcomes(gamma):
    mdp = random_mdp(1, outcomes=2)
    pi = random_logits(2, mdp).softmax(-1)
    v, q = dp.evaluate(mdp, pi, gamma, HORIZON)
    assert v.shape == (HORIZON + 1, 3) and q.shape == (HORIZON, 3, 2)
    assert torch.equal(v[HORIZON], torch.zeros(3, dtype=torch.float64))
    for t in range(HORIZON):
        tree = [[branch(mdp, pi, gamma, s, a, HORIZON - t) for a in range(2)] for s in range(3)]
        assert_close(q[t], torch.tensor(tree, dtype=torch.float64), 1e-12)
    assert_close(v[:-1], (pi * q).sum(-1), 1e-12)
    assert gamma == 0.0 or float((v[0] - v[1]).abs().max()) > 1e-3  # the time index matters


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_objective_occupancy_and_gradient_are_those_of_all_paths(gamma, seed):
    mdp = random_mdp(seed)
    logits = random_logits(seed + 10, mdp).requires_grad_()
    paths = enumerate_paths(mdp, HORIZON)
    probability = paths.probability(logits)
    assert_close(probability.sum(), torch.ones((), dtype=torch.float64), 1e-12)
    j = (probability * paths.returns(gamma)).sum()
    (grad,) = torch.autograd.grad(j, logits)
    policy = policies.SoftmaxTable(envs.environment(mdp, HORIZON), logits=logits)
    mine, mine_j = dp.gradient(mdp, policy, gamma, HORIZON)
    assert mine_j == pytest.approx(j.item(), abs=1e-12)
    assert_close(mine, grad.flatten(), 1e-12)
    alive = torch.zeros(HORIZON, 3, dtype=torch.float64)
    alive.index_put_((paths.traj.time, paths.traj.state), probability.detach()[paths.traj.episode], accumulate=True)
    assert_close(dp.occupancy(mdp, logits.detach().softmax(-1), HORIZON), alive, 1e-12)


def worlds():
    yield "FrozenLake-v1", None, "softmax_table"
    yield "FrozenLake-v1", None, "mlp"
    yield "FrozenLake-v1", 7, "linear"
    yield "CliffWalking-v1", 50, "softmax_table"
    yield "Taxi-v4", 40, "softmax_table"


@pytest.fixture(scope="module", params=list(worlds()), ids=lambda w: f"{w[0]}-{w[1]}-{w[2]}")
def world(request):
    env_id, horizon, kind = request.param
    env = envs.make(env_id, horizon=horizon, **({"is_slippery": True} if env_id.startswith("Cliff") else {}))
    return env, policies.make(kind, env, theta_seed=3, hidden=(8, 8)).double()


def autograd(env, policy, gamma):
    j = dp.expected_return(env.finite, policy, gamma, env.horizon)
    return torch.cat([g.flatten() for g in torch.autograd.grad(j, list(policy.parameters()))]), j.item()


@pytest.mark.parametrize("gamma", (1.0, 0.9))
def test_gradient_is_autograd_through_the_recursion(world, gamma):
    env, policy = world
    mine, j = dp.gradient(env.finite, policy, gamma, env.horizon)
    truth, j_truth = autograd(env, policy, gamma)
    scale = float(truth.abs().max())
    assert scale > 1e-6 and j == pytest.approx(j_truth, rel=1e-12)
    assert float((mine - truth).abs().max()) <= 1e-12 * max(scale, 1.0)


@pytest.mark.parametrize("gamma", (1.0, 0.9))
def test_gradient_is_the_finite_difference_of_the_objective(world, gamma):
    """Central differences along the largest entries of ∇J and along random directions."""
    env, policy = world
    mine, _ = dp.gradient(env.finite, policy, gamma, env.horizon)
    theta = nn.utils.parameters_to_vector(policy.parameters()).detach()
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(theta.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    for i in mine.abs().argsort(descending=True)[:5]:
        directions.append(torch.zeros_like(theta).index_fill_(0, i, 1.0))
    step = 1e-4

    @torch.no_grad()
    def j(shift):
        nn.utils.vector_to_parameters(theta + shift, policy.parameters())
        return float(dp.expected_return(env.finite, policy, gamma, env.horizon))

    for d in directions:
        # Fourth order: the error of the plain central difference on Taxi's rewards would be near the tolerance.
        slope = (8 * (j(step * d) - j(-step * d)) - (j(2 * step * d) - j(-2 * step * d))) / (12 * step)
        assert slope == pytest.approx(float(mine @ d), rel=1e-6, abs=1e-6)
    nn.utils.vector_to_parameters(theta, policy.parameters())


def test_taxi_at_its_own_time_limit():
    env = envs.make("Taxi-v4")
    assert env.horizon == 200
    policy = table(env)
    mine, j = dp.gradient(env.finite, policy, 1.0, 200)
    truth, j_truth = autograd(env, policy, 1.0)
    assert j == pytest.approx(j_truth, rel=1e-12)
    assert float((mine - truth).abs().max()) <= 1e-12 * float(truth.abs().max())


def test_two_outcomes_with_one_next_state_and_two_rewards_are_both_counted():
    env = envs.make("CliffWalking-v1", horizon=50, is_slippery=True)
    mdp = env.finite
    same = (mdp.next_state[..., :1] == mdp.next_state) & (mdp.reward[..., :1] != mdp.reward) & (mdp.probability > 0)
    assert bool(same.any()), "slippery CliffWalking no longer has such a pair: choose another world for this test"


@pytest.mark.parametrize("gamma", (0.9, 0.5))
def test_discount_as_termination_gives_the_same_objective_and_gradient(gamma):
    env = envs.environment(random_mdp(4), 6)
    ended = with_termination(env, gamma)
    policy = table(env)
    discounted, j_discounted = dp.gradient(env.finite, policy, gamma, 6)
    undiscounted, j_undiscounted = dp.gradient(ended.finite, policy, 1.0, 6)
    assert j_undiscounted == pytest.approx(j_discounted, abs=1e-12)
    assert_close(undiscounted, discounted, 1e-12)
    v, _ = dp.evaluate(env.finite, dp.policy_table(policy, env.finite), gamma, 6)
    v_ended, _ = dp.evaluate(ended.finite, dp.policy_table(policy, env.finite), 1.0, 6)
    assert_close(v_ended, v, 1e-12)


def test_long_horizon_is_the_infinite_horizon_objective():
    """H from horizon_for: J_γ is within 1e-6 of the fixed point of the Bellman equation."""
    mdp = random_mdp(4, ending=0.0)
    pi = random_logits(0, mdp).softmax(-1)
    gamma, most = 0.9, float(mdp.reward.abs().max())
    horizon = envs.horizon_for(gamma, most)
    flow = torch.einsum("sa,sax->sx", pi, mdp.transition)
    fixed = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - gamma * flow, (pi * mdp.expected_reward).sum(-1))
    v, _ = dp.evaluate(mdp, pi, gamma, horizon)
    assert float((v[0] - fixed).abs().max()) < 1e-6
    shorter, _ = dp.evaluate(mdp, pi, gamma, horizon // 2)
    assert float((shorter[0] - fixed).abs().max()) > 1e-6


class WithUnusedHead(nn.Module):
    """A policy that carries a value head of its own, as many do."""

    def __init__(self, mdp):
        super().__init__()
        self.head = nn.Linear(2, 1).double()
        self.logits = nn.Embedding(mdp.num_states, mdp.num_actions).double()

    def forward(self, obs):
        return Categorical(logits=self.logits(obs))


def test_parameters_that_the_actions_do_not_use_have_gradient_zero():
    mdp = random_mdp(0)
    policy = WithUnusedHead(mdp)
    grad, _ = dp.gradient(mdp, policy, 1.0, HORIZON)
    alone = policies.SoftmaxTable(envs.environment(mdp, HORIZON), logits=policy.logits.weight)
    assert torch.equal(grad[:3], torch.zeros(3, dtype=torch.float64))
    assert_close(grad[3:], dp.gradient(mdp, alone, 1.0, HORIZON)[0], 1e-14)


def test_frozen_parameters_are_left_out():
    mdp = random_mdp(0)
    policy = WithUnusedHead(mdp)
    policy.head.requires_grad_(False)
    assert dp.gradient(mdp, policy, 1.0, HORIZON)[0].shape == (6,)


def test_exact_values_are_looked_up_by_state_and_time():
    """At every step, at the end of each episode, and in the state before the end; against loops."""
    mdp = random_mdp(2)
    env = envs.environment(mdp, HORIZON)
    policy = table(env)
    exact = values.ExactValues.of(mdp, policy, 0.9, HORIZON)
    traj = enumerate_paths(mdp, HORIZON, cut=3).traj
    found = exact(traj, frozenset({"v", "q"}))
    assert found.source == "exact" and found.steps == 0
    v, q = dp.evaluate(mdp, dp.policy_table(policy, mdp).detach(), 0.9, HORIZON)
    for i in range(len(traj)):
        first, end = int(traj.offsets[i]), int(traj.offsets[i + 1])
        for row in range(first, end):
            s, a, t = int(traj.state[row]), int(traj.action[row]), row - first
            assert found.v[row] == v[t, s] and found.q[row] == q[t, s, a]
        assert found.v_last[i] == v[end - first, int(traj.last_state[i])]
        assert found.v_stale[i] == v[end - first, int(traj.state[end - 1])]
    only = exact(traj, frozenset({"q"}))
    assert only.v is None and only.v_last is None and only.v_stale is None


def test_values_beyond_the_horizon_are_zero_for_states_alive_at_its_end():
    mdp = random_mdp(2)
    traj = enumerate_paths(mdp, HORIZON).traj
    exact = values.ExactValues.of(mdp, table(envs.environment(mdp, HORIZON)), 1.0, HORIZON)
    found = exact(traj, frozenset({"v"}))
    assert bool(traj.truncated.any()) and float(found.v_last[traj.truncated].abs().max()) == 0.0


def test_states_shown_as_features_have_the_same_values():
    """A finite MDP that shows vectors: the policy reads them, values are still looked up by the hidden index."""
    mdp = random_mdp(3)
    shown = type(mdp)(**{**{k: getattr(mdp, k) for k in mdp.__dataclass_fields__}, "observations": torch.eye(3).double()})
    env = envs.environment(shown, HORIZON)
    linear = policies.make("linear", env, theta_seed=1).double()
    logits = (linear.net.weight.T + linear.net.bias).detach()
    same = policies.SoftmaxTable(envs.environment(mdp, HORIZON), logits=logits)
    a, b = (values.ExactValues.of(m, p, 0.9, HORIZON) for m, p in ((shown, linear), (mdp, same)))
    assert_close(a.v, b.v, 1e-14)
    assert_close(a.q, b.q, 1e-14)


def test_a_policy_without_one_probability_per_action_is_refused():
    mdp = random_mdp(0)

    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Embedding(3, 5)

        def forward(self, obs):
            return Categorical(logits=self.logits(obs))

    with pytest.raises(InputError, match=r"2 actions in 3 states.*\(3, 5\).*one logit per action"):
        dp.policy_table(Wrong(), mdp)
