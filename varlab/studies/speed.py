"""Speed as ratios in one run: varlab beside its peers on the same work, in turn, round by round.

Ratios of neighbouring runs hold where absolute times drift with the machine.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from varlab import checks, envs, policies, scores
from varlab.analysis.moments import Block
from varlab.preparation import CHUNK_ROWS
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies import peers

CHUNKS = (8, 16, 32, 64, 128, 512)


@dataclass(frozen=True)
class Row:
    """One comparison: how many times longer the peer took than varlab.

    Attributes:
        work: what both did.
        peer: who did it too.
        ratio_median: peer time / varlab time, median over rounds.
        ratio_min: smallest.
        ratio_max: largest.
        target: ratio to reach, or None.
        varlab_seconds: median time of varlab, for orientation.
    """

    work: str
    peer: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    target: float | None
    varlab_seconds: float


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(
    work: str, mine: Callable[[], float], others: dict[str, tuple[Callable[[], float], float | None]], rounds: int
) -> list[Row]:
    """Time varlab and its peers in turn.

    Args:
        work: its name.
        mine: gives varlab's seconds for the work.
        others: peer → (seconds for the same work, target ratio).
        rounds: repetitions of the whole turn.

    Returns:
        One row for each peer.
    """
    ratios: dict[str, list[float]] = {name: [] for name in others}
    own = []
    for _ in range(rounds):
        for name, (other, _) in others.items():
            own.append(mine())
            ratios[name].append(other() / own[-1])
    return [
        Row(work, name, float(np.median(r)), min(r), max(r), others[name][1], float(np.median(own))) for name, r in ratios.items()
    ]


def gradients(rounds: int, n: int = 512, t: int = 100, k: int = 8, loop_share: int = 16) -> list[Row]:
    """Per-parameter moments of K choices of Φ on an MLP 4-64-64-2 (P = 4,610), every peer at its own best chunk size.

    Args:
        rounds: repetitions.
        n: trajectories.
        t: steps of each.
        k: choices of Φ.
        loop_share: the loop does n / loop_share trajectories and is scaled.

    Returns:
        Rows against ``torch.func`` (per Φ and nested over Φ) and the backward loop.

    Raises:
        InputError: if a peer disagrees on the numbers.
    """
    policy = policies.make("mlp", envs.make("CartPole-v1"))
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(n, t, 4, generator=generator)
    action = torch.randint(0, 2, (n, t), generator=generator)
    phi = torch.randn(n, k, t, generator=generator)
    score_map = scores.make(policy, obs[0, :16], action[0, :16])
    center = torch.zeros(k, score_map.num_parameters, dtype=torch.float64)
    size = CHUNK_ROWS // t

    def mine() -> tuple[Tensor, Tensor]:
        block = Block(center, center[:1], 0, per_parameter=True)
        for o, a, f in zip(obs.split(size), action.split(size), phi.split(size), strict=True):
            block.add(score_map.at(o, a), f)
        return block.s1 / n, block.s2 / n

    def best(peer: Callable[..., object]) -> Callable[[], object]:
        chunk = min(CHUNKS, key=lambda c: min(seconds(functools.partial(peer, policy, obs, action, phi, c)) for _ in range(2)))
        return functools.partial(peer, policy, obs, action, phi, chunk)

    few = n // loop_share
    loop = functools.partial(peers.backward_loop, policy, obs[:few], action[:few], phi[:few])
    others = {"torch.func vmap(grad) per Φ": best(peers.vmap_grad), "torch.func nested over Φ": best(peers.vmap_nested)}
    truth = mine()
    for name, peer in others.items():
        _agree(name, peer(), truth)
    timed = {name: (functools.partial(seconds, peer), 2.0 if "per Φ" in name else None) for name, peer in others.items()}
    timed["loop, one backward per trajectory and Φ"] = (lambda: loop_share * seconds(loop), None)
    return compare(f"moments K={k} T={t} P={score_map.num_parameters}", lambda: seconds(mine), timed, rounds)


def _agree(name: str, found: Iterable[Tensor], truth: Iterable[Tensor]) -> None:
    """Refuse to time peers that compute something else.

    Raises:
        InputError: naming the peer.
    """
    for a, b in zip(found, truth, strict=True):
        worst = float((a - b).abs().max() / b.abs().max())
        if worst > 1e-4:
            raise checks.InputError(
                f"Equal moments were expected from {name}, but they differ by {worst:.1e}; mend the peer first."
            )


def sampling(rounds: int, n: int = 8192, loop_steps: int = 2000) -> list[Row]:
    """Sample CartPole-v1 with an MLP policy, beside a Python loop over one environment; seconds per step.

    Args:
        rounds: repetitions.
        n: episodes sampled together.
        loop_steps: steps of the loop.

    Returns:
        One row.
    """
    env = envs.make("CartPole-v1")
    policy = policies.make("mlp", env)
    seeds = iter(range(10**6))

    def mine() -> float:
        began = time.perf_counter()
        made = rollout(env, policy, n, Streams(0).sequence("rollout", 0, next(seeds)))
        return (time.perf_counter() - began) / made.steps

    def timed_loop() -> float:
        began = time.perf_counter()
        taken = peers.one_environment_loop(env.name, policy, loop_steps)
        return (time.perf_counter() - began) / taken

    return compare("sampling CartPole-v1, MLP", mine, {"loop over one environment": (timed_loop, 150.0)}, rounds)


def memory(n: int = 200_000, target_gib: float = 1.5) -> dict[str, float]:
    """Measure all Φ of the source text on n CartPole trajectories in a process of its own.

    Args:
        n: trajectories.
        target_gib: most memory allowed.

    Returns:
        Peak resident memory of the process in GiB, its target and its wall time.
    """
    code = (
        "import resource, varlab; env = varlab.envs.make('CartPole-v1');"
        f"varlab.measure(env, varlab.policies.make('mlp', env), n={n}, max_reference={n}, sink=lambda rows: None);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"n": n, "peak_gib": float(done.stdout), "target_gib": target_gib, "seconds": time.perf_counter() - began}


def table(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Return rows as mappings, ready for JSON."""
    return [asdict(row) for row in rows]
