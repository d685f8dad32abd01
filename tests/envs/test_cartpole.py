"""Gymnasium's vectorised CartPole, shrinking as episodes end, against its scalar CartPole."""

import gymnasium
import numpy as np
import pytest
import torch

from varlab import envs, rng


def paths(simulator, scalars, steps, seed=3):
    """Step both with the same actions; yield the live episodes' observations, rewards, ends of both, until all ended."""
    generator = torch.Generator().manual_seed(seed)
    live = list(range(len(scalars)))
    for _ in range(steps):
        action = torch.randint(0, 2, (len(live),), generator=generator)
        obs, reward, end = simulator.step(action)
        twin = [scalars[i].step(int(a)) for i, a in zip(live, action, strict=True)]
        yield (
            (obs.numpy(), reward.numpy(), end.numpy()),
            (np.stack([o for o, *_ in twin]), np.array([x[1] for x in twin]), np.array([x[2] for x in twin])),
        )
        simulator.keep(~end)
        live = [i for i, e in zip(live, end.tolist(), strict=True) if not e]
        if not live:
            return


def both(n, **kwargs):
    simulator = envs.make("CartPole-v1", **kwargs).make_simulator(torch.device("cpu"))
    first = simulator.reset(n, rng.Streams(5).sequence("rollout"))
    scalars = [gymnasium.make("CartPole-v1", **kwargs).unwrapped for _ in range(n)]
    for scalar, state in zip(scalars, simulator.env.state.T.copy(), strict=True):
        scalar.reset()
        scalar.state = tuple(state)
    return simulator, scalars, first


@pytest.mark.parametrize("kwargs", [{}, {"sutton_barto_reward": True}])
def test_every_step_equals_the_scalar_environment(kwargs):
    simulator, scalars, first = both(40, **kwargs)
    assert np.array_equal(first.numpy(), np.stack([np.array(s.state, dtype=np.float32) for s in scalars]))
    dropped, count = 0, 0
    for (obs, reward, end), (twin_obs, twin_reward, twin_end) in paths(simulator, scalars, 400):
        assert (np.abs(obs - twin_obs) <= np.spacing(np.maximum(np.abs(obs), np.float32(1e-3)))).all()
        assert np.array_equal(reward, twin_reward) and np.array_equal(end, twin_end)
        dropped, count = dropped + int(end.sum()), count + 1
    assert dropped == 40 and count > 30  # it went on long after the first episodes were dropped


def test_the_comparison_sees_another_law():
    simulator, scalars, _ = both(5)
    simulator.env.length *= 1.01
    differences = [np.abs(a[0] - b[0]).max() for a, b in paths(simulator, scalars, 5)]
    assert differences[-1] > 1e-5


def test_initial_states_are_uniform_and_follow_the_seed():
    simulator = envs.make("CartPole-v1").make_simulator(torch.device("cpu"))
    streams = rng.Streams(0)
    first = simulator.reset(4000, streams.sequence("rollout", 0))
    assert float(first.abs().max()) <= 0.05 and torch.allclose(first.mean(0), torch.zeros(4), atol=4 * 0.05 / (3 * 4000) ** 0.5)
    assert torch.equal(first, simulator.reset(4000, streams.sequence("rollout", 0)))
    assert not torch.equal(first, simulator.reset(4000, streams.sequence("rollout", 1)))
