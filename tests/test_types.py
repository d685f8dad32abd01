"""Frozen records: flat and padded views, joining, block moments, layouts."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from varlab.checks import InputError
from varlab.layout import Layout
from varlab.types import Moments, Reference, Trajectories

LENGTHS = [3, 1, 5, 2, 5]


def make(lengths=LENGTHS, state=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, n = sum(lengths), len(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terminated = torch.rand(n, generator=generator) < 0.5
    return Trajectories(
        obs=normal(rows, 2), action=torch.arange(rows), reward=normal(rows), offsets=torch.tensor([0, *np.cumsum(lengths)]),
        terminated=terminated, truncated=~terminated, last_obs=normal(n, 2), horizon=6,
        state=torch.arange(rows) if state else None, last_state=torch.arange(n) if state else None, env="World",
    )  # fmt: skip


def test_time_episode_and_length_follow_the_offsets():
    traj = make()
    assert (len(traj), traj.steps, traj.length.tolist()) == (5, 16, LENGTHS)
    assert traj.time.tolist() == [t for length in LENGTHS for t in range(length)]
    assert traj.episode.tolist() == [i for i, length in enumerate(LENGTHS) for _ in range(length)]
    assert traj.last_row.tolist() == [2, 3, 8, 10, 15]


@pytest.mark.parametrize("fill", [0.0, -7.0])
def test_padded_and_flat_are_inverse(fill):
    traj = make()
    for x in (traj.reward, traj.obs, traj.action):
        padded = traj.padded(x, fill)
        assert padded.shape == (5, 5, *x.shape[1:]) and padded.dtype == x.dtype
        assert torch.equal(traj.flat(padded), x)
        for i, length in enumerate(LENGTHS):
            start = int(traj.offsets[i])
            assert torch.equal(padded[i, :length], x[start : start + length]) and bool((padded[i, length:] == fill).all())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_chunks_cover_every_step_once_with_lengths_sorted(size):
    traj = make()
    seen, longest = [], []
    for chunk in traj.chunks(size):
        assert chunk.index.shape[0] <= size and chunk.rows.shape == chunk.mask.shape
        assert chunk.mask.sum(1).tolist() == traj.length[chunk.index].tolist() and bool(chunk.mask[0].all())
        for i, rows, mask in zip(chunk.index.tolist(), chunk.rows, chunk.mask, strict=True):
            own = torch.arange(int(traj.offsets[i]), int(traj.offsets[i + 1]))
            assert torch.equal(rows[mask], own) and bool((rows[~mask] == own[-1]).all())
            seen.append(i)
            longest.append(LENGTHS[i])
    assert sorted(seen) == list(range(5)) and longest == sorted(LENGTHS, reverse=True)
    assert seen == [2, 4, 0, 3, 1]  # a stable order: results do not depend on how a sort breaks ties


@pytest.mark.parametrize("state", [False, True])
def test_join_puts_records_end_to_end(state):
    made = [make([2, 1], state, 1), make([4], state, 2), make([1, 3, 2], state, 3)]
    whole = Trajectories.join(made)
    assert whole.length.tolist() == [2, 1, 4, 1, 3, 2] and whole.offsets[0] == 0 and (whole.horizon, whole.env) == (6, "World")
    for name in ("obs", "action", "reward", "terminated", "truncated", "last_obs", "state", "last_state"):
        parts = [getattr(t, name) for t in made]
        assert getattr(whole, name) is None if parts[0] is None else torch.equal(getattr(whole, name), torch.cat(parts)), name
    nested = Trajectories.join([Trajectories.join(made[:2]), made[2]])
    assert torch.equal(nested.offsets, whole.offsets) and Trajectories.join(made[:1]) is made[0]


def test_records_are_frozen_and_move_with_all_their_tensors():
    traj = make(state=True)
    _ = traj.time, traj.length  # what is cached must not stay behind
    moved = traj.to("meta")
    assert all(
        getattr(moved, f.name).device.type == "meta" for f in fields(moved) if isinstance(getattr(traj, f.name), torch.Tensor)
    )
    assert moved.length.device.type == "meta" and traj.obs.device.type == "cpu"
    with pytest.raises(FrozenInstanceError):
        traj.horizon = 3


def moments(ids, names=("a", "b"), per_parameter=True, comparator=0):
    draw = np.random.default_rng(list(ids)).normal
    b, k, p = len(ids), len(names), 3
    return Moments(
        block_id=np.array(ids), count=np.array(ids) + 10, mean=draw(size=(b, k, p)), trace_m2=draw(size=(b, k)),
        m2=draw(size=(b, k, p)) if per_parameter else None, cross=draw(size=(b, k)), m4=draw(size=(b, k)), m2c=draw(size=(b, k)),
        steps=np.array(ids) * 7, names=names, comparator=comparator,
    )  # fmt: skip


def same(a, b):
    return all(
        np.array_equal(x, y) if isinstance(x := getattr(a, f.name), np.ndarray) else x == y
        for f in fields(a)
        for y in [getattr(b, f.name)]
    )


def test_merge_is_associative_commutative_and_keeps_every_block():
    a, b, c = moments([4, 0]), moments([2]), moments([7, 1, 5])
    merged = a.merge(b).merge(c)
    assert same(merged, a.merge(b.merge(c))) and same(merged, c.merge(a).merge(b))
    assert merged.block_id.tolist() == [0, 1, 2, 4, 5, 7] and merged.n == sum([0, 1, 2, 4, 5, 7]) + 60
    for part in (a, b, c):
        for row, i in enumerate(part.block_id):
            at = int(np.flatnonzero(merged.block_id == i)[0])
            for name in ("count", "mean", "trace_m2", "m2", "cross", "m4", "m2c", "steps"):
                assert np.array_equal(getattr(merged, name)[at], getattr(part, name)[row]), name


def test_merge_keeps_m2_only_where_both_have_it():
    assert moments([0]).merge(moments([1])).m2.shape == (2, 2, 3)
    assert moments([0]).merge(moments([1], per_parameter=False)).m2 is None
    assert moments([0], per_parameter=False).merge(moments([1])).m2 is None


def test_merge_refuses_a_double_block_and_other_choices():
    with pytest.raises(InputError, match=r"ids \[2, 3\] occur in both"):
        moments([1, 2, 3]).merge(moments([3, 2, 9]))
    for other in (moments([1], names=("b", "a")), moments([1], names=("a",)), moments([1], comparator=1)):
        with pytest.raises(InputError, match="same choices in the same order"):
            moments([0]).merge(other)


@pytest.mark.parametrize(
    ("n", "blocks", "part_size"), [(100, 50, 7), (103, 50, 1), (1003, 50, 8), (5, 1, 2), (10_000, 50, 64), (3, 5, 4)]
)
def test_layout_spreads_n_evenly_over_blocks_and_parts(n, blocks, part_size):
    layout = Layout(n, blocks, part_size, first_block=20)
    assert sum(layout.sizes) == n and len(layout.sizes) == blocks and max(layout.sizes) - min(layout.sizes) <= 1
    for b, size in enumerate(layout.sizes):
        draws = layout.parts(b)
        assert sum(d.n for d in draws) == size and all(1 <= d.n <= part_size and d.block == 20 + b for d in draws)
        assert [d.part for d in draws] == list(range(-(-size // part_size)))
        assert not draws or max(d.n for d in draws) - min(d.n for d in draws) <= 1


def test_a_reference_without_blocks_is_exact():
    exact = Reference(np.zeros(2), None, None, 0.0, "exact", 0, "J_1")
    assert exact.exact and not replace(exact, block_mean=np.zeros((5, 2))).exact


def test_merge_keeps_the_steps_of_branches_where_both_know_them():
    a, b = (replace(moments(ids), charged=np.array(ids)[:, None] * [3, 5]) for ids in ([4, 0], [2]))
    assert a.merge(b).charged.tolist() == [[0, 0], [6, 10], [12, 20]]
    assert a.merge(moments([2])).charged is None
