"""Maps of E[z_t r_u] against all trajectories of small worlds, and the coverage of their intervals."""

import contract
import numpy as np
import pytest
import torch

from varlab import envs, policies, values
from varlab.analysis import cross_moments
from varlab.checks import InputError


def listed(world):
    """The map by loops over every trajectory."""
    z, out = world.paths.scores(world.logits), np.zeros((world.horizon, world.horizon, world.logits.numel()))
    bounds = world.paths.traj.offsets.tolist()
    for k, (i, j) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        for t in range(j - i):
            for u in range(j - i):
                out[t, u] += float(world.probability[k] * world.paths.traj.reward[i + u]) * z[i + t].numpy()
    return out


@pytest.mark.parametrize("name", ["long", "other", "wide"])
def test_the_exact_map_is_that_of_all_trajectories(name):
    world = contract.WORLDS[name]()
    found = cross_moments.exact(world.env, world.policy)
    np.testing.assert_allclose(found.value, listed(world), atol=1e-13)
    np.testing.assert_allclose(found.gradient, world.gradient().numpy(), atol=1e-12)
    assert np.abs(found.value[cross_moments.past(world.horizon)]).max() < 1e-15
    share, low, high = found.share(found.gradient)
    assert share.sum() == pytest.approx(1) and (low == share).all() and (high == share).all()
    square, ends = found.square(~cross_moments.past(world.horizon), cross_moments.signs(0))
    assert square == pytest.approx(float((found.value**2).sum())) == pytest.approx(ends.low) == pytest.approx(ends.high)


def test_any_other_policy_has_the_map_of_its_probabilities():
    world = contract.WORLDS["wide"]()
    policy = policies.make("mlp", world.env, hidden=(5,)).double()
    found = cross_moments.exact(world.env, policy)
    truth, _ = values.gradient(world.mdp, policy, 1.0, world.horizon)
    np.testing.assert_allclose(found.gradient, truth.numpy(), atol=1e-12)
    assert np.abs(found.value[cross_moments.past(world.horizon)]).max() < 1e-15


def test_sampled_intervals_cover_the_exact_map():
    world = contract.WORLDS["long"]()
    truth = cross_moments.exact(world.env, world.policy)
    share, _, _ = truth.share(truth.gradient)
    past = cross_moments.past(world.horizon)
    square, _ = truth.square(~past, cross_moments.signs(0))
    held, within, zero = [], 0, 0
    for seed in range(40):
        found = cross_moments.sampled(world.env, world.policy, 400, seed)
        _, low, high = found.share(truth.gradient)
        held.append((low <= share) & (share <= high))
        estimate, ends = found.square(~past, cross_moments.signs(seed))
        within += ends.low <= square <= ends.high
        zero += found.square(past, cross_moments.signs(seed))[1].low == 0
    assert 0.92 < np.mean(held) < 0.98  # 640 intervals
    assert within >= 34 and zero >= 34
    assert found.n == 400 and found.blocks.shape == (50, 4, 4, world.logits.numel())


def test_chunks_and_parts_do_not_matter(monkeypatch):
    world = contract.WORLDS["other"]()
    one = cross_moments.sampled(world.env, world.policy, 500, 3)
    monkeypatch.setattr(cross_moments, "CHUNK", 3)
    np.testing.assert_allclose(cross_moments.sampled(world.env, world.policy, 500, 3).value, one.value, atol=1e-15)


def test_the_direction_comes_from_other_data_and_points_along_the_gradient():
    world = contract.WORLDS["long"]()
    found, truth = cross_moments.direction(world.env, world.policy, 5000, 1), world.gradient().numpy()
    assert found @ truth / np.linalg.norm(found) / np.linalg.norm(truth) > 0.98
    assert not np.allclose(found, cross_moments.sampled(world.env, world.policy, 5000, 1).gradient)


def test_what_cannot_be_mapped_is_refused():
    cartpole = envs.make("CartPole-v1", horizon=10)
    with pytest.raises(InputError, match="finite MDP"):
        cross_moments.exact(cartpole, policies.Logistic(cartpole))
    with pytest.raises(InputError, match="multiple of the 50 blocks"):
        cross_moments.sampled(cartpole, policies.Logistic(cartpole), 120)
    assert cross_moments.sampled(cartpole, policies.Logistic(cartpole), 100).value.shape == (10, 10, 4)
    assert torch.get_default_dtype() == torch.float32
