"""Spinning Up in Deep RL, Part 3 (Achiam, 2018), from top to bottom: every formula and every sentence that can be tested.

From "Deriving the Simplest Policy Gradient" to its implementation; ``test_source_text_weights`` walks the rest of the text.

Expectations are exact: ``tiny_world`` lists all trajectories of a finite world, ``tiny_gaussian`` has two-dimensional actions
and quadrature without error. The derivations' other route is automatic differentiation, loops or finite differences.
"""

import copy
import inspect
import itertools

import numpy as np
import pytest
import torch
from exact_means import CHOICES, close, episodes, g, g_hat, grad_of, gradients, j_of, log_pi, loss, mean, moved, theta, weights
from scipy import stats
from tiny_gaussian import START_PROBABILITY, STARTS, gaussian
from tiny_world import A, H, S, finite, flat, jacobian, mdp_lists, per_episode, rewards_from
from torch.distributions import Categorical

from varlab import envs, estimators, scores, values
from varlab.analysis import reference
from varlab.cores import Cores
from varlab.envs.geometric import with_termination
from varlab.layout import Layout
from varlab.plans import plan
from varlab.policies import log_prob, sample
from varlab.rng import Streams, torch_generator

LEVEL, REJECTED = 1e-3 / 20, 1e-9  # twenty p-values, every seed fixed beforehand; negative controls must be far below


@pytest.fixture(params=["table", "mlp"])
def listed(request):
    """The finite world."""
    return finite(request.param)


@pytest.fixture(params=["table", "mlp", "gaussian"])
def world(request):
    return gaussian() if request.param == "gaussian" else finite(request.param)


def chi_square(observed, expected):
    """P-value of counts, cells with less than five expected joined."""
    o, e = (np.append(x[expected >= 5], x[expected < 5].sum()) for x in (observed, expected))
    return stats.chi2.sf(((o - e)[e > 0] ** 2 / e[e > 0]).sum(), (e > 0).sum() - 1)


# ---- Deriving the Simplest Policy Gradient


def test_maximize_the_expected_return(listed):
    """“the expected return”: J is the mean of R(τ) over trajectories."""
    close(listed.weight.sum(), 1.0)
    close(values.expected_return(listed.env.finite, listed.policy, 1.0, H), listed.performance())
    close(values.gradient(listed.env.finite, listed.policy, 1.0, H)[1], listed.performance())


def test_finite_horizon_undiscounted_return(world):
    """“finite-horizon undiscounted return” is the default: rewards up to the horizon or the end, no factor."""
    assert inspect.signature(plan).parameters["gamma"].default == 1.0
    for traj in (world.traj, episodes(world, 50)):
        close(weights("total_return", traj), rewards_from(traj, first=0))
        assert bool(((traj.length == traj.horizon) | traj.terminated).all())


def test_discounted_setting_is_almost_identical(world):
    """“almost identical”: with w_t = γ^t every Φ has the mean ∇J_γ; without it all but R_γ share another vector."""
    truth, other = world.policy_gradient(0.8), mean(world, "reward_to_go", 0.8, False)
    for phi in CHOICES:
        close(mean(world, phi, 0.8), truth)
        close(mean(world, phi, 0.8, False), truth if phi == "total_return" else other)
    assert float((other - truth).norm()) > 0.05 * float(truth.norm())
    if world.dynamics is not None:
        close(values.gradient(world.env.finite, world.policy, 0.8, H)[0], truth)


def test_infinite_horizon_discounted_return(listed):
    """“infinite-horizon discounted”: a long horizon, and ending with probability 1 − γ, against Bellman's equation solved."""
    gamma, (lists, initial) = 0.8, mdp_lists()
    onward, paid = torch.zeros(S, A, S, dtype=torch.float64), torch.zeros(S, A, dtype=torch.float64)
    for s, a in itertools.product(range(S), range(A)):
        for p, s_next, r, end in lists[s][a]:
            paid[s, a] += p * r
            onward[s, a, s_next] += p * (not end)
    flow, reward = torch.einsum("sa,sax->sx", listed.pi(), onward), (listed.pi() * paid).sum(1)
    j = torch.tensor(initial, dtype=torch.float64) @ torch.linalg.solve(torch.eye(S) - gamma * flow, reward)
    truth, long = flat(torch.autograd.grad(j, listed.theta)), envs.horizon_for(gamma, 10.0, tolerance=1e-12)
    for mdp, factor in ((listed.env.finite, gamma), (with_termination(listed.env, gamma).finite, 1.0)):
        grad, found = values.gradient(mdp, listed.policy, factor, long)
        close(grad, truth, 1e-10)
        close(found, j, 1e-10)


def test_gradient_ascent_step(listed):
    """“gradient ascent”: θ_{k+1} = θ_k + α ∇J raises J by α ‖∇J‖² + O(α²), and goes on raising it."""
    policy, grad = listed.policy, grad_of(listed, listed.policy)
    reached = [j_of(listed, policy)]
    excess = [j_of(listed, moved(policy, a * grad)) - reached[0] - a * float(grad @ grad) for a in (1e-2, 1e-3)]
    assert abs(excess[0] / excess[1]) == pytest.approx(100, rel=0.05)
    for _ in range(20):
        policy = moved(policy, 0.3 * grad_of(listed, policy))
        reached.append(j_of(listed, policy))
    assert (np.diff(reached) > 0).all() and reached[-1] > reached[0] + 0.2


def test_gradient_of_policy_performance(listed):
    """“called the policy gradient”: central differences of J."""
    found, h = grad_of(listed, listed.policy), 1e-5
    for i, e in enumerate(torch.eye(len(found), dtype=torch.float64) * h):
        difference = j_of(listed, moved(listed.policy, e)) - j_of(listed, moved(listed.policy, -e))
        assert difference / (2 * h) == pytest.approx(float(found[i]), abs=1e-8)


def test_probability_of_a_trajectory():
    """“Probability of a Trajectory”: simulated frequencies follow ρ_0 Π P π; those of another θ are rejected."""

    def keys(t):
        s, a, r, last, end = (x.tolist() for x in (t.state, t.action, t.reward, t.last_state, t.terminated))
        pairs = enumerate(itertools.pairwise(t.offsets.tolist()))
        return [(*s[i:j], *a[i:j], *r[i:j], last[k], end[k]) for k, (i, j) in pairs]

    number, n = {key: i for i, key in enumerate(keys(finite().traj))}, 20_000
    assert len(number) == len(finite().traj)
    seen = np.bincount([number[key] for key in keys(episodes(finite(), n))], minlength=len(number))
    assert chi_square(seen, n * finite().weight.numpy()) > LEVEL
    assert chi_square(seen, n * finite(theta_seed=3).weight.numpy()) < REJECTED


def test_log_derivative_trick(listed):
    """“derivative of log x … is 1/x”, hence ∇P(τ|θ) = P(τ|θ) ∇ log P(τ|θ) for every τ."""
    x = torch.linspace(0.1, 5, 50, dtype=torch.float64, requires_grad=True)
    close(torch.autograd.grad(x.log().sum(), x)[0], 1 / x.detach())
    grad_log = gradients(listed, torch.ones_like(listed.traj.reward))
    close(jacobian(listed.probability(), listed.theta), listed.weight[:, None] * grad_log)


def test_log_prob_of_a_trajectory(listed):
    """“Log-Probability of a Trajectory”: log ρ_0 + Σ (log P + log π), read off the package's tables and policy."""
    traj, mdp = listed.traj, listed.env.finite
    s, a, s_next, ended = traj.state, traj.action, traj.state.roll(-1), torch.zeros(traj.steps, dtype=torch.bool)
    s_next[traj.last_row], ended[traj.last_row] = traj.last_state, traj.terminated
    same = (mdp.next_state[s, a] == s_next[:, None]) & (mdp.reward[s, a] == traj.reward[:, None])
    assert bool((same.sum(1) == 1).all()) and torch.equal(mdp.terminated[s, a][same], ended)
    p = mdp.probability[s, a][same]
    total = mdp.initial[s[traj.offsets[:-1]]].log() + per_episode(traj, p.log() + log_pi(listed.policy, traj))
    close(total, listed.probability().log())


def test_gradients_of_environment_functions_are_zero():
    """“no dependence on θ”: starts, outcomes and rewards follow one table under two θ, and carry no gradient."""
    made = [episodes(finite(), 4000, policy=finite(theta_seed=seed).policy) for seed in (0, 3)]
    assert torch.equal(*(t.state[t.offsets[:-1]] for t in made))
    for traj in made:
        seen, expected = [], []
        for s, a in itertools.product(range(S), range(A)):
            reward = traj.reward[(traj.state == s) & (traj.action == a)]
            seen += [int((reward == r).sum()) for _, _, r, _ in mdp_lists()[0][s][a]]
            expected += [len(reward) * p for p, *_ in mdp_lists()[0][s][a]]
        assert sum(seen) == traj.steps and not traj.reward.requires_grad
        assert chi_square(np.array(seen), np.array(expected)) > LEVEL
        assert chi_square(np.array(seen), np.roll(expected, 1)) < REJECTED


@pytest.mark.parametrize("form", [scores.FactoredScores, scores.FunctionalScores])
def test_grad_log_prob_of_a_trajectory(world, form):
    """“Grad-Log-Prob of a Trajectory”: the environment's terms cancel and Σ_t z_t is left."""
    if world.dynamics is None:
        (w, c, log_std), (s, a) = world.theta, (world.traj.obs, world.traj.action)
        density = -((a - s @ w.T - c) / log_std.exp()).square() / 2 - log_std - np.log(2 * np.pi) / 2
        log_rho = torch.where((s[::2] == STARTS[0]).all(1), *START_PROBABILITY.log())
        log_p = log_rho + per_episode(world.traj, density.sum(1))
    else:
        log_p = world.probability().log()
    close(gradients(world, torch.ones_like(world.traj.reward), form), jacobian(log_p, world.theta))


def test_derivation_for_basic_policy_gradient(world):
    """“Putting it all together”: ∇ E R = Σ R ∇P = E Σ_t z_t R, and the policy gradient theorem."""
    truth = world.policy_gradient()  # in the Gaussian world through the actions, not through the score
    close(mean(world, "total_return"), truth)
    if world.dynamics is not None:
        close(world.returns() @ jacobian(world.probability(), world.theta), truth)
        close(grad_of(world, world.policy), truth)


@pytest.mark.parametrize("world", [finite(), gaussian()], ids=["finite", "gaussian"])
def test_estimate_it_with_a_sample_mean(world):
    """“estimate it with a sample mean”: ĝ is the double sum, centred at ∇J, with E ‖ĝ_N − ∇J‖² = variance / N."""
    traj, double_sum = episodes(world, 20), 0.0
    for tau in range(20):
        rows = traj.episode == tau
        for o, a in zip(traj.obs[rows], traj.action[rows], strict=True):
            z = flat(torch.autograd.grad(log_prob(world.policy(o[None]), a[None]).sum(), world.theta))
            double_sum = double_sum + z * traj.reward[rows].sum() / 20
    close(g_hat(world.policy, traj, weights("total_return", traj)), double_sum)

    size, blocks = 300, 100
    made = reference.blocks(
        Cores(world.env, world.policy, scores.FactoredScores(world.policy), torch.float64, torch.device("cpu")),
        estimators.make("total_return"), None, Layout(size * blocks, blocks, size), Streams(1), 1.0,
    ).pool("total_return", "J_1", "")  # fmt: skip
    truth, centred = world.policy_gradient(), g(world, "total_return") - mean(world, "total_return")
    spectrum, basis = torch.linalg.eigh(centred.T @ (world.weight[:, None] * centred))
    live = spectrum > 1e-9
    for center, believed in ((truth, True), (0.8 * truth, False)):
        z = (torch.as_tensor(made.grad) - center) @ basis[:, live] * (made.n / spectrum[live]).sqrt()
        p = stats.chi2.sf(float(z @ z), int(live.sum()))
        assert p > LEVEL if believed else p < REJECTED
    error = float((torch.as_tensor(made.block_mean) - truth).square().sum(1).mean())
    spread = float((2 * spectrum.square().sum() / blocks).sqrt())
    for trajectories, believed in ((size, True), (2 * size, False)):  # twice as many would have half the error
        assert (abs(error * trajectories - float(spectrum.sum())) < stats.norm.isf(LEVEL / 2) * spread) == believed


# ---- Implementing the Simplest Policy Gradient


def test_samples_actions_based_on_probabilities():
    """“samples actions based on probabilities”: categorical and Gaussian draws follow π, one observation gives one action."""
    world, n, generator = finite("mlp"), 20_000, torch_generator(np.random.SeedSequence(2))
    assert sample(world.policy(torch.tensor([1])), generator).item() in range(A)
    drawn = sample(world.policy(torch.arange(S).repeat_interleave(n)), generator).view(S, n)
    for p, actions in zip(world.pi().detach(), drawn, strict=True):
        seen = np.bincount(actions, minlength=A)
        assert chi_square(seen, n * p.numpy()) > LEVEL
        assert chi_square(seen, n * (0.9 * p + 0.1 * p.flip(0)).numpy()) < REJECTED
    (w, c, log_std), s = gaussian().theta, STARTS[:1].repeat(n, 1)
    noise = ((sample(gaussian().policy(s), generator) - s @ w.T - c) / log_std.exp()).detach().T.numpy()
    assert stats.pearsonr(*noise).pvalue > LEVEL
    for x in noise:
        assert stats.kstest(x, "norm").pvalue > LEVEL and stats.kstest(1.1 * x, "norm").pvalue < REJECTED


def test_softmax_function_of_the_logits(listed):
    """“Softmax function of the logits”: p_j = exp(x_j) / Σ_i exp(x_i)."""
    close(values.policy_table(listed.policy, listed.env.finite), listed.pi())
    close(log_pi(listed.policy, listed.traj), listed.pi().log()[listed.traj.state, listed.traj.action])
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(log_prob(Categorical(logits=x), torch.full((7,), 3)).exp(), x[:, 3].exp() / x.exp().sum(1))


@pytest.mark.parametrize("phi", ["total_return", "reward_to_go"])
def test_loss_gradient_equals_policy_gradient(world, phi):
    """“negative gradient of performance”: exactly, over current data, and −ĝ on a batch; with the weights of both codes."""
    expected = -world.weight @ per_episode(world.traj, log_pi(world.policy, world.traj) * weights(phi, world.traj))
    close(flat(torch.autograd.grad(expected, world.theta)), -world.policy_gradient())
    traj = episodes(world, 30)
    on_batch = loss(world.policy, traj, weights(phi, traj))
    close(flat(torch.autograd.grad(on_batch, world.theta)), -g_hat(world.policy, traj, weights(phi, traj)))


def test_data_distribution_depends_on_the_parameters():
    """“sampled on the most recent policy”: data of another θ give another vector, unless every τ is reweighted."""
    old, new = finite(), finite(theta_seed=3)
    each, truth = g(new, "total_return"), new.policy_gradient()
    close((old.weight * (new.weight / old.weight)) @ each, truth)
    assert float((old.mean(each) - truth).norm()) > 0.5 * float(truth.norm())


def test_loss_does_not_measure_performance():
    """“not … at all, even in expectation”: for many pairs of θ the lower expected loss goes with the lower J."""
    worlds = [finite(theta_seed=seed) for seed in range(12)]
    j, losses = [j_of(w, w.policy) for w in worlds], []
    for w in worlds:
        each = per_episode(w.traj, log_pi(w.policy, w.traj) * weights("total_return", w.traj))
        losses.append(float(-w.weight @ each.detach()))
    wrong = [(losses[a] < losses[b]) == (j[a] < j[b]) for a, b in itertools.combinations(range(12), 2)]
    assert np.mean(wrong) > 0.25  # 0 would be a measure of performance, 1/2 is chance


def test_no_more_connection_to_performance():
    """“after that first step”: even with all data of θ_0 the loss at θ_1 no longer has the gradient −∇J(θ_1)."""
    world, truth = finite(), finite().policy_gradient()
    for step, connected in ((0.0, True), (1.0, False)):
        policy = moved(world.policy, step * truth)
        each = per_episode(world.traj, log_pi(policy, world.traj) * weights("total_return", world.traj))
        gap = flat(torch.autograd.grad(-world.weight @ each, list(policy.parameters()))) + grad_of(world, policy)
        assert float(gap.norm()) < 1e-12 if connected else float(gap.norm()) > 0.1 * float(truth.norm())


def test_send_this_loss_to_minus_infinity():
    """“performance could crater … usually will”: from a policy better than chance, with returns below zero."""
    world = finite(shift=-1.0)
    good, worse = world.policy, 0
    for _ in range(20):
        good = moved(good, grad_of(world, good))
    assert j_of(world, good) > j_of(world, world.policy) + 0.3
    for seed in range(8):
        policy, losses = copy.deepcopy(good), []
        traj = episodes(world, 20, seed, policy)
        optimizer, returns = torch.optim.SGD(policy.parameters(), lr=1.0), weights("total_return", traj)
        for _ in range(151):
            optimizer.zero_grad()
            value = loss(policy, traj, returns)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
        falls = np.diff(losses[::50])
        assert (np.diff(losses[50:]) < 0).all() and falls[2] < 0.9 * falls[1] < -20  # a steady fall has no floor
        worse += j_of(world, policy) < j_of(world, good) - 0.3
    assert worse >= 6


def test_sum_log_probs_of_action_components():
    """“sum up the log probabilities”: (batch, act_dim) becomes (batch,), the log density of the action vector."""
    joint, action = gaussian().policy(STARTS), STARTS + 0.3
    separate = joint.base_dist
    assert separate.log_prob(action).shape == (2, 2)
    m, cov = separate.loc.detach().numpy(), np.diag(separate.scale[0].detach().numpy() ** 2)
    truth = [stats.multivariate_normal.logpdf(action[i].numpy(), m[i], cov) for i in range(2)]
    for distribution in (joint, separate):
        assert log_prob(distribution, action).shape == (2,)
        close(log_prob(distribution, action), torch.tensor(truth))


def test_one_epoch_of_training():
    """“experience collection … single policy gradient update”: the step is θ + α ĝ, and epochs raise J."""
    world, policy = finite(), copy.deepcopy(finite().policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    for epoch in range(20):
        traj = episodes(world, 200, epoch, policy)
        returns, wanted = weights("total_return", traj), theta(policy)
        wanted += 0.5 * g_hat(policy, traj, returns)
        optimizer.zero_grad()
        loss(policy, traj, returns).backward()
        optimizer.step()
        close(theta(policy), wanted)
    assert j_of(world, policy) > j_of(world, world.policy) + 0.3


def test_backward_pass_accumulates_fresh_gradients():
    """“clear the gradient buffers”: without it two passes add up; the package's scores leave the buffers alone."""
    policy, traj = copy.deepcopy(finite("mlp").policy), episodes(finite("mlp"), 10)
    for times in (1, 2):
        loss(policy, traj, weights("total_return", traj)).backward()
        found = g_hat(policy, traj, weights("total_return", traj))
        close(flat([p.grad for p in policy.parameters()]), -times * found)
