"""Actions drawn with a given generator follow the distribution, whatever family it is."""

import pytest
import torch
from scipy import stats
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Independent,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
)

from varlab import policies

N = 8000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(*values):
    return torch.tensor(values).expand(N, len(values))


class Masked(Categorical):
    """A subclass with a law of its own: never the action 0."""

    def sample(self, sample_shape=()):
        return super().sample(sample_shape).clamp(min=1)


class Folded(Normal):
    def sample(self, sample_shape=()):
        return super().sample(sample_shape).abs()


@pytest.mark.parametrize("probs", [(0.2, 0.5, 0.3), (0.0, 1.0), (0.25, 0.0, 0.75), (1.0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical(probs, dtype):
    action = policies.sample(Categorical(probs=rows(*probs).to(dtype)), generator())
    assert action.shape == (N,) and action.dtype == torch.int64
    count = torch.bincount(action, minlength=len(probs)).numpy()
    possible = [i for i, p in enumerate(probs) if p > 0]
    assert count[possible].sum() == N
    assert len(possible) == 1 or stats.chisquare(count[possible], [N * probs[i] for i in possible]).pvalue > 1e-3
    if len(possible) > 1:
        assert stats.chisquare(count[possible][::-1], [N * probs[i] for i in possible]).pvalue < 1e-3


def test_each_row_has_its_own_probabilities_and_its_own_draw():
    probs = torch.eye(5)[torch.arange(N) % 5]
    assert torch.equal(policies.sample(Categorical(probs=probs), generator()), torch.arange(N) % 5)
    pairs = policies.sample(Categorical(probs=rows(0.5, 0.5)), generator()).view(-1, 2)
    count = torch.bincount(2 * pairs[:, 0] + pairs[:, 1], minlength=4).numpy()
    assert stats.chisquare(count).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_never_draws_an_action_of_probability_zero(dtype, monkeypatch):
    """A masked last action must not be drawn where the cumulated probabilities round to less than one."""
    logits = torch.cat(
        [torch.randn(20_000, 7, generator=generator(), dtype=dtype), torch.full((20_000, 1), -torch.inf, dtype=dtype)], 1
    )
    law = Categorical(logits=logits)
    assert float(law.probs.cumsum(-1)[:, -2].min()) < 1
    for u in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(torch, "rand", lambda shape, generator, device, dtype, u=u: torch.full(shape, u, dtype=dtype))
        action = policies.sample(law, generator())
        assert int(action.max()) == (6 if u else 0) and bool(torch.isfinite(law.log_prob(action)).all())


@pytest.mark.parametrize("wrap", [lambda law: law, lambda law: Independent(law, 1)])
def test_normal(wrap):
    law = wrap(Normal(rows(1.0, -2.0), rows(0.5, 3.0)))
    action = policies.sample(law, generator())
    assert action.shape == (N, 2) and action.dtype == torch.float32
    for i, (loc, scale) in enumerate([(1.0, 0.5), (-2.0, 3.0)]):
        assert stats.kstest(action[:, i].numpy(), stats.norm(loc, scale).cdf).pvalue > 1e-3
        assert stats.kstest(action[:, i].numpy(), stats.norm(loc, 1.1 * scale).cdf).pvalue < 1e-3
    assert abs(float(torch.corrcoef(action.T)[0, 1])) < 4 / N**0.5


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Independent(Beta(rows(2.0), rows(5.0)), 1), stats.beta(2, 5).cdf),
        (TransformedDistribution(Normal(rows(0.3), rows(1.2)), SigmoidTransform()), lambda x: stats.norm(0.3, 1.2).cdf(
            stats.logistic.ppf(x))),
        (Folded(rows(0.0), rows(1.0)), stats.halfnorm.cdf),
    ],
)  # fmt: skip
def test_other_densities_and_subclasses_use_their_own_law(law, cdf):
    action = policies.sample(law, generator())
    assert action.shape == (N, 1)
    assert stats.kstest(action[:, 0].double().numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(action[:, 0].double().numpy(), lambda x: cdf(x) ** 1.2).pvalue < 1e-3


def test_other_discrete_families_and_subclasses_use_their_own_law():
    action = policies.sample(Bernoulli(probs=torch.full((N,), 0.3)), generator())
    assert stats.binomtest(int(action.sum()), N, 0.3).pvalue > 1e-3 > stats.binomtest(int(action.sum()), N, 0.35).pvalue
    assert int(policies.sample(Masked(probs=rows(0.9, 0.1)), generator()).min()) == 1


@pytest.mark.parametrize("law", [Categorical(probs=rows(0.2, 0.8)), Normal(rows(0.0), rows(1.0)), Beta(rows(2.0), rows(5.0))])
def test_draws_follow_the_generator_and_move_it(law):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = generator(), generator()
    first = policies.sample(law, one)
    assert torch.equal(first, policies.sample(law, two)) and not torch.equal(first, policies.sample(law, one))
    assert not torch.equal(first, policies.sample(law, generator(1)))
    assert torch.equal(torch.get_rng_state(), before)
