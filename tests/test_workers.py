"""Work on several cores: in order, with the same numbers whatever their number, and nothing left behind."""

import hashlib
import os
import signal
import time

import pytest
import torch

import varlab
from varlab import envs, policies
from varlab.workers import Crew, WorkerLost, in_order, one_thread_each

FEW = varlab.values.CriticSettings(n=40, epochs=1)
ESTIMATORS = ("total_return", "gae(lam=0.9)", "q_value", "constant_baseline")


def children():
    """Processes of this one that have not been waited for."""
    with open(f"/proc/self/task/{os.getpid()}/children") as found:
        return set(found.read().split())


@pytest.mark.parametrize("workers", (1, 2, 3))
def test_results_come_in_the_order_of_the_work_whoever_is_faster(workers):
    before = children()

    def work(i):
        time.sleep(0.02 if i % 3 == 0 else 0.0)
        return i, torch.get_num_threads(), torch.full((3,), i)

    made = list(in_order(work, range(20), workers))
    assert [i for i, _, _ in made] == [int(x[0]) for _, _, x in made] == list(range(20))
    if workers > 1:
        assert {threads for _, threads, _ in made} == {1}
    assert children() == before


def test_a_crew_stays_for_several_rounds_and_takes_items_as_they_are_needed():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    with Crew(lambda i: (os.getpid(), i), 2) as crew:
        first = {pid for pid, _ in crew.in_order(range(10))}
        second = {pid for pid, _ in crew.in_order(range(10))}
        assert second <= first and os.getpid() not in first
        rounds = crew.in_order(items())
        assert [next(rounds)[1] for _ in range(3)] == [0, 1, 2] and len(taken) < 20
        rounds.close()
    assert list(in_order(lambda i: i, [], 2)) == []


@pytest.mark.parametrize("workers", (1, 2))
def test_the_first_error_in_order_comes_out_with_the_place_where_it_arose(workers):
    def work(i):
        if i == 1:
            time.sleep(0.1)
        return 1 // (0 if i in (1, 3) else 1), [][i if i == 3 else 0:]

    before, made = children(), []
    with pytest.raises(ZeroDivisionError) as error:
        for x in in_order(work, range(6), workers):
            made.append(x)
    assert len(made) == 1 and children() == before
    if workers > 1:
        assert "in work" in error.value.__notes__[0]


def test_an_error_that_cannot_be_pickled_is_told_in_words():
    class Odd(Exception):
        def __init__(self):
            super().__init__("odd")
            self.held = lambda: None

    def work(i):
        raise Odd

    with pytest.raises(RuntimeError, match="Odd: odd"):
        list(in_order(work, range(2), 2))


def test_a_worker_that_is_killed_is_named():
    def work(i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    before = children()
    with pytest.raises(WorkerLost, match="SIGKILL ended it .out of memory"):
        list(in_order(work, range(8), 2))
    with pytest.raises(WorkerLost, match="exit code 3"):
        list(in_order(lambda i: os._exit(3), range(8), 2))
    assert children() == before


def test_threads_are_lent():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread_each() as lent:
        assert lent == before and torch.get_num_threads() == 1
        _ = 1 // 0
    assert torch.get_num_threads() == before


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def digest(*arrays):
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        ("CartPole-v1", {"n": 120, "part_size": 2, "reference": "sampled", "n_reference": 100}),
        ("varlab/PointMass-v0", {"n": 100, "group_size": 2, "values_error": 0.3}),
        ("FrozenLake-v1", {"n": 100, "values": "cloning", "continuations": 2, "dtype": "float64"}),
        ("Pendulum-v1", {"n": 100, "values": lambda traj, need: zero(traj), "n_reference": 50}),
    ],
    ids=("sampled reference", "units", "cloned values", "values of the user's"),
)
def test_measurements_are_bit_equal_over_threads(threads, world, settings):
    """Block moments, references, scalars by trajectory, steps and critics: nothing depends on how many cores there are."""
    env = envs.make(world, horizon=10)
    policy = policies.make("softmax_table" if env.finite is not None else "mlp", env)
    found = []
    for count in (1, 3):
        threads(count)
        made = varlab.measure(env, policy, ESTIMATORS, pilot=40, critic=FEW, **settings)
        rows = made.trajectories.to_numpy()
        reference = next(iter(made.references.values())).grad
        numbers = made.summary.select_dtypes("number").to_numpy()
        wall = made.summary.columns[made.summary.columns.str.contains("wall")]
        assert list(wall) == []
        critic = [] if made.critic is None else [x.numpy() for x in made.critic.state_dict().values()]
        found.append((digest(made.moments.mean, made.moments.m2, rows, reference, numbers, *critic), made.steps))
        assert torch.get_num_threads() == count
    assert found[0] == found[1]


def test_variances_are_bit_equal_over_threads(threads):
    env = envs.make("CartPole-v1", horizon=20)
    policy, found = policies.make("mlp", env), []
    for count in (1, 2):
        threads(count)
        made = varlab.variances(env, policy, ESTIMATORS, n=200, part_size=4, pilot=40, critic=FEW)
        found.append(digest(made.select_dtypes("number").to_numpy()))
    assert found[0] == found[1]


def zero(traj):
    """Values that are 0 everywhere: a function of the user's, which one core calls."""
    o = torch.zeros(traj.steps, dtype=torch.float64)
    return varlab.types.Values(v=o, q=o, v_last=torch.zeros(len(traj), dtype=torch.float64), v_stale=o[: len(traj)])
