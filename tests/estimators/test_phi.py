"""Every Φ against a plain Python loop written from its formula; reductions; cuts; fitted baselines."""

from dataclasses import replace

import pytest
import torch
from finite_worlds import random_mdp

from varlab import envs, estimators, policies
from varlab.checks import InputError
from varlab.estimators import AT_CUT, Baseline, Batch, base, make, weight
from varlab.estimators.bootstrapped import GAE
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Trajectories, Values
from varlab.values import targets

HORIZON = 12
GAMMAS = (1.0, 0.9, 0.0)


def make_batch(gamma, cut=HORIZON, at_cut="bootstrap", seed=0, n=40):
    """Ragged episodes (lengths 1 … cut, both ends) with random rewards, values and action values."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, cut + 1, (n,), generator=generator)
    length[:4] = torch.tensor([1, cut, cut, 1])
    terminated = (length < cut) | (torch.rand(n, generator=generator) < 0.4)
    terminated[1], terminated[2] = False, True
    rows = int(length.sum())

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    traj = Trajectories(
        obs=normal(rows, 2),
        action=torch.zeros(rows, dtype=torch.int64),
        reward=normal(rows),
        offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        terminated=terminated,
        truncated=~terminated,
        last_obs=normal(n, 2),
        horizon=HORIZON,
    )
    values = Values(v=normal(rows), v_last=normal(n), v_stale=normal(n), q=normal(rows))
    return Batch(traj, values, gamma, at_cut)


class Episode:
    """One episode as plain lists, and what follows it under the rule at the cut."""

    def __init__(self, batch, i):
        traj, values = batch.traj, batch.values
        a, b = int(traj.offsets[i]), int(traj.offsets[i + 1])
        self.T, self.gamma = b - a, batch.gamma
        self.r, self.v, self.q = (x[a:b].tolist() for x in (traj.reward, values.v, values.q))
        self.end = 0.0
        if bool(traj.truncated[i]) and self.T < traj.horizon:
            rule = {"terminal": 0.0, "bootstrap": float(values.v_last[i]), "wrong_state": float(values.v_stale[i])}
            self.end = rule[batch.at_cut]

    def value(self, t):
        """V_t(s_t) on the way, and what the rule puts after the last step."""
        return self.v[t] if t < self.T else self.end

    def reward_to_go(self, t):
        return sum(self.gamma ** (u - t) * self.r[u] for u in range(t, self.T)) + self.gamma ** (self.T - t) * self.end

    def n_step(self, t, k):
        stop = min(t + k, self.T)
        rewards = sum(self.gamma ** (u - t) * self.r[u] for u in range(t, stop))
        return rewards + self.gamma ** (stop - t) * self.value(stop) - self.v[t]

    def delta(self, t):
        return self.r[t] + self.gamma * self.value(t + 1) - self.v[t]

    def gae(self, t, lam):
        return sum((self.gamma * lam) ** (u - t) * self.delta(u) for u in range(t, self.T))


#: Φ_t at step t of an episode; b is what a fitted baseline holds.
LOOPS = {
    "total_return": lambda e, t: e.reward_to_go(0),
    "reward_to_go": lambda e, t: e.reward_to_go(t),
    "value_baseline": lambda e, t: e.reward_to_go(t) - e.v[t],
    "q_value": lambda e, t: e.q[t],
    "advantage": lambda e, t: e.q[t] - e.v[t],
    "td_residual": lambda e, t: e.delta(t),
    "n_step(k=1)": lambda e, t: e.n_step(t, 1),
    "n_step(k=3)": lambda e, t: e.n_step(t, 3),
    "n_step(k=5)": lambda e, t: e.n_step(t, 5),
    "n_step(k=100)": lambda e, t: e.n_step(t, 100),
    "gae(lam=0.0)": lambda e, t: e.gae(t, 0.0),
    "gae(lam=0.3)": lambda e, t: e.gae(t, 0.3),
    "gae(lam=0.95)": lambda e, t: e.gae(t, 0.95),
    "gae(lam=1.0)": lambda e, t: e.gae(t, 1.0),
    # Where θ itself acts; with ratios in test_off_policy.py.
    "importance_weighted": lambda e, t: e.reward_to_go(t),
    "importance_weighted(form='trajectory')": lambda e, t: e.reward_to_go(t),
    "importance_weighted(base='value_baseline')": lambda e, t: e.reward_to_go(t) - e.v[t],
    "surrogate(lam=0.3)": lambda e, t: e.gae(t, 0.3),
    "clipped_surrogate(lam=0.3)": lambda e, t: e.gae(t, 0.3),
}


#: Members whose loops go over nodes, in files of their own.
OVER_NODES = {
    "all_action", "state_action_control_variate", "trajectory_control_variate", "doubly_robust", "factorised_baseline", "q_prop",
}  # fmt: skip


def loop(batch, phi, discount_weighting, weighted=True):
    out = []
    for i in range(len(batch.traj)):
        episode = Episode(batch, i)
        for t in range(episode.T):
            out.append((batch.gamma**t if discount_weighting and weighted else 1.0) * phi(episode, t))
    return torch.tensor(out, dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def phi(text, batch, discount_weighting=False):
    return weight(estimators.parse(text), batch, discount_weighting)


@pytest.mark.parametrize("discount_weighting", (True, False))
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("text", LOOPS)
def test_phi_is_its_formula(text, gamma, discount_weighting):
    batch = make_batch(gamma)
    expected = loop(batch, LOOPS[text], discount_weighting, weighted=text != "total_return")
    close(phi(text, batch, discount_weighting), expected)


@pytest.mark.parametrize("at_cut", AT_CUT)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("text", LOOPS)
def test_phi_at_a_cut_is_its_formula(text, gamma, at_cut):
    """L < H: an episode alive at the cut is followed by 0, by V_L(s_L), or by V_L(s_{L−1})."""
    batch = make_batch(gamma, cut=5, at_cut=at_cut)
    close(phi(text, batch), loop(batch, LOOPS[text], False))


def test_every_registered_phi_has_a_loop_or_is_fitted():
    looped = {text.partition("(")[0] for text in LOOPS}
    fitted = {name for name in estimators.REGISTRY if estimators.make(name).fits}
    elsewhere = {name for name, cls in estimators.REGISTRY.items() if issubclass(cls, estimators.NodeEstimator)}
    assert elsewhere == OVER_NODES, "write a loop over the nodes for the new Φ, as in test_all_action.py"
    batchwise = {name for name, cls in estimators.REGISTRY.items() if cls.batchwise}
    groups = {"leave_one_out", "group_mean", "group_normalised", "james_stein"}
    others = {"normalised_advantage", "step_mean", "in_sample_baseline"}
    assert batchwise == groups | others, "write a loop over units, as in test_group.py"
    assert looped | fitted | elsewhere | batchwise == set(estimators.REGISTRY), "write a naive loop twin for the new Φ"


@pytest.mark.parametrize("gamma", (1.0, 0.9))
@pytest.mark.parametrize("text", LOOPS)
def test_without_a_cut_the_three_rules_are_one(text, gamma):
    terminal, bootstrap, wrong = (phi(text, make_batch(gamma, at_cut=rule)) for rule in AT_CUT)
    assert torch.equal(terminal, bootstrap) and torch.equal(terminal, wrong)


@pytest.mark.parametrize("text", ("reward_to_go", "total_return", "td_residual", "gae(lam=0.95)", "n_step(k=3)"))
def test_at_a_cut_the_three_rules_differ_and_only_where_the_episode_was_alive(text):
    batches = [make_batch(0.9, cut=5, at_cut=rule) for rule in AT_CUT]
    terminal, bootstrap, wrong = (phi(text, batch) for batch in batches)
    cut = batches[0].traj.truncated[batches[0].traj.episode]
    assert bool(cut.any()) and bool((~cut).any())
    assert torch.equal(terminal[~cut], bootstrap[~cut]) and torch.equal(terminal[~cut], wrong[~cut])
    ends = batches[0].traj.last_row[batches[0].traj.truncated]
    assert float((terminal - bootstrap)[ends].abs().min()) > 0 and float((bootstrap - wrong)[ends].abs().min()) > 0


@pytest.mark.parametrize("text", ("q_value", "advantage"))
def test_the_rule_at_a_cut_does_not_touch_what_reads_no_reward(text):
    terminal, bootstrap, wrong = (phi(text, make_batch(0.9, cut=5, at_cut=rule)) for rule in AT_CUT)
    assert torch.equal(terminal, bootstrap) and torch.equal(terminal, wrong)


def test_termination_at_the_cut_is_followed_by_nothing():
    """An episode that ends exactly at t = L is terminated, not cut: no value is added, whatever v_last holds."""
    batch = make_batch(0.9, cut=5, at_cut="bootstrap")
    i = 2
    assert bool(batch.traj.terminated[i]) and int(batch.traj.length[i]) == 5
    row = int(batch.traj.last_row[i])
    assert float(batch.reward_to_go[row]) == float(batch.traj.reward[row])
    assert float(batch.td_residual[row]) == float(batch.traj.reward[row] - batch.values.v[row])


@pytest.mark.parametrize("at_cut", AT_CUT)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("cut", (5, HORIZON))
def test_reductions(cut, gamma, at_cut):
    batch = make_batch(gamma, cut=cut, at_cut=at_cut)
    value = phi("value_baseline", batch)
    close(phi("gae(lam=1.0)", batch), value)
    for k in (cut, cut + 1, 10**6):
        close(phi(f"n_step(k={k})", batch), value)
    close(phi("gae(lam=0.0)", batch), phi("td_residual", batch))
    close(phi("n_step(k=1)", batch), phi("td_residual", batch))
    close(phi("value_baseline", batch) + batch.values.v, phi("reward_to_go", batch))
    close(phi("advantage", batch), phi("q_value", batch) - batch.values.v)
    first = batch.traj.offsets[:-1]
    close(phi("total_return", batch)[first], phi("reward_to_go", batch)[first])


@pytest.mark.parametrize("cut", (5, HORIZON))
def test_with_values_zero_everything_is_plain(cut):
    given = make_batch(0.9, cut=cut)
    zero = {name: torch.zeros_like(getattr(given.values, name)) for name in ("v", "v_last", "v_stale")}
    batch = Batch(given.traj, replace(given.values, **zero), 0.9, "bootstrap")
    plain = phi("reward_to_go", Batch(given.traj, Values(), 0.9, "terminal"))
    for text in ("reward_to_go", "value_baseline", "gae(lam=1.0)", f"n_step(k={cut})"):
        close(phi(text, batch), plain)
    assert torch.equal(phi("td_residual", batch), given.traj.reward)
    assert torch.equal(phi("advantage", batch), phi("q_value", batch))


def test_lambda_and_gamma_enter_the_tail_only_as_their_product():
    """Where δ is given, GAE(γ, λ) sees γλ alone: (0.9, 0.5) and (0.5, 0.9) agree on equal δ."""
    batch = make_batch(0.9)
    delta = batch.td_residual
    close(estimators.tail_sum(batch.traj, delta, 0.45), phi("gae(lam=0.5)", batch))
    other = Batch(batch.traj, batch.values, 0.5)
    object.__setattr__(other, "td_residual", delta)  # the same δ under another γ
    close(phi("gae(lam=0.9)", other), phi("gae(lam=0.5)", batch))


def test_gae_is_the_weighted_mean_of_n_step_returns():
    """(1 − λ) Σ_k λ^{k−1} Â^{(k)}, equation 16 of Schulman et al. (2016), all k beyond T being equal."""
    batch = make_batch(0.9, cut=5)
    lam, last = 0.7, 60
    total = sum((1 - lam) * lam ** (k - 1) * phi(f"n_step(k={k})", batch) for k in range(1, last))
    close(total + lam ** (last - 1) * phi("n_step(k=100)", batch), phi("gae(lam=0.7)", batch))


def test_total_return_is_not_weighted_and_weights_at_gamma_one_are_one():
    batch = make_batch(0.9)
    assert torch.equal(phi("total_return", batch, True), phi("total_return", batch, False))
    assert not torch.equal(phi("reward_to_go", batch, True), phi("reward_to_go", batch, False))
    one = make_batch(1.0)
    for text in LOOPS:
        assert torch.equal(phi(text, one, True), phi(text, one, False))


def test_nothing_that_a_phi_reads_is_changed():
    batch = make_batch(0.0, cut=5)
    kept = [x.clone() for x in (batch.traj.reward, batch.values.v, batch.values.q, batch.values.v_last)]
    for text in LOOPS:
        phi(text, batch, True)
    for before, after in zip(kept, (batch.traj.reward, batch.values.v, batch.values.q, batch.values.v_last), strict=True):
        assert torch.equal(before, after)


def test_one_batch_is_its_episodes_one_by_one():
    batch = make_batch(0.9, cut=5)
    traj, values = batch.traj, batch.values
    for text in LOOPS:
        together = phi(text, batch)
        for i in range(len(traj)):
            a, b = int(traj.offsets[i]), int(traj.offsets[i + 1])
            single = replace(
                traj, obs=traj.obs[a:b], action=traj.action[a:b], reward=traj.reward[a:b], offsets=torch.tensor([0, b - a]),
                terminated=traj.terminated[i : i + 1], truncated=traj.truncated[i : i + 1], last_obs=traj.last_obs[i : i + 1],
            )  # fmt: skip
            one = replace(
                values, v=values.v[a:b], q=values.q[a:b], v_last=values.v_last[i : i + 1], v_stale=values.v_stale[i : i + 1]
            )
            close(phi(text, Batch(single, one, 0.9, "bootstrap")), together[a:b], 1e-14)


# ---- Baselines fitted on the critic stream -------------------------------------------------------------------------------


def streams(gamma):
    env = envs.environment(random_mdp(1), 6)
    policy = policies.make("softmax_table", env).double()
    critic, other = (rollout(env, policy, 30, Streams(0).sequence(name)) for name in ("critic", "rollout"))
    return Batch(critic, Values(), gamma), Batch(other, Values(), gamma)


def loops(batch):
    """[(t, G_t)] of every step, by loops."""
    bounds, rewards = batch.traj.offsets.tolist(), batch.traj.reward.tolist()
    pairs = []
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        for t in range(b - a):
            pairs.append((t, sum(batch.gamma ** (u - t) * rewards[a + u] for u in range(t, b - a))))
    return pairs


@pytest.mark.parametrize("gamma", GAMMAS)
def test_constant_baseline_is_the_mean_over_the_steps_of_the_critic_stream(gamma):
    critic, other = streams(gamma)
    pairs = loops(critic)
    b = sum(g for _, g in pairs) / len(pairs)
    close(make("constant_baseline").fit(critic).phi(other), torch.tensor([g - b for _, g in loops(other)], dtype=torch.float64))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_time_baseline_is_the_mean_over_the_episodes_alive(gamma):
    critic, other = streams(gamma)
    by_time = {t: [g for u, g in loops(critic) if u == t] for t in range(6)}
    mean = {t: sum(gs) / len(gs) if gs else 0.0 for t, gs in by_time.items()}
    assert len({len(gs) for gs in by_time.values()}) > 1  # ragged: not every episode is alive at every t
    expected = torch.tensor([g - mean[t] for t, g in loops(other)], dtype=torch.float64)
    close(make("time_baseline").fit(critic).phi(other), expected)


def test_time_baseline_is_zero_where_the_critic_stream_never_was():
    critic, other = streams(1.0)
    keep = critic.traj.length <= 2
    assert bool(keep.any())
    index = keep.nonzero().flatten()
    rows = torch.cat([torch.arange(int(critic.traj.offsets[i]), int(critic.traj.offsets[i + 1])) for i in index])
    short = replace(
        critic.traj, obs=critic.traj.obs[rows], action=critic.traj.action[rows], reward=critic.traj.reward[rows],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), critic.traj.length[index].cumsum(0)]),
        terminated=critic.traj.terminated[index], truncated=critic.traj.truncated[index], last_obs=critic.traj.last_obs[index],
        state=None, last_state=None,
    )  # fmt: skip
    made = make("time_baseline").fit(Batch(short, Values(), 1.0)).phi(other)
    late = other.traj.time >= 2
    assert bool(late.any()) and torch.equal(made[late], other.reward_to_go[late])
    assert not torch.equal(made[~late], other.reward_to_go[~late])


def test_fitting_returns_a_new_estimator_and_others_fit_nothing():
    critic, _ = streams(1.0)
    plain = make("constant_baseline")
    fitted = plain.fit(critic)
    assert plain.fitted is None and fitted.fitted is not None and fitted.label == plain.label == "constant_baseline"
    gae = make("gae")
    assert gae.fit(critic) is gae


def test_user_baseline_sees_observation_and_time():
    _, other = streams(0.9)
    mine = Baseline(lambda obs, t: 10.0 * obs + t, called="mine")
    assert mine.label == "mine"
    expected = [g - 10.0 * s - t for (t, g), s in zip(loops(other), other.traj.obs.tolist(), strict=True)]
    close(mine.phi(other), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("b", (lambda obs, t: 3.0, lambda obs, t: torch.tensor(3), lambda obs, t: torch.full(obs.shape, 3.0)))
def test_user_baseline_may_be_a_number_or_of_another_dtype(b):
    _, other = streams(0.9)
    close(Baseline(b).phi(other), other.reward_to_go - 3.0)


def test_phi_of_a_wrong_shape_is_one_sentence():
    batch = make_batch(1.0)

    class Wrong(estimators.Estimator):
        name, formula, source = "wrong", "-", "-"

        def phi(self, batch):
            return batch.traj.reward[:-1]

    with pytest.raises(InputError, match=rf"One Φ_t for each of the {batch.traj.steps} steps was expected from wrong"):
        weight(Wrong(), batch, True)


# ---- grids


@pytest.mark.parametrize("numbers", (1, 10**6))
def test_a_grid_of_lambdas_is_every_lambda_by_itself(numbers, monkeypatch):
    """One pass over time for all λ, in pieces of any size, with weights γ^t and without; other Φ keep their places."""
    monkeypatch.setattr(targets, "GRID_NUMBERS", numbers)
    names = ["total_return", "gae(lam=0.0)", "td_residual", "gae(lam=0.3)", "gae(lam=0.95)", "reward_to_go", "gae(lam=1.0)"]
    chosen = [estimators.parse(name) for name in names]
    for gamma, weighted in ((1.0, True), (0.9, True), (0.9, False)):
        batch = make_batch(gamma, cut=9, seed=5)
        together = base.weights(chosen, batch, weighted)
        for estimator, found in zip(chosen, together, strict=True):
            torch.testing.assert_close(found, base.weight(estimator, batch, weighted), rtol=1e-13, atol=1e-14)


def test_a_subclass_is_asked_itself():
    class Doubled(GAE):
        def phi(self, batch):
            return 2 * super().phi(batch)

    batch, members = make_batch(0.9), [Doubled(0.5), Doubled(0.7)]
    for e, found in zip(members, base.weights(members, batch, False), strict=True):
        torch.testing.assert_close(found, 2 * GAE(e.lam).phi(batch), rtol=1e-13, atol=0)
