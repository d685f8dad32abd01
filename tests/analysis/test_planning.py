"""Planning formulas against simulation, against each other and at their limits."""

import math

import numpy as np
import pytest

from varlab.analysis import planning
from varlab.checks import InputError


def test_trajectories_for_variance_gives_that_relative_error():
    # uniform scale: x² with kurtosis κ = 9/5 for scalar uniform gradients
    n = planning.trajectories_for_variance(0.1, 1.8)
    assert n == 320
    rng = np.random.default_rng(0)
    variances = rng.uniform(-1, 1, (4000, n)).var(1, ddof=1) * 3
    assert 2 * variances.std() == pytest.approx(0.1, rel=0.05)


def test_a_two_point_gradient_needs_no_repeats():
    assert planning.trajectories_for_variance(0.1, 1.0) == 1


def test_cosines_agree_with_simulation_in_many_directions():
    rng = np.random.default_rng(1)
    p, nsr, batch = 400, 30.0, 10
    truth = np.zeros(p)
    truth[0] = 1.0
    a, b = (truth + rng.standard_normal((4000, p)) * math.sqrt(nsr / batch / p) for _ in range(2))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    assert unit[0][:, 0].mean() == pytest.approx(planning.cosine_to_truth(nsr, batch), abs=5e-3)
    assert (unit[0] * unit[1]).sum(1).mean() == pytest.approx(planning.cosine_between(nsr, batch), abs=5e-3)


def test_cosine_between_is_the_square_of_cosine_to_truth():
    assert planning.cosine_to_truth(40.0, 7) ** 2 == pytest.approx(planning.cosine_between(40.0, 7), rel=1e-14)
    assert planning.cosine_to_truth(math.inf, 7) == 0.0


def test_episodes_for_cosine_inverts_the_formula():
    n = planning.episodes_for_cosine(0.9, 50.0)
    assert planning.cosine_to_truth(50.0, n) == pytest.approx(0.9, rel=1e-12)
    # a biased Φ: E g = 1.3 long at cosine 0.95 to ∇J of length 1, variance 50
    n = planning.episodes_for_cosine(0.9, 50.0, bias_ratio=0.3, alignment=0.95)
    assert 1.3 * 0.95 / math.sqrt(1.3**2 + 50.0 / n) == pytest.approx(0.9, rel=1e-12)
    assert planning.episodes_for_cosine(0.96, 50.0, alignment=0.95) == math.inf


def test_episodes_for_mse():
    assert planning.episodes_for_mse(0.1, 5.0, bias_sq=0.05) == pytest.approx(100.0)
    assert planning.episodes_for_mse(0.1, 5.0, bias_sq=-0.05) == pytest.approx(50.0)
    assert planning.episodes_for_mse(0.1, 5.0, bias_sq=0.1) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: planning.trajectories_for_variance(0.0, 3.0),
        lambda: planning.trajectories_for_variance(0.1, 0.5),
        lambda: planning.cosine_to_truth(-1.0, 5),
        lambda: planning.cosine_between(1.0, 0),
        lambda: planning.episodes_for_cosine(1.0, 5.0),
        lambda: planning.episodes_for_mse(-1.0, 5.0),
        lambda: planning.cosine_to_truth("many", 5),
    ],
)
def test_impossible_questions_are_refused(call):
    with pytest.raises(InputError, match="must lie"):
        call()


def test_trajectories_for_ratio_gives_that_width():
    """Half widths of the logarithm shrink as n^−½: at the answer they span the width exactly."""
    n, r, low, high = 1000, 0.3, 0.25, 0.4
    for width in (0.2, 0.15, 0.02, 1e-3):
        more = planning.trajectories_for_ratio(width, n, r, low, high)
        s = math.sqrt(n / more)
        assert r * (high / r) ** s - r * (low / r) ** s == pytest.approx(width, rel=1e-10)
    assert planning.trajectories_for_ratio(high - low, n, r, low, high) == pytest.approx(n, rel=1e-10)
    small = planning.trajectories_for_ratio(1e-5, n, r, low, high)
    assert small == pytest.approx(n * (r * math.log(high / low) / 1e-5) ** 2, rel=1e-3)  # linear there
    assert planning.trajectories_for_ratio(0.1, n, 1.0, 1.0, 1.0) == 0.0
    assert planning.trajectories_for_ratio(0.1, n, 1.0, 0.0, 2.0) == math.inf
    with pytest.raises(InputError, match="must lie"):
        planning.trajectories_for_ratio(0.1, n, 0.3, 0.35, 0.4)
