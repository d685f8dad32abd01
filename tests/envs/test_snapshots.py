"""Saved states go on bit for bit; worlds whose copies start afresh, share their state or hide their randomness are refused."""

import copy
import copyreg
import random
import sys

import gymnasium
import numpy as np
import pytest
import torch
from registered_worlds import World

from varlab import envs, policies, rng
from varlab.checks import InputError
from varlab.envs import gymnasium as adapter
from varlab.envs.replay import check_replay
from varlab.envs.snapshots import CLASSIC, Attributes, DeepCopy, form_of
from varlab.estimators import Batch
from varlab.rollout import rollout
from varlab.types import Cloneable, Values
from varlab.values import Cloning

CPU = torch.device("cpu")


class Walk(World):
    """Pays ±1 by a generator of its own at each step, and shows the sum."""

    def reset(self, *, seed=None, options=None):
        self.total = 0.0
        self.generator = self.make(seed)
        return super().reset(seed=seed)

    def make(self, seed):
        return np.random.default_rng(seed)

    def toss(self):
        return self.generator.random()

    def see(self):
        return np.array([self.total], dtype=np.float32)

    def step(self, action):
        reward = 1.0 if self.toss() < 0.5 else -1.0
        self.total += reward
        obs, _, *rest = super().step(action)
        return obs, reward, *rest


class Gymnasiums(Walk):
    def toss(self):
        return self.np_random.random()


class Pythons(Walk):
    def make(self, seed):
        return random.Random(seed)


class Torchs(Walk):
    def make(self, seed):
        return torch.Generator().manual_seed(int(seed) % 2**32)

    def toss(self):
        return float(torch.rand((), generator=self.generator))


class Legacy(Walk):
    def make(self, seed):
        return np.random.RandomState(int(seed) % 2**32)

    def toss(self):
        return self.generator.rand()


class Afresh(Walk):
    """Its copies begin anew, and say nothing of it."""

    def __deepcopy__(self, memo):
        made = type(self)()
        made.reset(seed=0)
        return made


class Shared(Walk):
    """Its copies are itself."""

    def __deepcopy__(self, memo):
        return self


class Uncopied(Walk):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'world' object")


class Everybodys(Walk):
    """Draws from the generator that all share."""

    def toss(self):
        return np.random.random()  # noqa: NPY002


class Forgetful(Walk):
    """A copy forgets one number of its state."""

    def __deepcopy__(self, memo):
        made = copy.copy(self)
        made.generator, made.total = copy.deepcopy(self.generator, memo), 0.0
        return made


for world in (Walk, Gymnasiums, Pythons, Torchs, Legacy, Afresh, Shared, Uncopied, Everybodys, Forgetful):
    gymnasium.register(f"Snapshots{world.__name__}-v0", world, max_episode_steps=50)

CONTROL = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
TENSORS = ("CartPole-v1", "FrozenLake-v1", "varlab/PointMass-v0", "varlab/RandomLQG-v0", "varlab/Compounding-v0")
RANDOM = ("Walk", "Gymnasiums", "Pythons", "Torchs", "Legacy")


def same(a, b):
    """Equal to the last bit."""
    return all(np.array_equal(x, y) and np.asarray(x).dtype == np.asarray(y).dtype for x, y in zip(a, b, strict=True))


def begun(env_id, steps, seed=0):
    env = adapter.make_unlimited(env_id)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env


def walked(env, actions):
    made = []
    for a in actions:
        made.append(env.step(a)[:3])
        if made[-1][2]:
            break
    return made


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("env_id", CONTROL)
def test_classic_control_goes_on_bit_for_bit(env_id, steps):
    """Acrobot and the continuous mountain car change their dtype on the way: a state cast to float64 would round otherwise."""
    env = begun(env_id, steps)
    form = form_of(env)
    assert isinstance(form, Attributes) and type(env.unwrapped) in CLASSIC
    saved, actions = form.snapshot(env), [env.action_space.sample() for _ in range(12)]
    other = adapter.make_unlimited(env_id)  # never reset
    early = walked(form.restore(other, saved, 5), actions)
    truth = walked(env, actions)
    ended = begun(env_id, 9, seed=3)
    late = walked(form.restore(ended, saved, 6), actions)
    for replay in (early, late):
        assert all(same(a, b) for a, b in zip(truth, replay, strict=True))


@pytest.mark.parametrize("env_id", TENSORS)
def test_tensor_simulators_go_on_bit_for_bit(env_id):
    env = envs.make(env_id, horizon=40, continuation=0.95)
    original, other = (env.make_simulator(CPU) for _ in range(2))
    assert isinstance(original, Cloneable)
    original.reset(400, np.random.SeedSequence(0))
    generator = np.random.default_rng(0)

    def act(n):
        space = env.action_space
        if env.discrete_actions:
            return torch.from_numpy(generator.integers(int(space.n), size=n))
        return torch.from_numpy(generator.standard_normal((n, *space.shape)))

    n = 400
    for _ in range(6):
        *_, end = original.step(act(n))
        original.keep(~end)
        n = int((~end).sum())
    assert n > 5
    saved, seed = original.snapshot(), np.random.SeedSequence(9)
    kept, actions = saved.clone(), act(n)
    original.reseed(seed)
    other.restore(saved, seed)
    replays = [other.step(actions)]
    truth = original.step(actions)
    other.restore(saved, seed)
    replays.append(other.step(actions))
    for replay in replays:
        assert all(torch.equal(a, b) for a, b in zip(truth, replay, strict=True))
    assert torch.equal(saved, kept)
    other.restore(saved, np.random.SeedSequence(10))
    assert not all(torch.equal(a, b) for a, b in zip(truth, other.step(actions), strict=True))


@pytest.mark.parametrize("env_id", (*CONTROL, *TENSORS, *(f"Snapshots{x}-v0" for x in RANDOM)))
def test_worlds_that_can_be_restored_pass_the_check(env_id):
    env = envs.make(env_id, horizon=30)
    assert isinstance(check_replay(env, CPU), Cloneable)
    check_replay(envs.with_termination(env, 0.8), CPU)


@pytest.mark.parametrize("horizon", [1, 2])
def test_short_worlds_pass_the_check(horizon):
    for env_id in ("varlab/TwoArms-v0", "varlab/ConstantReturn-v0", "SnapshotsWalk-v0"):
        check_replay(envs.make(env_id, horizon=horizon), CPU)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Afresh", "of a restored episode is not that of the episode itself"),
        ("Shared", "of a restored episode is not that of the episode itself"),
        ("Forgetful", "the observation after step 5 of a restored episode"),
        ("Everybodys", "of a restored episode is not that of the episode itself"),
        ("Uncopied", "TypeError: cannot pickle 'world' object"),
    ],
)
def test_worlds_that_cannot_be_restored_are_one_sentence(name, reason):
    env = envs.make(f"Snapshots{name}-v0", horizon=30)
    policy = policies.prepare(policies.make("linear", env), torch.float64, CPU)
    with pytest.raises(InputError, match=f"expected of Snapshots{name}-v0 for values=cloning.*values=critic instead") as caught:
        Cloning(env, policy, 2)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RANDOM)
def test_a_copy_does_not_repeat_the_random_numbers_of_its_original(name):
    """The trap: a copied generator would make every branch the trajectory's own future."""
    env = envs.make(f"Snapshots{name}-v0", horizon=3)
    policy = policies.prepare(policies.make("linear", env), torch.float64, CPU)
    traj = rollout(env, policy, 150, np.random.SeedSequence(1), snapshots=True)
    found = Cloning(env, policy, 1)(traj, frozenset("vq"))
    own = Batch(traj, Values(), 1.0).reward_to_go
    for a, b in ((found.v, own), (found.q, own), (found.v, found.q)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) * len(a) ** 0.5 < 4  # 20 numbers, each about normal
    assert abs(float(found.v.mean())) / float(found.v.std()) * len(own) ** 0.5 < 4


def test_copies_of_torchs_generators_lose_no_reference():
    """Its own way of copying one takes a reference to None away each time, until Python aborts."""
    env = begun("SnapshotsTorchs-v0", 2)
    form = form_of(env)
    before = sys.getrefcount(None)
    kept = [form.restore(env, form.snapshot(env), i) for i in range(500)]
    assert sys.getrefcount(None) > before - 100 and len(kept) == 500
    table = dict(copyreg.dispatch_table)
    form.snapshot(env)
    assert table == copyreg.dispatch_table and torch.Generator not in table


def test_without_new_seeds_every_branch_would_be_the_trajectorys_own_future(monkeypatch):
    env = envs.make("SnapshotsWalk-v0", horizon=3)
    policy = policies.prepare(policies.make("linear", env), torch.float64, CPU)
    monkeypatch.setattr(DeepCopy, "restore", lambda self, env, saved, seed: copy.deepcopy(saved))
    monkeypatch.setattr(DeepCopy, "reseed", lambda self, env, seed: None)
    traj = rollout(env, policy, 20, np.random.SeedSequence(1), snapshots=True)
    found = Cloning(env, policy, 1)(traj, frozenset("v"))
    assert torch.equal(found.v, Batch(traj, Values(), 1.0).reward_to_go)


def test_wrappers_around_classic_control_are_copied_with_it():
    gymnasium.register(
        "SnapshotsScaled-v0", "gymnasium.envs.classic_control:PendulumEnv",
        additional_wrappers=(gymnasium.wrappers.FrameStackObservation.wrapper_spec(stack_size=3),),
    )  # fmt: skip
    env = begun("SnapshotsScaled-v0", 5)
    assert isinstance(form_of(env), DeepCopy)
    check_replay(envs.make("SnapshotsScaled-v0", horizon=20), CPU)


def test_large_states_are_few_at_once():
    assert form_of(begun("Pendulum-v1", 0)).at_once is None and form_of(begun("SnapshotsWalk-v0", 0)).at_once == 4096
    seeds = rng.children(np.random.SeedSequence(0), 2)
    simulator = envs.with_termination(envs.make("SnapshotsWalk-v0", horizon=3), 0.5).make_simulator(CPU)
    simulator.reset(2, seeds[0])
    assert simulator.snapshots_at_once == 4096
