"""Baselines fitted on the data they judge: against loops over units, and their bias by enumeration of units."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from contract import UNIT_WORLDS, WORLDS, bandit, distance, exact_mean, gradients, random_world, select

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.estimators import Batch, FitBatch, make
from varlab.estimators.in_sample import InSampleBaseline
from varlab.estimators.optimal import OptimalBaseline
from varlab.estimators.step_baselines import RIDGE
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Trajectories, Values

CLASSES = ("constant", "time", "state", "features", "value")


def loop(of, batch):
    """Φ of every step by plain loops over units: the residuals of a regression of G on the class."""
    traj, out = batch.traj, torch.empty_like(batch.traj.reward)
    for first in range(0, len(traj), batch.unit):
        rows = range(int(traj.offsets[first]), int(traj.offsets[first + batch.unit]))
        ends = {r: int(traj.offsets[int(traj.episode[r]) + 1]) for r in rows}
        g = {r: sum(batch.gamma ** (u - r) * float(traj.reward[u]) for u in range(r, ends[r])) for r in rows}

        cells = sorted({(int(traj.time[r]), int(traj.state[r])) for r in rows}) if of == "state" else []
        x = np.array([see(of, batch, r, cells) for r in rows])
        y = np.array([g[r] for r in rows])
        size = np.linalg.norm(x, axis=0).clip(1e-300)
        ridge = (RIDGE if of in ("features", "value") else 0.0) ** 0.5 * np.eye(len(size))  # of columns of length one
        beta = np.linalg.lstsq(np.vstack([x / size, ridge]), np.concatenate([y, 0 * size]), rcond=1e-14)[0]
        out[rows.start : rows.stop] = torch.from_numpy(y - x / size @ beta)
    return out


def see(of, batch, r, cells):
    """What the class sees of one step."""
    traj = batch.traj
    t = float(traj.time[r]) / traj.horizon
    if of == "constant":
        return [1.0]
    if of == "time":
        return [float(int(traj.time[r]) == u) for u in range(traj.horizon)]
    if of == "state":
        return [float((int(traj.time[r]), int(traj.state[r])) == c) for c in cells]
    if of == "value":
        return [float(batch.values.v[r]), 1.0]
    if traj.obs.is_floating_point():
        o = traj.obs[r].double().flatten()
        return [*o.tolist(), *(o**2).tolist(), t, t**2, t**3, 1.0]
    return [*(float(int(traj.obs[r]) == s) for s in range(int(traj.obs.max()) + 1)), t, t**2, t**3, 1.0]


def batches():
    world = WORLDS["long"]()
    traj = rollout(world.env, world.policy, 60, Streams(3).sequence("rollout"))
    yield "finite", Batch(traj, world.wrong(traj, frozenset({"v"})), 0.9, unit=6)
    env = envs.make("Pendulum-v1", horizon=5)
    traj = rollout(env, policies.make("mlp", env, theta_seed=0), 40, Streams(3).sequence("rollout"))
    yield "real", Batch(traj, Values(v=traj.obs[:, 0].double() * 3 - traj.time), 0.9, unit=8)


BATCHES = dict(batches())


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("of", CLASSES)
def test_phi_is_the_residual_of_a_regression_within_each_unit(of, kind, monkeypatch):
    batch, e = BATCHES[kind], make("in_sample_baseline", of=of)
    if of == "state" and kind == "real":
        with pytest.raises(InputError, match="Finitely many states were expected for in_sample_baseline.*of=features"):
            e.phi(batch)
        return
    tolerance = {"rtol": 1e-6, "atol": 1e-4} if (of, kind) == ("features", "real") else {"rtol": 1e-9, "atol": 1e-9}
    found = e.phi(batch)
    torch.testing.assert_close(found, loop(of, batch), **tolerance)
    monkeypatch.setattr("varlab.estimators.in_sample.NUMBERS", 200)
    torch.testing.assert_close(e.phi(batch), found, rtol=1e-6, atol=1e-5)
    # Whatever the class, residuals of a regression that holds a constant add up to 0 in each unit.
    unit = batch.traj.episode // batch.unit
    sums = torch.zeros(len(batch.traj) // batch.unit, dtype=torch.float64).index_add(0, unit, found)
    assert float(sums.abs().max()) < 1e-6


@pytest.mark.parametrize("g", (2, 3, 4))
@pytest.mark.parametrize("where", ("prompts", "three arms"))
def test_the_mean_of_the_unit_shrinks_one_step_gradients_by_one_over_g(where, g):
    """E g = (1 − 1/G) ∇J exactly: each return is in its own baseline with weight 1/G."""
    world = UNIT_WORLDS[where]()
    for of in ("constant", "time"):
        mean = exact_mean(make("in_sample_baseline", of=of), world, group=g, unit=g)
        assert distance(mean, (1 - 1 / g) * world.gradient()) < 1e-13


@pytest.mark.parametrize("of", CLASSES[2:])
def test_richer_classes_shrink_more(of):
    """Over independent starts a class of d functions takes more than the constant; a start alone in its unit loses everything."""
    world = UNIT_WORLDS["prompts"]()
    settings = {"group": 2, "unit": 2, "shared_start": False}
    gradient = world.gradient()
    share = float(exact_mean(make("in_sample_baseline", of=of), world, **settings) @ gradient / (gradient @ gradient))
    # Half of the units have one start twice and keep 1/2; in the others each return is its own mean.
    assert share == pytest.approx(1 / 4, abs=1e-9)
    constant = float(exact_mean(make("in_sample_baseline"), world, **settings) @ gradient / (gradient @ gradient))
    assert constant == pytest.approx(1 / 2, abs=1e-12)


@pytest.mark.parametrize("of", CLASSES)
def test_over_several_steps_the_bias_shrinks_the_gradient_and_falls_with_the_unit(of):
    world = UNIT_WORLDS["two steps"]()
    gradient, biases = world.gradient(), []
    for unit in (2, 4):
        mean = exact_mean(make("in_sample_baseline", of=of), world, group=2, unit=unit)
        biases.append(float((mean - gradient) @ gradient / (gradient @ gradient)))
    assert -0.55 < biases[0] < biases[1] < -0.2


def test_units_are_counted_and_a_lone_trajectory_is_refused():
    env = envs.make("FrozenLake-v1", horizon=10)
    policy = policies.make("softmax_table", env, theta_seed=1)
    with pytest.raises(InputError, match="Units of several trajectories were expected for in_sample_baseline"):
        varlab.measure(env, policy, "in_sample_baseline", n=100)
    rows = varlab.measure(env, policy, ["reward_to_go", "in_sample_baseline"], n=400, group_size=4, pilot=80).summary
    assert rows["values_source"].tolist() == ["none", "none"] and rows["exact_variance"].isna()[1]
    assert rows["exact_bias_sq"].isna()[1]


# ---- the same leak inside an optimal baseline


@dataclass(frozen=True)
class Leaky(OptimalBaseline):
    """Fitted on the critic stream and on the trajectory that it judges."""

    stream: FitBatch | None = field(default=None, repr=False, compare=False)

    def fit(self, batch):
        return replace(super().fit(batch), stream=batch)

    def phi(self, batch):
        b = torch.empty_like(batch.traj.reward)
        for i in range(len(batch.traj)):
            one = select(batch.traj, torch.tensor([i]))
            made = super().fit(replace(self.stream, traj=Trajectories.join([self.stream.traj, one])))
            b[batch.traj.episode == i] = made.fitted.at(one)
        return batch.reward_to_go - b


def test_a_baseline_that_was_fitted_on_its_own_trajectory_too_is_rejected():
    """One trajectory among twenty others: the bias is of the order of a twentieth."""
    world = random_world(3, horizon=2, states=2, actions=2, outcomes=1)
    gradient = world.gradient()
    assert distance(exact_mean(make("optimal_baseline"), world), gradient) < 1e-12
    bias = float((exact_mean(Leaky(), world) - gradient).norm() / gradient.norm())
    assert 0.01 < bias < 0.1


@dataclass(frozen=True)
class SeesNext(InSampleBaseline):
    """The mean of the next unit: not its own data, so no longer a function of the unit, and unbiased."""

    def phi(self, batch):
        n = len(batch.traj)
        order = torch.arange(n).roll(-batch.unit)
        other = Batch(select(batch.traj, order), Values(), batch.gamma, unit=batch.unit)
        mean = torch.zeros(n // batch.unit, dtype=torch.float64)
        unit = other.traj.episode // batch.unit
        mean = mean.index_add(0, unit, other.reward_to_go) / torch.bincount(unit)
        return batch.reward_to_go - mean[batch.traj.episode // batch.unit]


def test_the_bias_is_the_leak_and_nothing_else():
    """With the mean of another unit in place of its own the same formula is unbiased: by enumeration of pairs of units."""
    world = bandit(((1.0, 0.2, -0.7),), ((0.3, -0.2, 0.5),))
    paths, p = world.paths.traj, world.probability
    total, own = 0.0, 0.0
    for units in itertools.product(itertools.product(range(3), repeat=2), repeat=2):
        index = torch.tensor([i for u in units for i in u])
        chance = float(p[index].prod())
        for e in (SeesNext(), InSampleBaseline()):
            g = gradients(e, world, select(paths, index), lambda traj, asks: Values(), unit=2)[0]
            total, own = (total + chance * g, own) if isinstance(e, SeesNext) else (total, own + chance * g)
    assert distance(total, world.gradient()) < 1e-13
    assert distance(own, world.gradient() / 2) < 1e-13
