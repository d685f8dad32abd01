"""Rows, units and pieces: what measurements add up, against one trajectory at a time."""

import pytest
import torch
from row_gradients import assembled, close, each, finite, gradients, maps, sample

from varlab import terms
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.policies import make, prepare
from varlab.values import FunctionValues

PHI = ("total_return", "all_action", "q_value", "all_action(3)", "reward_to_go")
SOURCE = FunctionValues(
    v=lambda s, t: 0.3 * s.reshape(len(t), -1).sum(1) - 0.1 * t,
    q=lambda s, a, t: torch.cos(s.reshape(len(t), -1).sum(1) + 2.0 * a.reshape(len(t), -1).sum(1) + t),
)


def gaussian():
    env = lqg.random_system(5, seed=2, state_dim=3, action_dim=2)
    return env, prepare(make("mlp", env, theta_seed=3, hidden=(4,)), torch.float64, torch.device("cpu"))


WORLDS = {
    "finite": lambda: finite("mlp"), "only torch.func": lambda: finite("twice"), "Gaussian": gaussian,
}  # fmt: skip


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    env, policy = WORLDS[request.param]()
    return policy, sample(env, policy, 24)


def test_choices_together_are_the_choices_alone(world):
    policy, traj = world
    together = gradients(policy, PHI, traj, SOURCE, 0.9)
    for k, phi in enumerate(PHI):
        close(together[:, k], gradients(policy, [phi], traj, SOURCE, 0.9)[:, 0])
    assert float((together[:, 1] - together[:, 2]).abs().max()) > 1e-3


@pytest.mark.parametrize("size", (1, 3, 24))
def test_chunks_are_the_trajectories_one_by_one(world, size):
    policy, traj = world
    found = each(policy, assembled(policy, PHI, traj, SOURCE, 0.9), size)
    for i, (_, one) in enumerate(terms.pieces(traj, 1)):
        close(found[i], gradients(policy, PHI, one, SOURCE, 0.9)[0])


@pytest.mark.parametrize("unit", (1, 2, 3, 8, 24))
def test_a_unit_is_the_mean_of_its_trajectories(world, unit):
    """Σ over its G consecutive trajectories, each with its own time and values, divided by G."""
    policy, traj = world
    single = gradients(policy, PHI, traj, SOURCE, 0.9)
    found = gradients(policy, PHI, traj, SOURCE, 0.9, unit=unit)
    assert len(found) == 24 // unit
    close(found, single.reshape(-1, unit, *single.shape[1:]).sum(1) / unit)


@pytest.mark.parametrize("rows", (1, 60, 10**6))
@pytest.mark.parametrize("unit", (1, 4))
def test_the_sum_is_the_sum_of_the_units(world, unit, rows):
    policy, traj = world
    made = assembled(policy, PHI, traj, SOURCE, 0.9, unit=unit)
    close(terms.summed(made, maps(policy, made)[0], torch.float64, rows), each(policy, made).sum(0))


@pytest.mark.parametrize("unit", (1, 3))
@pytest.mark.parametrize("steps", (1, 7, 30, 10**6))
def test_pieces_are_whole_units_in_order(world, steps, unit):
    policy, traj = world
    found = terms.pieces(traj, steps, unit)
    assert [first for first, _ in found] == [sum(len(t) for _, t in found[:i]) // unit for i in range(len(found))]
    assert all(len(t) % unit == 0 and t.offsets[0] == 0 for _, t in found)
    longest = max(int(traj.offsets[i + unit] - traj.offsets[i]) for i in range(0, 24, unit))
    assert all(t.steps < steps + longest for _, t in found)
    whole = type(traj).join([t for _, t in found])
    names = ("obs", "action", "reward", "offsets", "terminated", "truncated", "last_obs", "state", "last_state")
    for name in names:
        a, b = getattr(whole, name), getattr(traj, name)
        assert a is b is None or torch.equal(a, b), name
    parts = torch.cat([gradients(policy, PHI, t, SOURCE, 0.9, unit=unit) for _, t in found])
    close(parts, gradients(policy, PHI, traj, SOURCE, 0.9, unit=unit))


def test_a_broken_unit_is_one_sentence(world):
    policy, traj = world
    for call in (lambda: assembled(policy, PHI, traj, SOURCE, unit=5), lambda: terms.pieces(traj, 10, 5)):
        with pytest.raises(InputError, match="Whole units of 5 trajectories were expected, but 24 trajectories"):
            call()


def test_each_rule_of_nodes_is_read_once_and_asks_for_no_more_than_it_needs(world):
    policy, traj = world
    asked = []

    def source(t, need):
        asked.append((t.nodes is not None and t.nodes.weight.shape[1], need))
        return SOURCE(t, need)

    made = assembled(policy, PHI, traj, source, at_cut="terminal")
    assert [need for _, need in asked] == [frozenset({"q"}), frozenset({"q_nodes"}), frozenset({"q_nodes"})]
    counts = [1] + [count for count, _ in asked[1:]]
    assert [t.action.shape[1] for t in made] == counts and [t.columns for t in made] == [[0, 1, 2, 3, 4], [1], [3]]
    assert counts == ([1, 25, 9] if traj.action.dim() == 2 else [1, 3, 3])


@pytest.mark.parametrize("unit", (1, 4))
def test_a_matrix_acts_on_sums_as_on_every_gradient(world, unit):
    """A is far from symmetric; the other choices are left alone."""
    policy, traj = world
    made = assembled(policy, PHI, traj, SOURCE, 0.9, unit=unit)
    plain = each(policy, made)
    parameters = plain.shape[2]
    a = torch.randn(parameters, parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = plain.clone()
    expected[:, 2] = plain[:, 2] @ a.T
    found = torch.full_like(plain, torch.nan)
    for index, batch, phi in terms.chunks(made, maps(policy, made), 5, torch.float64, {2: a}):
        for columns, g in batch.blocks(phi):
            found[index[:, None, None], torch.arange(len(PHI))[:, None], columns] = g
    close(found, expected)
    close(terms.summed(made, maps(policy, made)[0], torch.float64, 60, {2: a}), expected.sum(0))
