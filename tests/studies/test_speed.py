"""The benchmark compares equal work: peers agree with varlab on the numbers before any is timed."""

import gymnasium
import pytest
import torch

from varlab import envs, policies, scores
from varlab.analysis.moments import Block
from varlab.checks import InputError
from varlab.studies import peers, speed


@pytest.fixture(scope="module")
def work():
    policy = policies.make("mlp", envs.make("CartPole-v1"), hidden=[5]).double()
    generator = torch.Generator().manual_seed(3)
    obs = torch.randn(6, 4, 4, generator=generator, dtype=torch.float64)
    action = torch.randint(0, 2, (6, 4), generator=generator)
    phi = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    score_map = scores.make(policy, obs[0], action[0])
    zero = torch.zeros(3, score_map.num_parameters, dtype=torch.float64)
    block = Block(zero, zero[:1], 0, per_parameter=True)
    block.add(score_map.at(obs, action), phi)
    return (policy, obs, action, phi), (block.s1 / 6, block.s2 / 6)


@pytest.mark.parametrize("peer", [peers.backward_loop, lambda *w: peers.vmap_grad(*w, 2), lambda *w: peers.vmap_nested(*w, 4)])
def test_peers_give_the_same_moments(work, peer):
    for found, mine in zip(peer(*work[0]), work[1], strict=True):
        torch.testing.assert_close(found, mine, rtol=1e-10, atol=1e-12)


def test_a_peer_that_disagrees_is_refused(work):
    speed._agree("right", work[1], work[1])
    with pytest.raises(InputError, match="wrong"):
        speed._agree("wrong", [1.01 * x for x in work[1]], work[1])


def test_the_loop_steps_whole_episodes_of_the_same_world():
    policy = policies.make("linear", envs.make("CartPole-v1"))
    taken = peers.one_environment_loop("CartPole-v1", policy, 30)
    assert taken >= 30 and taken < 30 + gymnasium.spec("CartPole-v1").max_episode_steps


def test_rows_hold_ratios_of_the_peer_to_varlab():
    (row,) = speed.compare("work", lambda: 2.0, {"peer": (lambda: 6.0, 2.5)}, rounds=3)
    assert (row.ratio_min, row.ratio_median, row.ratio_max, row.target) == (3.0, 3.0, 3.0, 2.5)
    assert row.varlab_seconds == 2.0


@pytest.mark.parametrize("small", [{"n": 32, "t": 5, "k": 2, "loop_share": 4}])
def test_the_works_run(small):
    rows = [*speed.gradients(1, **small), *speed.sampling(1, n=64, loop_steps=20)]
    assert len(rows) == 4 and all(row.ratio_median > 0 for row in rows)
    assert {row.target for row in rows} == {2.0, None, 150.0}
