"""Spinning Up in Deep RL, Part 3 (Achiam, 2018), continued: which weights Φ_t the policy gradient may have.

From "Expected Grad-Log-Prob Lemma" to "Other Forms of the Policy Gradient" (the recap states nothing new); what comes
before, and the means, are in ``test_source_text``.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from exact_means import (
    CHOICES,
    batch,
    close,
    episodes,
    every_action,
    expected_scores,
    g,
    given,
    gradients,
    log_pi,
    mean,
    moved,
    variance,
    weights,
)
from tiny_gaussian import STARTS, gaussian
from tiny_world import H, S, finite, flat, jacobian, mdp_lists, rewards_from

from varlab import envs, estimators, storage, values
from varlab.estimators import Batch, weight
from varlab.policies import log_prob
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Values


@pytest.fixture(params=["table", "mlp"])
def listed(request):
    """The finite world."""
    return finite(request.param)


@pytest.fixture(params=["table", "mlp", "gaussian"])
def world(request):
    return gaussian() if request.param == "gaussian" else finite(request.param)


# ---- Expected Grad-Log-Prob Lemma


def test_all_probability_distributions_are_normalized(world):
    """“normalized”: ∫ P_θ = 1, and the gradient of both sides is 0 = ∫ ∇P_θ."""
    if world.dynamics is not None:
        total = values.policy_table(world.policy, world.env.finite).sum(1)
    else:
        d, grid = world.policy(STARTS[:1]).base_dist, torch.linspace(-9, 9, 121, dtype=torch.float64)
        a = (d.loc + d.scale * torch.cartesian_prod(grid, grid)).detach()  # a trapezoid is exact to rounding for a bell
        cell = (grid[1] - grid[0]) ** 2 * d.scale.prod().detach()
        total = (log_prob(world.policy(STARTS[:1].expand(len(a), 2)), a).exp() * cell).sum()[None]
    close(total, 1.0)
    close(jacobian(total, world.theta), 0.0)


def test_expected_grad_log_prob_lemma(world):
    """“EGLP Lemma”: E ∇ log P_θ(x) = 0 for actions and for whole trajectories, not for each x nor under another law."""
    _, _, p = every_action(world)
    each = gradients(world, torch.ones_like(world.traj.reward))
    close(expected_scores(world, 1.0), 0.0)
    close(world.mean(each), 0.0)
    assert float(each.norm(dim=1).min()) > 1e-3
    assert float(expected_scores(world, 1 / p / p.shape[1]).norm()) > 1e-2


# ---- Don't Let the Past Distract You


def test_pushes_up_log_probs_in_proportion(world):
    """“in proportion to R(τ)”: a step along z R moves log π(a|s) by α R ‖z‖²."""
    traj, h = world.traj, 1e-6
    for i in (0, len(traj) // 2, len(traj) - 1):
        row = int(traj.offsets[i])
        only = torch.zeros_like(traj.reward)
        only[row] = weights("total_return", traj)[row]
        step = h * gradients(world, only)[i]
        z = flat(torch.autograd.grad(log_pi(world.policy, traj)[row], world.theta))
        change = (log_pi(moved(world.policy, step), traj) - log_pi(moved(world.policy, -step), traj))[row].detach()
        assert float(change) / (2 * h) == pytest.approx(float(world.returns()[i] * (z @ z)), rel=1e-5)


def test_past_rewards_have_zero_mean(world):
    """“zero mean, but nonzero variance”: every pair of a step and an earlier reward, and their sum R − R̂_t."""
    traj, past = world.traj, torch.zeros_like(world.traj.reward)
    reward = traj.padded(traj.reward)[traj.episode]  # [M, T], all rewards of a row's episode
    for t, u in itertools.product(range(traj.horizon), repeat=2):
        term = torch.where(traj.time == t, reward[:, u], 0.0)
        each = gradients(world, term)
        assert world.variance(each) > 1e-3
        if u < t:
            past += term
            close(world.mean(each), 0.0)
        else:
            assert float(world.mean(each).norm()) > 1e-4  # rewards that follow do matter
    close(weights("total_return", traj) - weights("reward_to_go", traj), past)
    assert world.variance(gradients(world, past)) > 1e-2


def test_reward_to_go_policy_gradient(world):
    """“can also be expressed by” the rewards that come after: the same mean; one reward fewer, and it is not."""
    close(mean(world, "reward_to_go"), world.policy_gradient())
    late = world.mean(gradients(world, rewards_from(world.traj, skip=1)))
    assert float((late - world.policy_gradient()).norm()) > 1e-2


def test_rewards_obtained_after_they_are_taken(world):
    """“no bearing on how good that action was”: a changed first reward moves no later reward-to-go."""
    changed = copy.copy(world.traj)
    object.__setattr__(changed, "reward", changed.reward + 100.0 * (changed.time == 0))
    close(weights("reward_to_go", changed) - weights("reward_to_go", world.traj), 100.0 * (changed.time == 0), 1e-11)
    close(weights("total_return", changed) - weights("total_return", world.traj), 100.0, 1e-11)


def test_sum_of_rewards_after_a_point(world):
    """“called the reward-to-go”: Σ_{t' ≥ t} r_t', with γ^{t'−t} where γ < 1."""
    for traj, gamma in itertools.product((world.traj, episodes(world, 40)), (1.0, 0.8)):
        close(Batch(traj, Values(), gamma).reward_to_go, rewards_from(traj, gamma=gamma))


def test_reduce_the_number_of_sample_trajectories(world):
    """“just add noise”: for an expected squared error of 0.01 the reward-to-go needs fewer trajectories in these worlds."""
    total, to_go = (variance(world, phi) / 0.01 for phi in ("total_return", "reward_to_go"))
    assert to_go < 0.85 * total


# ---- Baselines in Policy Gradients


def test_function_b_which_only_depends_on_state(world):
    """“only depends on state”: E_a [z b(s)] = 0 in every state; b of state and action is no baseline."""
    s, a, _ = every_action(world)
    b = torch.sin(3.0 * s.double().reshape(len(s), -1).sum(1) + 1.0)[:, None]
    close(expected_scores(world, 10.0 * b), 0.0)
    of_action = b * a.double().reshape(*a.shape[:2], -1).sum(2)
    assert float(expected_scores(world, of_action).norm(dim=1).min()) > 1e-3


def test_add_or_subtract_any_number_of_terms(world):
    """“without changing it in expectation”: any user's function of state and time, and the fitted baselines."""
    spread = set()
    for scale in (-1.0, 1.0, 3.0):
        phi = estimators.Baseline(lambda o, t, c=scale: c * (7.0 - 2.0 * o.double().reshape(len(o), -1).sum(1) * t))
        each = gradients(world, weight(phi, batch(world), True))
        close(world.mean(each), world.policy_gradient())
        spread.add(round(world.variance(each), 6))
    assert len(spread) == 3
    for name in ("constant_baseline", "time_baseline", "value_baseline"):
        close(mean(world, name), world.policy_gradient())


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_on_policy_value_function(listed, gamma):
    """“average return … if it starts in state s_t”: the mean over all τ through s_t, and J of a world begun there."""
    mdp = listed.env.finite
    exact = values.ExactValues.of(mdp, listed.policy, gamma, H)
    close(exact.v[:H], given(listed, rewards_from(listed.traj, gamma=gamma), False))
    for t, s in itertools.product(range(H), range(S)):
        start = torch.eye(S, dtype=torch.float64)[s]
        begun = envs.FiniteMDP(mdp.probability, mdp.next_state, mdp.reward, mdp.terminated, start)
        close(values.expected_return(begun, listed.policy, gamma, H - t), exact.v[t, s])


def test_desirable_effect_of_reducing_variance(world):
    """“reducing variance”: b = V lowers it in these worlds."""
    assert variance(world, "value_baseline") < 0.95 * variance(world, "reward_to_go")


def test_it_should_feel_neutral():
    """“if an agent gets what it expected”: Φ has mean 0 given s_t, and is 0 where every return is the expected one."""
    phi = weight(estimators.make("value_baseline"), batch(finite()), True)
    close(given(finite(), phi, False), 0.0)
    lists = [[[(p, s, 1.0, False) for p, s, *_ in outcomes] for outcomes in row] for row in mdp_lists()[0]]
    env = envs.environment(envs.FiniteMDP.from_lists(lists, mdp_lists()[1]), H, "every step pays one")
    traj = rollout(env, finite().policy, 50, np.random.SeedSequence(0))
    found = values.ExactValues.of(env.finite, finite().policy, 1.0, H)(traj, frozenset("v"))
    close(weight(estimators.make("value_baseline"), Batch(traj, found, 1.0), True), 0.0)


def critic(traj, **settings):
    """V_φ linear in the one-hot state, whose best φ is known in closed form; and its targets."""
    options = values.CriticSettings(**{"hidden": (), "minibatch": 10**6, "lr": 0.02, "epochs": 300, **settings})
    goal = Batch(traj, Values(), 1.0).reward_to_go
    return values.fit(finite().env, traj, goal, options, Streams(0).sequence("fit"), storage.digest, torch.float64), goal


def test_minimize_a_mean_squared_error_objective():
    """“mean-squared-error”: the minimiser is the average reward-to-go of each state's visits."""
    traj = episodes(finite(), 1000)
    fitted, goal = critic(traj)
    best = torch.stack([goal[traj.state == s].mean() for s in range(S)])
    close(fitted.network.value(torch.arange(S)), best, 1e-4)
    assert fitted.losses[1] == pytest.approx(float((best[traj.state] - goal).square().mean()), rel=1e-6)
    assert fitted.losses[0] > 1.01 * fitted.losses[1]


def test_starting_from_the_previous_value_parameters():
    """“starting from … φ_{k−1}”: one step on the next policy's data moves φ_{k−1} against the gradient of that error."""
    previous, _ = critic(episodes(finite(), 500))
    traj = episodes(finite(), 500, seed=1, policy=finite(theta_seed=3).policy)
    fitted, goal = critic(traj, init=previous.state_dict(), epochs=1, lr=1e-2)
    net = copy.deepcopy(previous.network).requires_grad_(True)
    error = (net.value(traj.obs) - goal).square().mean()
    assert fitted.losses[0] == pytest.approx(float(error.detach()), abs=1e-12)
    start = [net.v[0].weight, net.v[0].bias]
    for name, phi, slope in zip(("v.0.weight", "v.0.bias"), start, torch.autograd.grad(error, start), strict=True):
        slope = slope / net.scale**2  # Adam's first step is the sign of the gradient, but for its 1e-8
        close(fitted.state_dict()[name], (phi - 1e-2 * slope / (slope.abs() + 1e-8)).detach(), 1e-10)
    assert fitted.losses[1] < fitted.losses[0]


# ---- Other Forms of the Policy Gradient


@pytest.mark.parametrize("phi", CHOICES)
def test_policy_gradient_has_the_general_form(world, phi):
    """“the general form” E Σ_t z_t Φ_t: every Φ of the text, and of the paper it points to, has the mean ∇J."""
    close(mean(world, phi), world.policy_gradient())
    assert variance(world, phi) > 0.01


def test_all_these_choices_same_mean_different_variances(world):
    """“the same expected value … despite having different variances”; the comparison does see another objective."""
    choices = ["total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "q_value", "advantage"]
    for phi in choices:
        close(mean(world, phi), mean(world, "total_return"))
    variances = np.sort([variance(world, phi) for phi in choices])
    assert (np.diff(variances) > 1e-4 * variances[1:]).all()
    assert float((mean(world, "total_return", 0.8) - mean(world, "total_return")).norm()) > 1e-3


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_action_value_function_is_also_valid(listed, gamma):
    """“is also valid”: Q is the average return after (s_t, a_t), and Φ = Q has mean ∇J."""
    q = values.ExactValues.of(listed.env.finite, listed.policy, gamma, H).q
    close(q, given(listed, rewards_from(listed.traj, gamma=gamma), True))
    close(mean(listed, "q_value", gamma), listed.policy_gradient(gamma))


def test_advantage_is_q_with_value_function_baseline(world):
    """“how much better or worse … on average”: A = Q − V, Σ_a π A = 0, and Φ = A is Φ = Q less a baseline."""
    found, traj = batch(world), world.traj
    a, q = (weight(estimators.make(name), found, True) for name in ("advantage", "q_value"))
    close(q - a, found.values.v)
    close(world.mean(g(world, "q_value") - g(world, "advantage")), 0.0)
    if world.dynamics is not None:
        to_go = rewards_from(traj)
        better = given(world, to_go, True) - given(world, to_go, False)[..., None]
        close(a, better[traj.time, traj.state, traj.action])
        close((world.pi().detach() * better).sum(2), 0.0)


def test_different_ways_of_estimating_the_advantage(world):
    """“approximating the advantage function”: δ_t, two steps and GAE in loops; δ_t has the mean A_t given (s_t, a_t)."""
    gamma, lam, found = 0.8, 0.7, batch(world, 0.8)
    by_loops = {"td_residual": [], "n_step(k=2)": [], f"gae(lam={lam})": []}
    for i, j in itertools.pairwise(found.traj.offsets.tolist()):
        r, v = found.traj.reward[i:j].tolist(), [*found.values.v[i:j].tolist(), 0.0]  # nothing follows the end
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(j - i)]
        by_loops["td_residual"] += delta
        for t in range(j - i):
            k = min(2, j - i - t)
            by_loops["n_step(k=2)"].append(sum(gamma**u * r[t + u] for u in range(k)) + gamma**k * v[t + k] - v[t])
            by_loops[f"gae(lam={lam})"].append(sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, j - i)))
    for phi, wanted in by_loops.items():
        close(estimators.parse(phi).phi(found), torch.tensor(wanted, dtype=torch.float64))
    for one, other in (("gae(lam=1.0)", "value_baseline"), ("gae(lam=0.0)", "td_residual"), ("n_step(k=1)", "td_residual")):
        close(estimators.parse(one).phi(found), estimators.parse(other).phi(found))
    if world.dynamics is not None:
        exact = values.ExactValues.of(world.env.finite, world.policy, gamma, H)
        close(given(world, found.td_residual, True), exact.q - exact.v[:H, :, None])
