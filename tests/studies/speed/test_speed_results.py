"""What contenders must find: against all gradients at once, and against a naive jackknife."""

import pytest
import torch
from scipy import stats

from varlab.checks import InputError
from varlab.studies.speed import works
from varlab.studies.speed.results import BLOCKS, MomentsResult, PairsResult, TraceResult


@pytest.fixture(scope="module")
def work():
    return works.make(3, 2, (5,), n=64).small(torch.float64, n=64)


def gradients(work, shift=0.0):
    generator = torch.Generator().manual_seed(5)
    shape = (work.n, work.k, work.num_parameters)
    return shift + torch.randn(*shape, generator=generator, dtype=torch.float64).exp()


def found(result, work, g, chunk=4):
    made = result(work)
    for piece in g.split(chunk):
        half = g.shape[2] // 2
        for choices in (slice(0, 1), slice(1, None)):
            for entries in (slice(0, half), slice(half, None)):
                made.add(made.parts(piece[:, choices, entries]), choices, entries)
        made.passed(len(piece))
    return made.found()


def traces(g):
    """tr Cov of [n, K, P] by the textbook."""
    return g.var(0).sum(1)


def half_distances(g):
    return torch.stack([(a - b).square().sum(1) / 2 for a, b in zip(g[0::2], g[1::2], strict=True)]).mean(0)


def test_moments_are_those_of_all_gradients(work):
    g = gradients(work)
    for one, other in zip(found(MomentsResult, work, g), (g.mean(0), g.square().mean(0)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("result", "estimate"), [(TraceResult, traces), (PairsResult, half_distances)])
def test_traces_and_their_intervals_are_those_of_a_naive_jackknife(work, result, estimate):
    g = gradients(work)
    value, width = found(result, work, g)
    torch.testing.assert_close(value, estimate(g), rtol=1e-11, atol=0)
    size = work.n // BLOCKS
    without = torch.stack([estimate(torch.cat([g[: b * size], g[(b + 1) * size :]])).log() for b in range(BLOCKS)])
    spread = (BLOCKS - 1) / BLOCKS * (without - without.mean(0)).square().sum(0)
    torch.testing.assert_close(width, stats.t.ppf(0.975, BLOCKS - 1) * spread.sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("result", [TraceResult, PairsResult])
def test_a_variance_does_not_move_with_the_mean_but_a_second_moment_does(work, result):
    here, there = (gradients(work, shift) for shift in (0.0, 3.0))
    torch.testing.assert_close(found(result, work, there)[0], found(result, work, here)[0], rtol=1e-10, atol=0)
    second = [found(MomentsResult, work, g)[1].sum(1) for g in (here, there)]
    assert (second[1] > 1.5 * second[0]).all()


def test_a_chunk_over_the_end_of_a_block_is_refused(work):
    assert TraceResult.allows(4, 64) and not TraceResult.allows(3, 64) and not TraceResult.allows(8, 64)
    assert MomentsResult.allows(3, 64) and MomentsResult.allows(64, 64) and not MomentsResult.allows(65, 64)
    with pytest.raises(InputError, match="blocks of 4 trajectories"):
        found(TraceResult, work, gradients(work), chunk=3)
