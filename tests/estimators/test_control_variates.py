"""State-action and trajectory-wise control variates: loops, claims by enumeration, what they leave, and what is not a theorem."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import row_gradients
import torch
from contract import WORLDS, World, exact_mean, gradients, moments, random_world
from finite_worlds import enumerate_paths, random_logits, random_mdp
from tiny_gaussian import gaussian

import varlab
from varlab import envs, policies
from varlab.envs.finite import FiniteMDP
from varlab.estimators import AT_CUT, REGISTRY, make, parse, tail_sum
from varlab.estimators.control_variates import taken
from varlab.estimators.nodes import gauss_hermite, interpolation
from varlab.oracles.components import components
from varlab.values import ExactValues, FunctionValues

BOTH = ("state_action_control_variate", "trajectory_control_variate")
WEIGHTINGS = ((1.0, True), (0.8, True), (0.8, False))


def by_loops(world, name, traj, source, gamma, weighting, at_cut):
    """g of every path from its formula, with a table of Q and plain sums."""
    v, q = (x.numpy() for x in source.table(world.mdp, world.horizon))
    pi = world.logits.softmax(-1).numpy()
    states, actions = pi.shape
    scores = np.zeros((states, actions, states, actions))
    for s in range(states):
        for a in range(actions):
            scores[s, a, s] = -pi[s]
            scores[s, a, s, a] += 1
    rows = []
    for i in range(len(traj)):
        steps = range(int(traj.offsets[i]), int(traj.offsets[i + 1]))
        path = [(int(traj.state[k]), int(traj.action[k]), float(traj.reward[k])) for k in steps]
        total = len(path)
        end = 0.0
        if bool(traj.truncated[i]) and total < world.horizon and at_cut != "terminal":
            end = v[total, int(traj.last_state[i]) if at_cut == "bootstrap" else path[-1][0]]
        g = np.zeros((states, actions))
        for t, (s, a, _) in enumerate(path):
            phi = sum(gamma ** (k - t) * path[k][2] for k in range(t, total)) + gamma ** (total - t) * end - q[t, s, a]
            if name == "trajectory_control_variate":
                for k in range(t + 1, total):
                    s_k, a_k, _ = path[k]
                    phi -= gamma ** (k - t) * (q[k, s_k, a_k] - sum(pi[s_k, b] * q[k, s_k, b] for b in range(actions)))
            w = gamma**t if weighting else 1.0
            g += w * (scores[s, a] * phi + sum(pi[s, b] * scores[s, b] * q[t, s, b] for b in range(actions)))
        rows.append(g.ravel())
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("cut", (None, 2))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("name", BOTH)
def test_every_path_is_its_formula(name, gamma, weighting, cut):
    world = random_world(2, horizon=3, actions=3, outcomes=2)
    traj = enumerate_paths(world.mdp, 3, cut).traj
    for rule in AT_CUT:
        found = gradients(make(name), world, traj, world.wrong, gamma, weighting, at_cut=rule)
        row_gradients.close(found, by_loops(world, name, traj, world.wrong, gamma, weighting, rule), 1e-12)


@pytest.mark.parametrize("wrong", (False, True), ids=("exact values", "wrong values"))
@pytest.mark.parametrize(("gamma", "weighting"), WEIGHTINGS)
@pytest.mark.parametrize("of", WORLDS)
@pytest.mark.parametrize("name", (*BOTH, "factorised_baseline", "factorised_baseline(of='optimal')"))
def test_mean_and_variance_by_enumeration_are_those_of_the_oracle(name, of, gamma, weighting, wrong):
    """The mean is that of reward-to-go whatever Q is; with w_t = γ^t that is ∇J."""
    world = WORLDS[of]()
    source = world.wrong if wrong else None
    mean, variance = moments(parse(name), world, source=source, gamma=gamma, discount_weighting=weighting)
    plain = exact_mean(make("reward_to_go"), world, gamma=gamma, discount_weighting=weighting)
    row_gradients.close(mean, plain, 1e-12)
    if weighting:
        row_gradients.close(mean, world.gradient(gamma), 1e-12)
    oracle = varlab.exact(world.env, world.policy, name, gamma=gamma, discount_weighting=weighting, values=source or "exact")
    np.testing.assert_allclose(oracle.mean[0], mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(oracle.variance_per_parameter[0], variance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", AT_CUT)
@pytest.mark.parametrize("name", BOTH)
def test_the_oracle_at_a_cut(name, rule):
    world = WORLDS["long"]()
    paths = enumerate_paths(world.mdp, world.horizon, 2)
    p = paths.probability(world.logits)
    g = gradients(make(name), world, paths.traj, world.wrong, 0.9, at_cut=rule)
    oracle = varlab.exact(world.env, world.policy, name, gamma=0.9, values=world.wrong, cut=2, at_cut=rule)
    np.testing.assert_allclose(oracle.mean[0], p @ g, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(oracle.variance_per_parameter[0], p @ (g - p @ g) ** 2, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", BOTH)
def test_components_and_fourth_moments_follow_from_the_same_recursion(name):
    """The parts of the variance add up to it, and the exact fourth moment is that of all paths."""
    world = WORLDS["other"]()
    made = varlab.exact(world.env, world.policy, name, gamma=0.9, values=world.wrong, fourth=True)
    parts = components(world.env, world.policy, name, gamma=0.9, values=world.wrong)
    assert parts.total == pytest.approx(made.variance[0], rel=1e-12) and parts.action.min() > 0
    g = gradients(make(name), world, world.paths.traj, world.wrong, 0.9)
    norm_sq = (g - torch.from_numpy(made.mean[0])).square().sum(1)
    assert made.fourth[0] == pytest.approx(float(world.probability @ norm_sq**2), rel=1e-10)


# ---- What is left ---------------------------------------------------------------------------------------------------------


def deterministic(seed):
    """A world without chance but where it starts."""
    mdp = random_mdp(seed, states=4, actions=3, outcomes=1)
    return World(mdp, random_logits(seed, mdp), 4, seed)


@pytest.mark.parametrize("gamma", (1.0, 0.8))
def test_with_exact_q_and_deterministic_transitions_nothing_but_the_states_is_left(gamma):
    """Φ = 0: g is the sum over actions at the states visited, all_action."""
    world = deterministic(1)
    traj = world.paths.traj
    ours, averaged = (gradients(make(x), world, traj, world.exact(gamma), gamma) for x in (BOTH[1], "all_action"))
    row_gradients.close(ours, averaged, 1e-12)
    per_step = gradients(make(BOTH[0]), world, traj, world.exact(gamma), gamma)
    assert float((per_step - averaged).abs().max()) > 0.1
    with_chance = WORLDS["long"]()
    paths, exact = with_chance.paths.traj, with_chance.exact(gamma)
    left = gradients(make(BOTH[1]), with_chance, paths, exact, gamma) - gradients(
        make("all_action"), with_chance, paths, exact, gamma
    )
    assert float(left.abs().max()) > 0.1


def three_steps():
    """One parameter, p = 1/2. a_0 leads to state 1 or 2, where action 1 pays 1 and both actions lead to state 3 or 4. There
    the reward has mean 0 and a gap of ±1/4 between the actions, and the logit is 4 θ: ∇V = ±1/4, which follows a_1 as −Z_0 A_1.
    """
    lists = [
        [[(1.0, 1, 0.0, False)], [(1.0, 2, 0.0, False)]],
        [[(1.0, 4, 0.0, False)], [(1.0, 3, 1.0, False)]],
        [[(1.0, 3, 0.0, False)], [(1.0, 4, 1.0, False)]],
        [[(1.0, 0, -0.125, True)], [(1.0, 0, 0.125, True)]],
        [[(1.0, 0, 0.125, True)], [(1.0, 0, -0.125, True)]],
    ]
    mdp = FiniteMDP.from_lists(lists, initial=[1.0, 0.0, 0.0, 0.0, 0.0])
    seen = torch.tensor([[1.0], [1.0], [1.0], [4.0], [4.0]], dtype=torch.float64)
    return envs.environment(replace(mdp, observations=seen), 3, "three steps")


class OneLogit(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, obs):
        x = self.theta * obs
        return torch.distributions.Categorical(logits=torch.cat([torch.zeros_like(x), x], -1))


def test_trajectory_wise_below_state_action_is_no_theorem():
    """Exact Q, deterministic transitions: 1/128 for the control variate of each step alone, 1/16 along the trajectory."""
    step, trajectory = varlab.exact(three_steps(), OneLogit(), BOTH).variance
    assert step == pytest.approx(1 / 128, rel=1e-12) and trajectory == pytest.approx(1 / 16, rel=1e-12)


def test_both_may_lie_above_the_value_baseline():
    """A random world in which exact Q as control variate costs a half more variance than V as baseline."""
    mdp = random_mdp(155, states=3, actions=2, outcomes=2, ending=0.3)
    env = envs.environment(mdp, 3)
    policy = policies.SoftmaxTable(env, logits=random_logits(156, mdp, 3.0))
    value, step, trajectory = varlab.exact(env, policy, ("value_baseline", *BOTH)).variance
    assert step / value == pytest.approx(1.5116, abs=1e-4) and trajectory / value == pytest.approx(1.0633, abs=1e-4)


def test_a_wrong_q_adds_up_along_the_trajectory():
    """On all three worlds one table of wrong Q costs more variance trajectory-wise than step by step."""
    for made in WORLDS.values():
        world = made()
        step, trajectory = varlab.exact(world.env, world.policy, BOTH, values=world.wrong).variance
        assert trajectory > 1.3 * step


# ---- Gaussian actions -----------------------------------------------------------------------------------------------------


def wiggly(scale=1.0):
    """Values that are no polynomial and nobody's."""
    return FunctionValues(
        v=lambda s, t: torch.sin(s.sum(-1)) + t,
        q=lambda s, a, t: scale * torch.cos(2 * a[..., 0] - a[..., 1] + s.sum(-1)) * (1 + t),
    )


def gaussian_moments(estimator, source, gamma):
    world = gaussian()
    g = row_gradients.gradients(world.policy, [estimator], world.traj, source, gamma)[:, 0]
    return world.mean(g), world.variance(g), g


@pytest.mark.parametrize("nodes", (3, 4, 5))
@pytest.mark.parametrize("gamma", (1.0, 0.8))
@pytest.mark.parametrize("name", BOTH)
def test_gaussian_actions_leave_the_mean_alone_whatever_q_is(name, gamma, nodes):
    world = gaussian()
    grad = world.policy_gradient(gamma)
    for source in (FunctionValues(*world.action_values(world, gamma)), wiggly()):
        mean, _, _ = gaussian_moments(make(name, nodes=nodes), source, gamma)
        assert float((mean - grad).norm() / grad.norm()) < 1e-13


@dataclass(frozen=True)
class AtTheAction(REGISTRY["trajectory_control_variate"]):
    """Q itself at the action taken, not the polynomial through its nodes."""

    asks = frozenset({"q", "q_nodes"})

    def phi(self, batch):
        off = taken(batch, batch.values.q_nodes) - batch.values.q
        return super().phi(batch) + tail_sum(batch.traj, off, batch.gamma)


def test_q_itself_at_the_action_would_leave_the_error_of_the_quadrature():
    grad = gaussian().policy_gradient(1.0)
    mean, _, _ = gaussian_moments(AtTheAction(nodes=3), wiggly(0.2), 1.0)
    assert 0.005 < float((mean - grad).norm() / grad.norm()) < 0.1


@pytest.mark.parametrize("gamma", (1.0, 0.8))
def test_gaussian_actions_with_exact_q_and_deterministic_transitions(gamma):
    world = gaussian()
    source = FunctionValues(*world.action_values(world, gamma))
    ours, averaged = (gaussian_moments(make(x, nodes=3), source, gamma)[2] for x in (BOTH[1], "all_action"))
    row_gradients.close(ours, averaged, 1e-12)


@pytest.mark.parametrize(("m", "dims"), [(3, 1), (4, 2), (5, 3), (12, 1)])
def test_interpolation_is_the_polynomial_through_the_points(m, dims):
    """Polynomials of degree m − 1 are returned as they are; at a point the weights pick it out."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(20, dims, generator=draw, dtype=torch.float64)
    points, weight = gauss_hermite(m, dims)
    row_gradients.close(interpolation(points, m), torch.eye(m**dims, dtype=torch.float64), 1e-9)
    f = [lambda x, k=k: (x[:, 0] ** k - x[:, -1] ** (m - 1 - k)) / 2.0**k for k in (0, 1, m - 1)]
    for one in f:
        row_gradients.close(interpolation(noise, m) @ one(points), one(noise), 1e-9)
    row_gradients.close(weight @ interpolation(points, m), weight, 1e-9)


# ---- Mistakes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong(REGISTRY["trajectory_control_variate"]):
    """The trajectory-wise control variate with one mistake."""

    how: str = ""
    asks = frozenset({"q_nodes", "v"})

    def phi(self, batch):
        q, traj = self.q_nodes(batch), batch.traj
        v = batch.values.v if self.how == "V from elsewhere" else (traj.nodes.weight * q).sum(1)
        ahead = v.clone() if self.how == "V of the step before" else torch.cat([v[1:], v.new_zeros(1)])
        ahead[traj.last_row] = 0.0
        return tail_sum(traj, batch.reward + batch.gamma * ahead - taken(batch, q), batch.gamma)


def nearly(world, gamma):
    """Exact Q beside a V that is off by a tenth."""
    exact = world.exact(gamma)
    draw = torch.Generator().manual_seed(1)
    return ExactValues(exact.v + 0.1 * torch.randn(exact.v.shape, generator=draw, dtype=torch.float64), exact.q)


@pytest.mark.parametrize("how", ("none", "V from elsewhere", "V of the step before"))
def test_a_small_mistake_shows(how):
    """A leak of another V into V̂, or V̂ one step late: 2 % and 3 % of ‖∇J‖ on one world."""
    world = WORLDS["other"]()
    mean, grad = exact_mean(Wrong(how=how), world, source=nearly(world, 0.9), gamma=0.9), world.gradient(0.9)
    off = float((mean - grad).norm() / grad.norm())
    assert off < 1e-12 if how == "none" else 0.01 < off < 0.1
