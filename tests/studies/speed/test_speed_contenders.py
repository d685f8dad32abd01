"""All contenders find the same numbers in float64, on equal, ragged and Gaussian works; one that does not is refused."""

import pytest
import torch

from varlab.checks import InputError
from varlab.studies.speed import catalogue, own, race, works
from varlab.studies.speed.own import Own
from varlab.studies.speed.peers_torch import PEERS, BackwardLoop, StepScores, VmapNested
from varlab.studies.speed.results import MomentsResult, PairsResult, TraceResult

RESULTS = (MomentsResult, TraceResult, PairsResult)
WORKS = {"equal": {}, "ragged": {"ragged": True, "t": 40}, "gaussian": {"gaussian": True}}


def small(name):
    return works.make(**{"k": 2, "t": 4, "hidden": (5,), "n": 32, **WORKS[name]}).small(torch.float64)


def test_a_ragged_work_has_phi_up_to_the_end_of_each_trajectory_alone():
    ragged = works.make(2, 60, (5,), ragged=True, n=64)
    assert (ragged.length.diff() <= 0).all() and int(ragged.length[0]) == ragged.obs.shape[1] > int(ragged.length[-1])
    assert torch.equal((ragged.phi != 0).sum(2), ragged.length[:, None].expand(-1, 2))
    pieces = list(ragged.pieces(16))
    assert [p[2].shape[2] for p in pieces] == ragged.length[::16].tolist()
    assert ragged.share(8).steps == int(ragged.length[::8].sum())


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("name", "result"),
    [*(("equal", result) for result in RESULTS), ("ragged", TraceResult), ("gaussian", MomentsResult)],
)
def test_torch_peers_give_the_numbers_of_varlab(name, result, peer):
    work = small(name)
    for found, mine in zip(peer(work, result)(2), Own(work, result)(2), strict=True):
        torch.testing.assert_close(found, mine, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("result", RESULTS)
def test_chunks_do_not_change_the_numbers(result):
    work = works.make(2, 4, (5,), n=64).small(torch.float64, n=64)
    for contender in (Own, VmapNested, StepScores):
        for one, other in zip(contender(work, result)(4), contender(work, result)(2), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


class Wrong(BackwardLoop):
    """A peer off by a thousandth."""

    name = "wrong"

    def gradients(self, obs, action, phi):
        for choices, entries, g in super().gradients(obs, action, phi):
            yield choices, entries, 1.001 * g


@pytest.mark.parametrize("result", RESULTS)
def test_a_peer_that_disagrees_is_refused(result):
    work = works.make(2, 4, (5,), n=32)
    race.check(work, result, [Own, BackwardLoop])
    with pytest.raises(InputError, match="expected from wrong"):
        race.check(work, result, [Own, BackwardLoop, Wrong])


def test_numbers_that_are_not_finite_are_refused():
    one = torch.ones(2)
    with pytest.raises(InputError, match="differ by nan"):
        race.agree("broken", [one * torch.nan], [one], 1e-3)


def test_varlab_takes_a_chunk_of_a_measurement_too():
    work = works.make(8, 100, (64, 64), n=32)
    assert own.chunk(work) == 2**13 // 100 and own.chunk(work) in Own(work, MomentsResult).chunks


def test_trajectories_fill_blocks():
    assert works.size(8, 100, 4610) == works.size(256, 100, 4610) == 512
    assert works.size(256, 1000, 4610) == 32 and works.doubled(1, 0.3) == 1 and works.doubled(32, 200) == 128
    with pytest.raises(InputError, match="try 64"):
        works.make(2, 4, (5,), n=96)


def test_peers_by_name_are_there_or_absent_with_a_reason():
    found, missing = catalogue.entrants()
    wanted = {name for result in RESULTS for k in (8, 64) for name in catalogue.peers_of(result, k)}
    assert wanted == found.keys() | missing.keys() and not found.keys() & missing.keys()
    assert all("extra bench" in reason for reason in missing.values())
    for name, peer in found.items():
        assert peer.name == name
