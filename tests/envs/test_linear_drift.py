"""The drifting point: its equations without noise, and the law of its noise."""

import math

import numpy as np
import pytest
import torch

from varlab import envs
from varlab.checks import InputError

CPU = torch.device("cpu")
SEED = np.random.SeedSequence(4)


def test_without_noise_it_follows_its_equations():
    simulator = envs.make("varlab/LinearDrift-v0", noise=0.0, start=2.0).make_simulator(CPU)
    state = simulator.reset(5, SEED)
    for t in range(4):
        action = torch.full((5, 1), 0.3 * t - 0.5, dtype=torch.float64)
        following, reward, end = simulator.step(action)
        columns = (x.flatten().tolist() for x in (state, action, reward, following))
        for s, a, r, s_next in zip(*columns, strict=True):
            assert r == pytest.approx(math.exp(-s * s / 2 - a * a / 2) + 1, rel=1e-14)
            assert s_next == pytest.approx(s + a, rel=1e-14)
        assert not bool(end.any())
        state = following
    simulator.keep(torch.tensor([True, False, True, False, True]))
    assert torch.equal(simulator.step(torch.zeros(3, 1))[0], state[[0, 2, 4]])


def test_noise_and_start_have_their_standard_deviations():
    simulator = envs.make("varlab/LinearDrift-v0", noise=0.4, start=1.5).make_simulator(CPU)
    start = simulator.reset(100_000, SEED)
    step = simulator.step(torch.zeros(100_000, 1))[0] - start
    for x, deviation in ((start, 1.5), (step, 0.4)):
        # Four standard errors of a mean, and of a standard deviation of Gaussian numbers.
        assert abs(float(x.mean())) < 4 * deviation / 100_000**0.5
        assert abs(float(x.std()) / deviation - 1) < 4 / (2 * 100_000) ** 0.5
    assert abs(float((start * step).mean())) < 4 * 0.6 / 100_000**0.5


def test_a_group_begins_in_one_state_and_goes_its_own_ways():
    simulator = envs.make("varlab/LinearDrift-v0").make_simulator(CPU)
    start = simulator.reset(12, SEED, 4).view(3, 4)
    assert bool((start == start[:, :1]).all()) and len(start[:, 0].unique()) == 3
    assert len(simulator.step(torch.zeros(12, 1))[0].unique()) == 12


@pytest.mark.parametrize("name", ["noise", "start"])
def test_a_negative_deviation_is_refused(name):
    with pytest.raises(InputError, match=f"^{name} must lie in"):
        envs.make("varlab/LinearDrift-v0", **{name: -0.1})
