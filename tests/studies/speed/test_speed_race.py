"""Timing by a clock that the tests move: chunk sizes, shares, ratios; then the rows of every work, and the script itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pandas as pd
import pytest
import torch

import varlab
from varlab import envs, policies
from varlab.estimators import SOURCE_TEXT
from varlab.studies.speed import catalogue, growth, memory, peak, race, sampling, targets, whole, works
from varlab.studies.speed.results import MomentsResult, PairsResult, TraceResult
from varlab.workers import Crew

ROOT = Path(__file__).resolve().parents[3]


class Clocked:
    """Takes a second per step at chunk 8, three at others."""

    name, chunks, by_step = "clocked", (2, 4, 8, 16, 64), False
    clock, done = 0.0, []

    def __init__(self, work, result):
        self.work = work

    def __call__(self, chunk):
        Clocked.clock += self.work.steps * (1.0 if chunk == 8 else 3.0)
        Clocked.done.append((self.work.n, chunk))


@pytest.fixture
def clock(monkeypatch):
    def seconds(run):
        began = Clocked.clock
        run()
        return Clocked.clock - began

    monkeypatch.setattr(race, "seconds", seconds)
    Clocked.done.clear()


@pytest.mark.parametrize(("longest", "n"), [(1e9, 256), (500.0, 64), (1.0, 1)])
def test_the_best_chunk_is_taken_and_a_share_is_scaled_by_steps(clock, longest, n):
    work = works.make(2, 6, (5,), n=256)
    run, chunk = race.prepare(Clocked, work, MomentsResult, longest)
    Clocked.done.clear()
    assert chunk == min(8, n) and run() == work.steps * (1.0 if chunk == 8 else 3.0)
    assert Clocked.done == [(n, chunk)]


def test_chunks_of_a_trace_fill_its_blocks(clock):
    run, chunk = race.prepare(Clocked, works.make(2, 6, (5,), n=64), TraceResult, 1e9)
    assert chunk in (2, 4) and {c for _, c in Clocked.done} == {2, 4}


def test_rows_hold_ratios_of_the_peer_to_varlab_in_turn():
    order = []

    def timed(name, *values):
        it = iter(values)
        return lambda: order.append(name) or next(it)

    work = "moments K=8 T=100 MLP 64×64; N=512 P=4610"
    others = {targets.JAX: timed("a", 6.0, 8.0, 2.0), "b": timed("b", 4.0, 4.0, 4.0)}
    one, other = race.compare(work, timed("varlab", 2.0, 4.0, 2.0, 2.0, 2.0, 2.0), others, 3)
    assert order == ["varlab", "a", "varlab", "b"] * 3
    assert (one.ratio_min, one.ratio_median, one.ratio_max, one.target, one.seconds) == (1.0, 3.0, 4.0, 1.8, 2.0)
    assert (other.ratio_min, other.ratio_median, other.ratio_max, other.target, other.reached) == (1.0, 2.0, 2.0, None, None)
    assert one.reached and not targets.with_target(targets.Row(work, targets.VMAP, 3.9, 3.9, 3.9)).reached


def test_every_target_belongs_to_a_work_and_a_peer_that_exist():
    labels = {f"{r.name} {works.make(k, 100, (64, 64), n=32).label}" for r in (MomentsResult, PairsResult) for k in (8, 64, 256)}
    others = {*sampling.WORLDS, whole.WORK, "time of a measurement, n", "apply MLP 64×64", "apply MLP 256×256"}
    others.add(f"memory of {max(catalogue.Sizes().memory_n):,} CartPole trajectories")
    names = catalogue.entrants()[0].keys() | catalogue.entrants()[1].keys()
    further = {targets.FEWEST_CHOICES, targets.ONE_ENVIRONMENT, targets.WHOLE_LOOP}
    further |= {targets.LIMIT, targets.IN_PROPORTION, targets.PEAK}
    for work, peer in targets.TARGETS:
        assert work in labels | others and peer in names | further
    assert {work for work, _ in targets.TARGETS} & labels and others - {w for w, _ in targets.TARGETS} == {
        "sampling LQG (point mass), MLP", "sampling Pendulum-v1, MLP",
    }  # fmt: skip


def test_the_sampling_loop_steps_whole_episodes_of_the_same_world():
    for name, kind in (("CartPole-v1", "linear"), ("FrozenLake-v1", "softmax_table"), ("varlab/PointMass-v0", "linear")):
        env = envs.make(name)
        taken = sampling.one_environment_loop(env, policies.make(kind, env), 30)
        assert 30 <= taken < 30 + gymnasium.spec(name).max_episode_steps


@pytest.mark.parametrize("cores", (1, 2))
def test_sampling_is_timed_per_step_of_all_cores_together(monkeypatch, cores):
    """Wall time of all batches over the steps of all of them, whoever sampled which."""
    env = envs.make("varlab/PointMass-v0")  # every episode has as many steps
    monkeypatch.setattr(sampling, "seconds", lambda run: (run(), 6.0)[1])
    sampler = sampling.Sampler(env, policies.make("linear", env), 5000, cores)
    assert max(sampler.sizes) == 5000 // env.horizon and list(sampler.sizes) == sorted(sampler.sizes)
    assert sampler.per_step(8) == pytest.approx(6.0 / (2 * cores * 8 * env.horizon))
    sampler.crew.close()


def test_the_share_of_the_peak_is_operations_over_time_beside_those_of_the_product(monkeypatch):
    """With a clock that says 2 s for apply and 0.5 s for the product: (operations / 2) / (2 · 16³ / 0.5)."""
    done = []

    def seconds(run):
        run()
        applied = getattr(run, "func", None) is not None  # the product is a bare function
        done.append(applied)
        return 2.0 if applied else 0.5

    monkeypatch.setattr(peak, "seconds", seconds)
    counted = []
    pieces = works.Work.pieces
    monkeypatch.setattr(works.Work, "pieces", lambda self, *a: (counted.append(a), pieces(self, *a))[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no workers: what they do is seen
    try:
        (row,) = peak.share(race.Budget(1), hidden=((4,),), size=16)
    finally:
        torch.set_num_threads(threads)
    work = works.make(8, 100, (4,))
    assert row.ratio_median == pytest.approx(peak.operations(work) / 2.0 / (2 * 16**3 / 0.5)) and any(done)
    last = counted[-2:]  # the timed pass: halves of the work that cover it
    assert [(first, end) for _, first, end in last] == [(0, work.n // 2), (work.n // 2, work.n)]


def test_the_whole_loop_takes_the_gradients_of_tail_sums():
    policy = policies.make("mlp", envs.make("CartPole-v1"), hidden=[4])
    loop = whole.Loop("CartPole-v1", policy, 3)
    obs, action, reward = loop.sample()
    assert len(obs) == len(action) == len(reward) and (reward == 1).all()
    loop.gradients(obs, action, reward)
    for k, decay in enumerate((0.9, 0.95, 1.0)):
        tail = [sum(decay**j * r for j, r in enumerate(reward[t:])) for t in range(len(reward))]
        loss = (policy(obs).log_prob(action) * torch.tensor(tail)).sum()
        g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(policy.parameters()))]).double()
        torch.testing.assert_close(loop.first[k], g, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loop.second[k], loop.first[k].square(), rtol=1e-12, atol=0)


def test_the_loop_is_scaled_by_trajectories_and_choices_and_has_a_reference_too(monkeypatch):
    made = SimpleNamespace(wall=2.0, summary=pd.DataFrame({"n_reference": [30, 30]}))
    monkeypatch.setattr(varlab, "measure", lambda *_, **__: made)
    took = iter([0.4, 5.5])  # four episodes sampled, then eleven Φ of each
    monkeypatch.setattr(whole, "seconds", lambda run: (run(), next(took))[1])
    (row,) = whole.whole(race.Budget(1), n=10, loop_trajectories=4)
    sampled, backward = 0.4 / 4, 5.5 / (4 * len(SOURCE_TEXT))
    assert row.ratio_median == pytest.approx((10 * (sampled + len(SOURCE_TEXT) * backward) + 30 * (sampled + backward)) / 2.0)
    assert row.target == 100.0


def test_memory_is_that_of_a_measurement_and_its_workers(monkeypatch):
    gib, took = memory.peak(50, 2)
    assert 0.1 < gib < 50 and 0 < took < 60
    before, size = memory.held(os.getpid()), 200 * 2**20
    shared = bytearray(size)  # counted once, though a worker has it too

    def work(item):
        own = bytearray(b"x" * size) if item else None
        return memory.held(os.getppid()) - before, len(shared), own and len(own)

    with Crew(work, 2) as crew:
        (less, *_), *_ = crew.in_order([0])
        (more, *_), *_ = crew.in_order([1])
    assert 0.9 * size < 1024 * less < 1.6 * size and 1.8 * size < 1024 * more < 3.5 * size
    monkeypatch.setattr(memory, "peak", lambda n, threads: ({10: 0.5, 1_000_000: 0.75}[n], 2.0))
    rows = memory.memory([10, 1_000_000], 2)
    assert [round(r.ratio_median, 9) for r in rows] == [3.0, 2.0, round(2 / 3, 9)]
    assert [r.target for r in rows] == [None, 1.0, None]


def test_growth_in_proportion_is_one_and_faster_growth_is_less():
    taken = [[1.0, 2.0, 8.0]] * 3
    made = [growth._grown("time of a measurement, n; 1 to 4", f, taken, i) for i, f in ((1, 2), (2, 4))]
    assert [r.ratio_median for r in made] == [1.0, 0.5] and [r.reached for r in made] == [True, False]


def test_operations_of_a_small_network_by_hand():
    work = works.make(3, 7, (5,), n=32)  # 4-5-2: 20 and 10 weights
    assert peak.operations(work) == 32 * 7 * (2 * 20 + 4 * 10 + 2 * 3 * 30)


def test_small_works_give_rows_with_ratios(monkeypatch):
    monkeypatch.setattr(catalogue, "peers_of", lambda result, k: [targets.JAX, targets.STEPS])
    sizes = catalogue.Sizes(
        race.Budget(1, 0.05), k=(2,), t=(5,), hidden=((4,),), peak_hidden=((4,),), n=32, sampling_steps=200, loop_steps=20
    )  # fmt: skip
    made = {name: list(run(sizes)) for name, run in catalogue.WORKS.items() if name in ("trace", "peak", "sampling")}
    assert [len(made[name]) for name in ("sampling", "peak")] == [4, 1]
    results = {r.work.partition(" K=")[0] for r in made["trace"]}
    assert results == {"trace variance", "trace variance with all means"}
    assert {targets.GRAMS, targets.GRADIENTS} <= {r.peer for r in made["trace"]}
    for rows in made.values():
        for r in rows:
            assert r.note.startswith("absent") if r.ratio_median is None else 0 < r.ratio_min <= r.ratio_median <= r.ratio_max


def test_the_script_writes_rows_table_and_figure(tmp_path):
    words = ["works=[moments]", "size=quick", "only.k=[2]", "only.t=[5]", "only.hidden=[[4]]", "only.n=32"]
    words += ["repeats=1", "threads=2"]
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py", *words, f"out={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "latest.json").read_text())
    assert {tuple(r) for r in rows} == {("work", "peer", "ratio_median", "ratio_min", "ratio_max", "target")}
    assert {r["peer"] for r in rows} == set(catalogue.peers_of(MomentsResult, 2))
    assert all(r["work"] == "moments K=2 T=5 MLP 4; N=32 P=30" for r in rows)
    assert {"table.md", "ratios.png", "ratios.pdf", "ratios.md"} <= {p.name for p in tmp_path.iterdir()}
