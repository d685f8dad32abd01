"""Guards: what was expected, what came, how to mend it."""

import numpy as np
import pytest
import torch

from varlab import checks
from varlab.checks import InputError

KNOWN = ["total_return", "reward_to_go", "gae", "CartPole-v1"]


def test_nearest_ignores_case_and_falls_back_to_all():
    assert checks.nearest("CARTPOLE-V1", KNOWN) == "CartPole-v1"
    assert checks.nearest("rewards_to_go", KNOWN).startswith("reward_to_go")
    assert checks.nearest("zzzzzzzz", KNOWN) == ", ".join(sorted(KNOWN))
    assert len(checks.nearest("a1", [f"a{i}" for i in range(9)], 2).split(", ")) == 2


def test_one_of():
    assert checks.one_of("Φ", "gae", iter(KNOWN)) == "gae"
    with pytest.raises(InputError, match="No Φ is called 'gea'; the nearest names are gae"):
        checks.one_of("Φ", "gea", iter(KNOWN))


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float64(3.0), np.uint8(3)])
def test_whole_numbers_of_every_kind_become_int(value):
    found = checks.positive_int("n", value)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None, True, float("nan"), float("inf"), -float("inf"), [3], 3j])
def test_what_is_no_positive_whole_number(value):
    with pytest.raises(InputError, match=r"n must be a whole number of at least 1, but it is .*; set n to such a number\."):
        checks.positive_int("n", value)


def test_the_least_whole_number_is_a_setting():
    assert checks.positive_int("seed", 0, 0) == 0
    with pytest.raises(InputError, match="at least 50"):
        checks.positive_int("n", 49, 50)


def test_ranges_are_closed():
    assert [checks.in_range("gamma", v, 0.0, 1.0) for v in (0, 1, 0.5, "0.5")] == [0.0, 1.0, 0.5, 0.5]
    for value in (-1e-9, 1.0000001, float("nan"), float("inf"), "half", None):
        with pytest.raises(InputError, match=r"gamma must lie in \[0, 1\]"):
            checks.in_range("gamma", value, 0.0, 1.0)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_row_is_named(bad):
    episode, time = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match="A finite reward was expected from World, but trajectory 11 gave .* at step 0;"):
        checks.finite_rows("reward", rows(1, 2, bad, bad), "World", 10, time, episode)
    with pytest.raises(InputError, match=r"trajectory 1 gave \[ *0\. .*\] at step 7;"):
        checks.finite_rows("observation", rows([0, 0], [0, 0], [0, bad], [0, 0]), "World", 0, 7, episode)


def test_opposite_infinities_do_not_hide_each_other():
    with pytest.raises(InputError, match="trajectory 0"):
        checks.finite_rows("reward", rows(float("inf"), -float("inf")), "World", 0, 0, torch.tensor([0, 1]))


def test_finite_rows_pass_even_where_their_sum_overflows():
    for x in (rows(1.7e308, 1.7e308), torch.tensor([3e38, 3e38]), torch.tensor([1, 2])):
        checks.finite_rows("reward", x, "World", 0, 0, torch.tensor([0, 1]))


def test_devices_and_dtypes():
    assert checks.device_of("cpu") == torch.device("cpu") and checks.dtype_of("float64") is torch.float64
    with pytest.raises(InputError, match="usable torch device was expected, but 'gpu'"):
        checks.device_of("gpu")
    with pytest.raises(InputError, match="No dtype is called 'float16'"):
        checks.dtype_of("float16")
