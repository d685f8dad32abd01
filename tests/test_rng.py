"""Named streams: every part of every block has numbers of its own, and nobody else's numbers move."""

import itertools

import numpy as np
import pytest
import torch

from varlab import rng
from varlab.checks import InputError


def draw(sequence):
    return rng.torch_generator(sequence).initial_seed(), tuple(rng.numpy_generator(sequence).integers(2**62, size=2))


def test_every_root_stream_block_and_part_has_its_own_numbers():
    keys = list(itertools.product((0, 1, 2**40), rng.STREAMS, (0, 1, 49), (0, 1)))
    drawn = [draw(rng.Streams(root).sequence(*key)) for root, *key in keys]
    assert len({seed for seed, _ in drawn}) == len({numbers for _, numbers in drawn}) == len(keys)
    assert drawn == [draw(rng.Streams(root).sequence(*key)) for root, *key in keys]


def test_stream_numbers_stay_as_they_are():
    assert rng.STREAMS == {
        "rollout": 0, "reference": 1, "critic": 2, "pilot": 3, "branch": 4, "bootstrap": 5, "theta": 6, "fit": 7,
        "train": 8, "train_first": 9, "train_fit": 10, "learning_curve": 11, "error": 12,
    }  # fmt: skip
    assert rng.Streams(7).sequence("pilot", 4, 2).spawn_key == (3, 4, 2)


def test_an_unknown_stream_names_the_nearest():
    with pytest.raises(InputError, match="stream of randomness is called 'rollouts'; the nearest names are rollout"):
        rng.Streams(0).sequence("rollouts")


def test_children_are_those_of_spawn_and_always_the_same():
    sequence = rng.Streams(5).sequence("critic", 3, 1)
    first = rng.children(sequence, 3)
    spawned = rng.Streams(5).sequence("critic", 3, 1).spawn(3)
    for child, other, again in zip(first, spawned, rng.children(sequence, 3), strict=True):
        assert np.array_equal(child.generate_state(8), other.generate_state(8))
        assert np.array_equal(child.generate_state(8), again.generate_state(8))
    grandchildren = [g.generate_state(4).tolist() for c in first for g in rng.children(c, 2)]
    assert len({tuple(g) for g in grandchildren}) == 6


def test_the_global_generator_is_lent_and_restored():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with rng.global_generator(3):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(KeyError), rng.global_generator(3):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
