"""Fifty kills of a sweep of sixty jobs: make test-faults."""

import kills

#: 30 seeds and two discounts; FrozenLake and n = 50, so that a job takes less than a second.
SWEEP = ("-m", "env=frozenlake", "policy=softmax_table", "phi=[total_return,reward_to_go]", "n=50", "pilot=50", "figures=false",
         "seed=range(30)", "gamma=0.95,1", "reference=sampled", "reference.n=50")  # fmt: skip


def test_a_sweep_killed_fifty_times_ends_as_an_undisturbed_one(tmp_path):
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for folder in (calm, disturbed):
        folder.mkdir()
    seconds = kills.complete(calm, SWEEP)
    hits = kills.disturb(disturbed, SWEEP, kills=50, seed=0, job_seconds=seconds / 60)
    assert sum(hits.values()) == 50 and min(hits.values()) >= 5, hits
    kills.complete(disturbed, SWEEP)
    assert len(kills.table(disturbed)) == 60 * 2
    kills.assert_alike(calm, disturbed)
