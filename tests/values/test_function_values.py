"""Values that a user gives as functions of observation and time."""

import pytest
import torch
from finite_worlds import enumerate_paths, random_mdp

from varlab.checks import InputError
from varlab.values import FunctionValues


@pytest.fixture(scope="module")
def traj():
    return enumerate_paths(random_mdp(0), 3, cut=2).traj


def v(obs, t):
    return 10.0 * obs + t


def q(obs, action, t):
    return 100.0 * action + 10.0 * obs + t


def test_functions_are_called_at_every_step_at_the_end_and_at_the_stale_state(traj):
    found = FunctionValues(v=v, q=q, source="mine", steps=12)(traj, frozenset({"v", "q"}))
    assert (found.source, found.steps) == ("mine", 12)
    for i in range(len(traj)):
        first, end = int(traj.offsets[i]), int(traj.offsets[i + 1])
        for row in range(first, end):
            s, a, t = int(traj.state[row]), int(traj.action[row]), row - first
            assert found.v[row] == 10 * s + t and found.q[row] == 100 * a + 10 * s + t
        assert found.v_last[i] == 10 * int(traj.last_state[i]) + end - first
        assert found.v_stale[i] == 10 * int(traj.state[end - 1]) + end - first
    assert all(x.dtype == torch.float64 for x in (found.v, found.q, found.v_last, found.v_stale))


def test_only_what_is_needed_is_called(traj):
    def never(*_):
        raise AssertionError("not asked for")

    assert FunctionValues(v=v, q=never)(traj, frozenset({"v"})).q is None
    assert FunctionValues(v=never, q=q)(traj, frozenset({"q"})).v is None


@pytest.mark.parametrize("name", ("v", "q"))
def test_a_missing_function_is_one_sentence(traj, name):
    given = {"v": v, "q": q} | {name: None}
    with pytest.raises(InputError, match=f"A function {name} was expected.*pass {name}=…"):
        FunctionValues(**given)(traj, frozenset({"v", "q"}))
