"""varlab.exact() against sums over every trajectory of tiny worlds: mean and variance of every entry of g, to 1e-12."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from enumerated_moments import Masked, Temperature, differences, every_trajectory, moments, population_constants
from finite_worlds import random_logits, random_mdp
from torch import nn

import varlab
from varlab import envs, estimators, policies, storage, values
from varlab.envs import FiniteMDP
from varlab.estimators import Baseline, Batch, Estimator
from varlab.estimators.recursion import Recursion
from varlab.oracles import coordinates
from varlab.oracles.exact import world_of
from varlab.policies import SoftmaxTable
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Values
from varlab.values import CriticSettings, FunctionValues

TOLERANCE = 1e-12
HORIZON = 4
NAMES = (
    "total_return", "reward_to_go", "value_baseline", "q_value", "advantage", "td_residual", "n_step(k=1)", "n_step(k=2)",
    "n_step(k=3)", "n_step(k=10)", "gae(lam=0.0)", "gae(lam=0.5)", "gae(lam=1.0)",
)  # fmt: skip
OBJECTIVES = {"undiscounted": (1.0, True), "discounted": (0.8, True), "unweighted": (0.8, False)}
CUTS = ((None, "bootstrap"), *((cut, rule) for cut in (1, 2, 3) for rule in estimators.AT_CUT))


def user_baseline(obs, t):
    return obs.flatten(1).sum(1) * t - 0.3 if obs.dim() > 1 else 3.0 * obs - t**2


@dataclass(frozen=True)
class TotalReturnLessStart(Estimator):
    """A user's Φ: the total return less a function of the first state."""

    name = "total_return_less_start"
    weighted = False
    formula = "R_γ − b(s_0)"
    source = "here"
    b = np.array([0.5, -2.0, 1.25])

    def phi(self, batch):
        first = batch.traj.offsets[:-1]
        return (batch.reward_to_go[first] - torch.from_numpy(self.b)[batch.traj.state[first]])[batch.traj.episode]

    def recursion(self, world):
        return Recursion(world.reward, world.gamma, subtract=lambda t: self.b, total=True)


CHOICES = [*map(estimators.parse, NAMES), Baseline(user_baseline, called="user"), TotalReturnLessStart()]


class Setting:
    """A random world with a policy of some kind, and its values, right and wrong."""

    def __init__(self, kind, seed=0):
        mdp = random_mdp(seed)
        if kind.startswith("features"):
            width = 1 if kind == "features_linear" else 2
            draw = torch.Generator().manual_seed(seed + 8)
            mdp = replace(mdp, observations=torch.randn(3, width, generator=draw, dtype=torch.float64))
        self.env = envs.environment(mdp, HORIZON)
        policy = {
            "table": lambda: SoftmaxTable(self.env, random_logits(seed + 1, mdp)),
            "linear": lambda: policies.make("linear", self.env, theta_seed=1),
            "mlp": lambda: policies.make("mlp", self.env, theta_seed=1, hidden=(4,)),
            "user": lambda: Temperature(3, 2),
            "masked": lambda: Masked(),
        }[kind.removeprefix("features_")]()
        self.policy = policies.prepare(policy, torch.float64, "cpu")
        draw = torch.Generator().manual_seed(seed + 2)
        v = 3 * torch.randn(HORIZON + 1, 3, generator=draw, dtype=torch.float64)
        q = 3 * torch.randn(HORIZON, 3, 2, generator=draw, dtype=torch.float64)

        def state(obs):
            return obs if obs.dim() == 1 else (obs.unsqueeze(1) - mdp.observations).square().sum(-1).argmin(1)

        self.wrong = FunctionValues(v=lambda s, t: v[t, state(s)], q=lambda s, a, t: q[t, state(s), a])
        self.stream = rollout(self.env, self.policy, 25, Streams(seed).sequence("critic"))

    def source(self, name, gamma):
        if name == "exact":
            return values.ExactValues.of(self.env.finite, self.policy, gamma, HORIZON)
        if name == "wrong":
            return self.wrong
        target = Batch(self.stream, Values(), gamma).reward_to_go
        settings, sequence = CriticSettings(hidden=(5,), epochs=2, minibatch=8), Streams(0).sequence("fit")
        return values.fit(self.env, self.stream, target, settings, sequence, storage.digest, torch.float64)

    def compare(self, phi, truth_phi=None, source=None, gamma=1.0, discount_weighting=True, cut=None, at_cut="bootstrap"):
        """[K] the larger relative difference of mean and variance from enumeration."""
        given = "exact" if isinstance(source, values.ExactValues) else source
        settings = {"gamma": gamma, "discount_weighting": discount_weighting, "cut": cut, "at_cut": at_cut}
        found = varlab.exact(self.env, self.policy, phi, values=given, **settings)
        mean, variance = moments(self.env, self.policy, truth_phi or phi, source, **settings)
        np.testing.assert_allclose(found.variance, variance.sum(1), rtol=TOLERANCE)
        return np.maximum(differences(found.mean, mean), differences(found.variance_per_parameter, variance))


KINDS = ("table", "linear", "mlp", "features_linear", "features_mlp", "user", "masked")


@pytest.fixture(scope="module", params=KINDS)
def setting(request):
    return Setting(request.param)


def test_worlds_and_policies_are_not_special_cases():
    settings = {kind: Setting(kind) for kind in KINDS}
    mdp = settings["table"].env.finite
    assert bool((mdp.next_state[..., 0] == mdp.next_state[..., 1]).all())
    same_end = mdp.terminated[..., 0] == mdp.terminated[..., 1]
    assert bool((same_end & (mdp.reward[..., 0] != mdp.reward[..., 1])).any())
    assert bool(mdp.terminated.any()) and not bool(mdp.terminated.all()) and not mdp.reward_only_at_end
    traj, _ = every_trajectory(settings["table"].env, settings["table"].policy)
    assert set(traj.length.tolist()) == set(range(1, HORIZON + 1)) and len(traj) > 500
    worlds = {k: world_of(s.env, s.policy, None, 1.0, None, "terminal") for k, s in settings.items()}
    chosen = {k: type(coordinates.choose(w)).__name__ for k, w in worlds.items()}
    assert chosen["table"] == "TableLogits" and chosen["mlp"] == chosen["linear"] == chosen["user"] == "NetworkLogits"
    assert chosen["features_linear"] == chosen["masked"] == "Parameters"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("source", ("exact", "wrong"))
def test_every_phi_under_every_policy(setting, source, objective):
    gamma, weighting = OBJECTIVES[objective]
    assert setting.compare(CHOICES, None, setting.source(source, gamma), gamma, weighting).max() < TOLERANCE
    for at_cut in estimators.AT_CUT:
        found = setting.compare(CHOICES, None, setting.source(source, gamma), gamma, weighting, 2, at_cut)
        assert found.max() < TOLERANCE, at_cut


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_every_cut_and_rule(seed, objective):
    gamma, weighting = OBJECTIVES[objective]
    setting = Setting("table", seed)
    for cut, at_cut in CUTS:
        for source in ("exact", "wrong"):
            found = setting.compare(CHOICES, None, setting.source(source, gamma), gamma, weighting, cut, at_cut)
            assert found.max() < TOLERANCE, (cut, at_cut, source)


@pytest.mark.parametrize("kind", ("table", "features_mlp"))
def test_a_fitted_critic(kind):
    setting = Setting(kind, 4)
    for gamma, weighting in OBJECTIVES.values():
        critic = setting.source("critic", gamma)
        for cut, at_cut in ((None, "bootstrap"), (2, "bootstrap"), (2, "wrong_state")):
            assert setting.compare(CHOICES, None, critic, gamma, weighting, cut, at_cut).max() < TOLERANCE


def test_constants_of_the_population_and_of_a_fit(setting):
    """Also at a cut, which leaves the constants alone: the critic stream is not cut."""
    names = [estimators.parse(name) for name in ("constant_baseline", "time_baseline")]
    for gamma, weighting in OBJECTIVES.values():
        constants = population_constants(setting.env, setting.policy, gamma)
        population = [replace(e, fitted=b) for e, b in zip(names, constants, strict=True)]
        fitted = [e.fit(Batch(setting.stream, Values(), gamma)) for e in names]
        for cut in (None, 2):
            assert setting.compare(names, population, None, gamma, weighting, cut, "terminal").max() < TOLERANCE
        assert setting.compare(fitted, None, None, gamma, weighting).max() < TOLERANCE


def test_a_time_that_nobody_reaches_has_baseline_zero():
    """With every first step terminal, b_t for t > 0 is the mean of nothing; it must not matter and not be NaN."""
    setting = Setting("table")
    mdp = replace(setting.env.finite, terminated=torch.ones_like(setting.env.finite.terminated))
    setting.env = envs.environment(mdp, HORIZON)
    found = varlab.exact(setting.env, setting.policy, ["time_baseline", "constant_baseline"])
    np.testing.assert_allclose(found.mean[0], found.mean[1], rtol=TOLERANCE)
    np.testing.assert_allclose(found.variance[0], found.variance[1], rtol=TOLERANCE)


def test_gradient_and_performance(setting):
    """∇J_γ and J_γ against the enumerated mean of total_return and the enumerated mean return."""
    traj, probability = every_trajectory(setting.env, setting.policy)
    for gamma in (1.0, 0.8):
        found = varlab.exact(setting.env, setting.policy, "total_return", gamma=gamma)
        mean, _ = moments(setting.env, setting.policy, [estimators.parse("total_return")], None, gamma)
        returns = Batch(traj, Values(), gamma, "terminal").reward_to_go[traj.offsets[:-1]]
        np.testing.assert_allclose(found.gradient, mean[0], rtol=TOLERANCE, atol=TOLERANCE * np.abs(mean).max())
        np.testing.assert_allclose(found.j, float(probability @ returns), rtol=TOLERANCE)
        np.testing.assert_allclose(found.mean[0], mean[0], rtol=TOLERANCE, atol=TOLERANCE * np.abs(mean).max())
        np.testing.assert_allclose(found.nsr, found.variance / (mean[0] ** 2).sum(), rtol=1e-11)
        assert found.bias_sq[0] < 1e-24


def test_with_the_cut_at_the_horizon_all_rules_are_one(setting):
    plain = varlab.exact(setting.env, setting.policy, CHOICES, values=setting.wrong, gamma=0.8)
    for at_cut in estimators.AT_CUT:
        found = varlab.exact(setting.env, setting.policy, CHOICES, values=setting.wrong, gamma=0.8, cut=HORIZON, at_cut=at_cut)
        assert (found.mean == plain.mean).all() and (found.variance_per_parameter == plain.variance_per_parameter).all()


def test_rules_at_a_cut_differ():
    setting = Setting("table")
    found = [varlab.exact(setting.env, setting.policy, CHOICES, values=setting.wrong, cut=2, at_cut=r) for r in estimators.AT_CUT]
    reads_rewards = [i for i, e in enumerate(CHOICES) if e.name not in ("q_value", "advantage")]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (np.abs(found[i].variance / found[j].variance - 1)[reads_rewards] > 1e-3).all()


@pytest.mark.parametrize(
    "change",
    (
        {"horizon": 1}, {"gamma": 0.0}, {"gamma": 0.0, "discount_weighting": False}, {"initial": [0.0, 1.0, 0.0]},
        {"outcomes": 1}, {"ending": 0.0}, {"ending": 1.1}, {"states": 1}, {"actions": 1}, {"actions": 3, "outcomes": 2},
    ),
    ids=str,
)  # fmt: skip
def test_degenerate_worlds(change):
    """Single steps, states, actions and outcomes; γ = 0; no end, or one at once; states that nobody reaches."""
    change = dict(change)
    settings = {k: change.pop(k) for k in ("gamma", "discount_weighting") if k in change}
    horizon, initial = change.pop("horizon", 3), change.pop("initial", None)
    mdp = random_mdp(6, **change)
    mdp = mdp if initial is None else replace(mdp, initial=torch.tensor(initial, dtype=torch.float64))
    setting = Setting("table")
    setting.env = envs.environment(mdp, horizon)
    for policy in (SoftmaxTable(setting.env, random_logits(5, mdp)), policies.make("mlp", setting.env, hidden=(3,))):
        setting.policy = policies.prepare(policy, torch.float64, "cpu")
        phi = [e for e in CHOICES if e.name != "total_return_less_start"]
        source = values.ExactValues.of(mdp, setting.policy, settings.get("gamma", 1.0), horizon)
        if mdp.num_actions == 1:  # no choice, no score
            found = varlab.exact(setting.env, setting.policy, phi, **settings)
            assert not found.mean.any() and not found.variance_per_parameter.any()
        else:
            assert setting.compare(phi, None, source, **settings).max() < TOLERANCE


class SameTable(nn.Module):
    """A softmax table that does not say that it is one, with logits α θ + d: P = S·A, or less where rows share θ."""

    def __init__(self, logits, shared=None):
        super().__init__()
        self.shared = torch.arange(len(logits)) if shared is None else shared
        self.theta = nn.Parameter(logits[: int(self.shared.max()) + 1].clone())

    def forward(self, obs):
        return torch.distributions.Categorical(logits=self.theta[self.shared[obs]])


def test_coordinates_agree_on_a_larger_world(monkeypatch):
    """The table's own path, all pairs of logits, and θ itself, each in one part and in many, for H = 12 and 25 states."""
    mdp = random_mdp(11, states=25, actions=3, outcomes=4, ending=0.03)
    env, logits = envs.environment(mdp, 12), random_logits(12, mdp)
    table, phi = SoftmaxTable(env, logits), ("total_return", "time_baseline", "td_residual", "n_step(k=3)", "gae(lam=0.5)")
    for gamma, weighting in OBJECTIVES.values():
        one = varlab.exact(env, table, phi, gamma=gamma, discount_weighting=weighting)
        for part, form in ((2**16, None), (300, None), (300, coordinates.Parameters)):
            with monkeypatch.context() as m:
                m.setattr(coordinates, "PART", part)
                m.setattr(coordinates, "COLUMNS", 7)
                if form is not None:
                    m.setattr("varlab.oracles.recursions.choose", form)
                for policy in (SameTable(logits), *([table] if form is None else [])):
                    other = varlab.exact(env, policy, phi, gamma=gamma, discount_weighting=weighting)
                    assert differences(other.mean, one.mean).max() < TOLERANCE
                    assert differences(other.variance_per_parameter, one.variance_per_parameter).max() < TOLERANCE


def test_states_that_share_parameters(monkeypatch):
    """θ shared by several states, by both routes: few parameters directly, and through the logits."""
    mdp = random_mdp(13, states=8, actions=2, outcomes=3, ending=0.1)
    env, logits = envs.environment(mdp, 12), random_logits(14, mdp)
    policy = SameTable(logits, torch.tensor([0, 1, 1, 0, 2, 2, 1, 0]))
    direct = varlab.exact(env, policy, estimators.SOURCE_TEXT, gamma=0.9)
    monkeypatch.setattr("varlab.oracles.recursions.choose", coordinates.NetworkLogits)
    through = varlab.exact(env, policy, estimators.SOURCE_TEXT, gamma=0.9)
    assert differences(through.mean, direct.mean).max() < TOLERANCE
    assert differences(through.variance_per_parameter, direct.variance_per_parameter).max() < TOLERANCE


def test_padding_does_not_matter():
    """Outcomes of probability 0, whatever they say, change nothing."""
    mdp = random_mdp(2)
    pad = {"probability": 0.0, "next_state": 2, "reward": 1e6, "terminated": False}
    padded = {k: torch.cat([getattr(mdp, k), torch.full((3, 2, 1), x, dtype=getattr(mdp, k).dtype)], -1) for k, x in pad.items()}
    worlds = [envs.environment(m, HORIZON) for m in (mdp, FiniteMDP(**padded, initial=mdp.initial))]
    a, b = (varlab.exact(env, SoftmaxTable(env, random_logits(3, mdp)), NAMES) for env in worlds)
    np.testing.assert_allclose(b.mean, a.mean, rtol=TOLERANCE, atol=1e-14)
    np.testing.assert_allclose(b.variance_per_parameter, a.variance_per_parameter, rtol=TOLERANCE, atol=1e-14)
