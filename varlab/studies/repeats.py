"""Many independent measurements of one world at once, for checking what their intervals say.

The trajectories are sampled, weighted and reduced by the code that measurements use; only the bookkeeping differs: thousands of
blocks are simulated together and cut apart afterwards, so that a thousand measurements cost little more than one of their
joint size. Blocks are independent, and 50 of them are one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.plans import BLOCKS, plan
from varlab.preparation import Pilot, Preparation
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Moments, Reference, Trajectories

#: Trajectories simulated together.
TOGETHER = 4000


@dataclass(frozen=True)
class Case:
    """A world, a policy and the choices measured there.

    Attributes:
        make: gives environment and policy.
        phi: the choices; ratios are to the first.
        settings: of :func:`varlab.measure`; ``values`` may be a function of the environment that gives them.
        reference_share: n_reference / n of a sampled reference; None for the exact one.
        small: whether it is measured at the smallest n alone.
    """

    make: Callable[[], tuple[Environment, nn.Module]]
    phi: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    reference_share: int | None = None
    small: bool = False

    def prepare(self, n: int, seed: int) -> Preparation:
        """Return a measurement of n trajectories in float64 that is about to begin."""
        env, policy = self.make()
        settings = {k: v(env) if k == "values" and callable(v) else v for k, v in self.settings.items()}
        return Preparation(plan(env, policy, self.phi, n=n, seed=seed, dtype="float64", reference="exact", **settings))


@dataclass(frozen=True)
class Repeat:
    """One measurement: its moments, and the kurtosis [K] of a pilot of its own."""

    moments: Moments
    pilot_kurtosis: np.ndarray


def repeats(job: Preparation, pilot: Pilot, n: int, count: int, stream: str = "rollout") -> Iterator[Repeat]:
    """Simulate independent measurements.

    Args:
        job: the measurement; every repeat shares its values and fitted baselines.
        pilot: gives the centre c_Φ.
        n: trajectories of each, a multiple of 50.
        count: how many.
        stream: stream of randomness.

    Yields:
        Each measurement.
    """
    names = tuple(e.label for e in job.phi)
    kept: list[dict[str, Tensor]] = []
    pilots = _kurtosis(job, pilot, count)
    for b, g in enumerate(gradients(job, n * count, n // BLOCKS, stream)):
        kept.append(reduce(g - pilot.center, pilot.center, n // BLOCKS))
        while (have := sum(len(x["mean"]) for x in kept)) >= BLOCKS:
            joined = {k: torch.cat([x[k] for x in kept]).numpy() for k in kept[0]}
            kept = [{k: torch.from_numpy(x[BLOCKS:]) for k, x in joined.items()}] if have > BLOCKS else []
            yield Repeat(
                Moments(
                    block_id=np.arange(BLOCKS),
                    count=np.full(BLOCKS, n // BLOCKS),
                    steps=np.full(BLOCKS, b),
                    m2=None,
                    names=names,
                    **{k: x[:BLOCKS] for k, x in joined.items()},
                ),
                next(pilots),
            )


def gradients(job: Preparation, total: int, multiple: int, stream: str) -> Iterator[Tensor]:
    """Give per-trajectory gradients [N, K, P] float64 until ``total`` trajectories are reached, N a multiple of ``multiple``."""
    for traj in _rollouts(job, total, multiple, stream, TOGETHER):
        out = torch.empty(len(traj), len(job.phi), job.scores.num_parameters, dtype=torch.float64)
        for index, scores, phi in job.groups(traj):
            out[index] = scores.apply(phi).double()
        yield out


def _rollouts(job: Preparation, total: int, multiple: int, stream: str, together: int) -> Iterator[Trajectories]:
    at_once, done, part = max(1, together // multiple) * multiple, 0, 0
    simulator = job.env.make_simulator(torch.device("cpu"))
    while done < total:
        n, sequence = min(at_once, total - done), Streams(job.seed).sequence(stream, 10_000 + part)
        yield rollout(job.env, job.policy, n, sequence, cut=job.options["cut"], simulator=simulator)
        done, part = done + n, part + 1


@dataclass(frozen=True)
class Estimates:
    """Independent gradient estimates: means over batches of trajectories.

    Attributes:
        mean: [M, K, P] float64.
        names: the K choices.
        size: N, trajectories of one batch.
        steps: environment steps of all of them.
    """

    mean: np.ndarray
    names: tuple[str, ...]
    size: int
    steps: int

    @property
    def mean_length(self) -> float:
        """Environment steps of a trajectory, on average."""
        return self.steps / (len(self.mean) * self.size)

    def of(self, phi: str) -> np.ndarray:
        """Return the estimates [M, P] of one choice."""
        return self.mean[:, self.names.index(checks.one_of("choice of Φ", phi, self.names))]


def estimates(job: Preparation, size: int, count: int, stream: str = "rollout", together: int = 1000) -> Estimates:
    """Return means over ``count`` batches of ``size`` consecutive trajectories each.

    Args:
        job: the measurement; all batches share its values and fitted baselines.
        size: N.
        count: M.
        stream: stream of randomness.
        together: trajectories simulated together.

    Returns:
        The estimates.
    """
    made, steps = [], 0
    for traj in _rollouts(job, size * count, size, stream, together):
        total = torch.zeros(len(traj) // size, len(job.phi), job.scores.num_parameters, dtype=torch.float64)
        for index, scores, phi in job.groups(traj):
            g = scores.apply(phi)
            total += g.new_zeros(total.shape).index_add_(0, index // size, g).double()
        made.append(total / size)
        steps += traj.cost
    return Estimates(torch.cat(made).numpy(), tuple(e.label for e in job.phi), size, steps)


def reduce(h: Tensor, center: Tensor, size: int) -> dict[str, Tensor]:
    """Return the fields of :class:`~varlab.types.Moments` of blocks of ``size`` trajectories from h = g − c [N, K, P]."""
    h = h.view(-1, size, *h.shape[1:])
    sums, squares = h.sum(1), h.square().sum(3)
    shift = sums / size
    return {
        "mean": center + shift,
        "trace_m2": squares.sum(1) - (sums * shift).sum(2),
        "cross": (h * h[:, :, :1]).sum((1, 3)) - (sums * shift[:, :1]).sum(2),
        "m4": squares.square().sum(1),
        "m2c": squares.sum(1),
    }


def _kurtosis(job: Preparation, pilot: Pilot, count: int) -> Iterator[np.ndarray]:
    """Give E‖g−c‖⁴/(E‖g−c‖²)² [K] of ``count`` independent pilots."""
    size = job.options["pilot"]
    for g in gradients(job, count * size, size, "pilot"):
        for part in (g - pilot.center).square().sum(2).split(size):
            yield (part.square().mean(0) / part.mean(0).square()).numpy()


def sampled_references(case: Case, seed: int, n: int, count: int, exact: Reference) -> Iterator[Reference]:
    """Simulate independent references of n trajectories each with value_baseline, as a measurement samples its own."""
    job = Case(case.make, ("value_baseline",), case.settings).prepare(n, seed)
    for repeat in repeats(job, job.pilot(), n, count, "reference"):
        blocks = repeat.moments.mean[:, 0]
        yield Reference(blocks.mean(0), blocks, repeat.moments.count, exact.j, "value_baseline", n, exact.objective)
