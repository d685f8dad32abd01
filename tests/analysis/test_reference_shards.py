"""A reference in shards: bit-equal to one job's, found by measurements, and shards that are not there are named."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest

from varlab import envs, policies, storage
from varlab.analysis.reference import SampledBlocks
from varlab.checks import InputError
from varlab.experiment import measure, plan
from varlab.layout import Layout
from varlab.preparation import Preparation
from varlab.shards import Shards
from varlab.values import CriticSettings

CRITIC = CriticSettings(n=20, hidden=(4,), epochs=1)
WORLDS = {
    "tensors": lambda: (lake := envs.make("FrozenLake-v1", horizon=8), policies.make("softmax_table", lake)),
    "vectorised": lambda: (pole := envs.make("CartPole-v1", horizon=5), policies.make("mlp", pole, hidden=(4,))),
    "one by one": lambda: (swing := envs.make("Pendulum-v1", horizon=2), policies.make("linear", swing)),
}


def planned(world="tensors", **changes):
    settings = {"n": 50, "reference": "sampled", "n_reference": 110, "values": "critic", "critic": CRITIC, "pilot": 20}
    return plan(*WORLDS[world](), "total_return", **{**settings, **changes})


def same(a, b):
    """Two references are the same in every bit."""
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert np.array_equal(x, y), field.name
        assert not isinstance(x, np.ndarray) or x.dtype == y.dtype


@pytest.mark.parametrize("world", WORLDS)
def test_shards_in_any_order_are_the_reference_of_one_job(world, tmp_path):
    """Parts of two trajectories, so that several parts make a block and J has many terms to add up."""
    settings = planned(world, part_size=2)
    alone = Preparation(settings).references.of("J_1", None, None)
    for order in ([0], [2, 0, 1], [1, 0, 4, 3, 2, 6, 5])[: 3 if world == "tensors" else 2]:
        cache = storage.ReferenceCache(tmp_path / str(len(order)))
        for shard in order:  # every shard has a job of its own
            assert Shards(settings, len(order), cache).make(shard)
        made = Shards(settings, len(order), cache).gather()["J_1"]
        same(made, alone)
        same(cache.get(alone.digest), alone)


def test_the_check_of_equal_bits_can_fail():
    a, b = (Preparation(planned(reference_seed=s)).references.of("J_1", None, None) for s in (0, 1))
    for other in (b, replace(a, j=np.nextafter(a.j, 9.0)), replace(a, grad=a.grad.astype(np.float32))):
        with pytest.raises(AssertionError):
            same(a, other)


def test_a_measurement_finds_what_shards_made(tmp_path):
    cache = storage.ReferenceCache(tmp_path)
    changes = {"gamma": 0.9, "objectives": ("J_1", "J_gamma")}
    for shard in (1, 0):
        Shards(planned(**changes), 2, cache).make(shard)
    made = Shards(planned(**changes), 2, cache).gather()
    assert list(made) == ["J_1", "J_gamma"] and made["J_1"].digest != made["J_gamma"].digest
    settings = {"n_reference": 110, "values": "critic", "critic": CRITIC, "reference": "sampled", "pilot": 30, **changes}
    found = measure(*WORLDS["tensors"](), ["reward_to_go", "gae"], n=60, seed=4, cache=cache, **settings)
    assert "reference" not in found.steps
    for name, reference in made.items():
        same(found.references[name], reference)


def test_missing_and_damaged_shards_are_named_and_made_again(tmp_path):
    cache, settings = storage.ReferenceCache(tmp_path), planned()
    job = Shards(settings, 4, cache)
    for shard in (0, 1, 3):
        job.make(shard)
    files = [storage.shard_path(tmp_path, job.digests["J_1"], i, 4) for i in range(4)]
    raw = files[1].read_bytes()
    files[1].write_bytes(raw[:-100])  # truncated
    flipped = bytearray(files[3].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    files[3].write_bytes(flipped)
    named = r"1 \(damaged: .*\), 2 \(missing\), 3 \(damaged: .*\); make them with shard=1,2,3 "
    with pytest.raises(InputError, match=named) as caught:
        job.gather()
    assert "\n" not in str(caught.value) and cache.get(job.digests["J_1"]) is None and list(job.lacking()) == [1, 2, 3]
    before = files[0].stat().st_mtime_ns
    assert [job.make(i) for i in range(4)] == [False, True, True, True]
    assert files[0].stat().st_mtime_ns == before and files[1].read_bytes() == raw
    same(job.gather()["J_1"], Preparation(settings).references.of("J_1", None, None))
    files[2].unlink()  # no longer needed
    assert not job.lacking() and not job.make(2) and job.gather()


def test_a_shard_of_another_reference_is_not_taken_for_ones_own(tmp_path):
    cache = storage.ReferenceCache(tmp_path)
    one, other = (Shards(planned(reference_seed=s), 2, cache) for s in (0, 1))
    one.make(0), one.make(1), other.make(0)
    mine, theirs = (storage.shard_path(tmp_path, job.digests["J_1"], 0, 2) for job in (one, other))
    mine.write_bytes(theirs.read_bytes())
    assert list(one.lacking()) == [0]
    swapped = storage.shard_path(tmp_path, one.digests["J_1"], 1, 2)
    mine.write_bytes(swapped.read_bytes())  # nor another shard of the same
    assert list(one.lacking()) == [0]


def some_blocks(ids, parts=1):
    ids = np.array(ids)
    return SampledBlocks(ids, ids + 1, ids[:, None] * [0.5, 2.0], ids + 3, ids * 0 + parts, np.repeat(ids / 8, parts))


def test_merging_is_associative_and_refuses_a_double_block():
    a, b, c = some_blocks([4, 5]), some_blocks([0, 2], parts=3), some_blocks([1])
    whole = a.merge(b).merge(c)
    for first, second, third in itertools.permutations((a, b, c)):
        same(first.merge(second.merge(third)), whole)
    assert whole.block_id.tolist() == [0, 1, 2, 4, 5]
    assert (8 * whole.returns).tolist() == [0, 0, 0, 1, 2, 2, 2, 4, 5]
    with pytest.raises(InputError, match=r"ids \[5\] occur in both"):
        a.merge(some_blocks([5, 6]))


def test_pooling_adds_in_stream_order():
    """J to the last bit as one loop over all parts rounds it, which sums in pairs or with correction do not."""
    returns = np.array([1.0, *[1e-16] * 19])
    ids = np.arange(10)
    made = SampledBlocks(ids, ids + 1, ids[:, None] * [0.5, 2.0], ids + 3, ids * 0 + 2, returns).pool("phi", "J_1", "digest")
    j = 0.0
    for part in returns:
        j += part
    assert made.j == j / 55 != np.sum(returns) / 55 and made.n == 55 and made.steps == 75
    assert made.grad.tolist() == [0.5 * 330 / 55, 2.0 * 330 / 55]  # Σ (b + 1) b = 330


@pytest.mark.parametrize("of", (1, 3, 7, 50))
def test_shares_of_a_layout_are_its_blocks_and_parts(of):
    layout = Layout(1234, 50, 4, unit=2)
    shares = [layout.shard(i, of) for i in range(of)]
    assert sum((s.sizes for s in shares), ()) == layout.sizes
    assert [p for s in shares for b in range(s.blocks) for p in s.parts(b)] == [p for b in range(50) for p in layout.parts(b)]
    assert [s.before for s in shares] == list(np.cumsum([0, *(s.n for s in shares[:-1])]))


@pytest.mark.parametrize(
    ("shard", "shards", "changes", "sentence"),
    [
        (4, 4, {}, "shard from 0 to 3 was expected, but shard=4 of shards=4"),
        (-1, 4, {}, "shard must be a whole number of at least 0"),
        (0, 51, {}, "At most 50 shards were expected"),
        (0, 0, {}, "shards must be a whole number of at least 1"),
        (0, 2, {"n_reference": None}, "stated size was expected, but reference=sampled with n_reference=None"),
        (0, 2, {"reference": "exact"}, "stated size was expected, but reference=exact"),
    ],
)
def test_what_cannot_be_a_shard_is_refused(shard, shards, changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        Shards(planned(**changes), shards, storage.ReferenceCache(tmp_path)).make(shard)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="shard from 0 to 1"):
        Layout(100, 2, 9).shard(0, 3)
