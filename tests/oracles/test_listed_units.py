"""Listed trajectories and units against enumeration by recursion over branches, tuples in every order, and the exact oracle."""

import contract
import finite_worlds
import pytest
import torch

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.oracles.units import Listed, select

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=["long", "other", "wide"])
def world(request):
    return contract.WORLDS[request.param]()


def keyed(traj, probability):
    """Trajectory → probability, whatever the order."""
    s, a, r = (x.tolist() for x in (traj.state, traj.action, traj.reward))
    bounds, found = traj.offsets.tolist(), {}
    for k, (i, j) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        ends = (int(traj.last_state[k]), bool(traj.terminated[k]), bool(traj.truncated[k]))
        key = (*s[i:j], *a[i:j], *r[i:j], *ends)
        found[key] = found.get(key, 0.0) + float(probability[k])
    return found


def test_trajectories_are_those_of_a_walk_branch_by_branch(world):
    listed = Listed.of(world.env, world.policy)
    ours, theirs = keyed(listed.traj, listed.probability), keyed(world.paths.traj, world.probability)
    assert ours.keys() == theirs.keys() and float(listed.probability.sum()) == pytest.approx(1, abs=1e-12)
    assert max(abs(ours[k] - theirs[k]) for k in ours) < 1e-14


PHI = ("total_return", "reward_to_go", "value_baseline", "q_value", "gae(lam=0.9)", "all_action", "n_step(k=2)")


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_moments_are_those_of_the_recursions(world, gamma):
    listed = Listed.of(world.env, world.policy)
    g = listed.gradients(PHI, gamma=gamma)
    truth = varlab.exact(world.env, world.policy, PHI, gamma=gamma)
    torch.testing.assert_close(listed.mean(g), torch.from_numpy(truth.mean), **CLOSE)
    torch.testing.assert_close(listed.covariance(g).diagonal(), torch.from_numpy(truth.variance), **CLOSE)
    torch.testing.assert_close(listed.mean(g)[0], world.gradient(gamma), **CLOSE)


@pytest.mark.parametrize("name", ["step_mean", "normalised_advantage", "normalised_advantage(lam=0.5)"])
@pytest.mark.parametrize("size", [2, 3])
def test_units_are_those_of_all_tuples(name, size):
    from varlab import estimators

    world = contract.UNIT_WORLDS["three arms" if size == 3 else "two steps"]()
    units = Listed.of(world.env, world.policy).units(size)
    g = units.gradients(name)
    mean, variance = contract.moments(estimators.parse(name), world, unit=size)
    torch.testing.assert_close(units.mean(g)[0], mean, **CLOSE)
    torch.testing.assert_close(units.covariance(g)[0, 0], size * variance.sum(), **CLOSE)


def test_another_policy_that_acts_comes_with_its_ratios(world):
    from varlab import estimators

    acting = policies.SoftmaxTable(world.env, finite_worlds.random_logits(7, world.mdp))
    listed = Listed.of(world.env, world.policy, acting)
    g = listed.gradients(("importance_weighted", "surrogate(lam=1.0)"), behaviour=acting)
    torch.testing.assert_close(listed.mean(g)[0], world.gradient(), **CLOSE)
    source = envs_values(world, acting)
    wanted = contract.exact_mean(
        estimators.parse("surrogate(lam=1.0)"), world, source=source, behaviour=acting.logits.weight.detach()
    )
    torch.testing.assert_close(listed.mean(g)[1], wanted, **CLOSE)
    assert float((listed.mean(g)[1] - world.gradient()).norm()) > 0.01


def envs_values(world, policy):
    from varlab.values import ExactValues

    return ExactValues.of(world.mdp, policies.prepare(policy, torch.float64, torch.device("cpu")), 1.0, world.horizon)


def test_the_covariance_of_a_difference_is_that_of_its_parts(world):
    listed = Listed.of(world.env, world.policy)
    g = listed.gradients(("total_return", "reward_to_go"))
    c = listed.covariance(torch.cat([g, g[:, :1] - g[:, 1:]], 1))
    assert float(c[2, 2]) == pytest.approx(float(c[0, 0] + c[1, 1] - 2 * c[0, 1]), rel=1e-12)
    assert float(c[1, 2]) == pytest.approx(float(c[1, 0] - c[1, 1]), rel=1e-9)


def test_what_cannot_be_listed_is_refused(monkeypatch):
    world = contract.WORLDS["long"]()
    listed = Listed.of(world.env, world.policy)
    with pytest.raises(InputError, match="not fitted"):
        listed.gradients("constant_baseline")
    with pytest.raises(InputError, match="units were expected to be listed"):
        listed.units(12)
    with pytest.raises(InputError, match="Single trajectories"):
        Listed.of(*two_arms()).units(2).units(2)
    cartpole = envs.make("CartPole-v1")
    with pytest.raises(InputError, match="no outcome lists"):
        Listed.of(cartpole, policies.Logistic(cartpole))
    monkeypatch.setattr("varlab.oracles.units.LIMIT", 50)
    with pytest.raises(InputError, match="At most 50 trajectories"):
        Listed.of(world.env, world.policy)


def two_arms():
    env = envs.make("varlab/TwoArms-v0")
    return env, policies.SoftmaxTable(env)


def test_selection_repeats_and_reorders():
    traj = Listed.of(*(lambda w: (w.env, w.policy))(contract.WORLDS["long"]())).traj
    index = torch.tensor([5, 0, 5])
    found = select(traj, index)
    for k, i in enumerate(index.tolist()):
        rows, source = slice(*found.offsets[k : k + 2].tolist()), slice(*traj.offsets[i : i + 2].tolist())
        assert torch.equal(found.reward[rows], traj.reward[source]) and torch.equal(found.state[rows], traj.state[source])
    assert torch.equal(found.terminated, traj.terminated[index])
