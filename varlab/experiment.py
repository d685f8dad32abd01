"""measure(): carries out a plan. Critic, pilot and reference first, then the blocks are streamed and reduced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies
from varlab.analysis.moments import Block, collect, keep_per_parameter
from varlab.analysis.statistics import summarise
from varlab.cores import Groups
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.layout import Layout
from varlab.oracles.rows import exact_rows
from varlab.plans import BLOCKS, Plan, plan
from varlab.preparation import Pilot, Preparation, Progress
from varlab.rng import Streams, numpy_generator
from varlab.summary import frame, notes
from varlab.types import Moments, Reference, Trajectories, Values
from varlab.values.critic import Critic
from varlab.workers import one_thread_each

log = logging.getLogger(__name__)

Sink = Callable[[pd.DataFrame], None]

__all__ = ["Plan", "Result", "measure", "plan", "run"]


@dataclass(frozen=True)
class Result:
    """What a measurement found.

    Attributes:
        summary: one row per Φ and objective, with the columns of :data:`varlab.summary.COLUMNS`.
        moments: block moments.
        references: objective → reference gradient.
        notes: sentences a reader of the table should know.
        digest: content digest of the settings.
        settings: the numeric settings that the digest covers.
        steps: stream → environment steps.
        wall: seconds.
        critic: fitted V_φ and Q_φ, or None.
        trajectories: per-trajectory scalars, or None where a sink took them.
        layers: name of each parameter tensor of the policy → its entries, in the order of θ.
    """

    summary: pd.DataFrame
    moments: Moments
    references: Mapping[str, Reference]
    notes: tuple[str, ...]
    digest: str
    settings: Mapping[str, object]
    steps: Mapping[str, int]
    wall: float
    critic: Critic | None = None
    trajectories: pd.DataFrame | None = None
    layers: Mapping[str, int] = field(default_factory=dict)


def measure(
    env: Environment | str,
    policy: nn.Module,
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    cache: object | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
    **settings: object,
) -> Result:
    """Measure mean, bias and variance of the policy gradient under every Φ at fixed θ.

    Args:
        env: a world, or a Gymnasium id.
        policy: module whose forward gives a torch Distribution; it is copied, never changed.
        phi: names such as ``gae(lam=0.95)`` or :class:`~varlab.estimators.Estimator` objects; variance ratios are to
            ``total_return`` if it is among them, else to the first.
        cache: keeps references between calls: ``get(digest)`` and ``put(digest, reference)``.
        sink: called with a frame of per-trajectory scalars part by part; if None they are returned.
        progress: called with (stream, trajectories done, trajectories in all).
        **settings: as follows.
            n: trajectories, at least 50.
            gamma: discount γ (1).
            discount_weighting: whether step t is weighted by γ^t (True).
            cut: L ≤ H, where sampling ends (H).
            at_cut: terminal, bootstrap or wrong_state: what follows an episode alive at the cut (bootstrap).
            values: auto (exact where they are known, else critic), exact, critic, cloning (branches from the visited states),
                or a function of trajectories (auto).
            continuations: m branches from each state where values=cloning (10).
            values_error: ε of a fixed error of unit norm that is added to the values (0).
            error_seed: of that error (0).
            critic: :class:`~varlab.values.CriticSettings`.
            reference: auto (exact on finite MDPs, else sampled), exact, sampled, or a Reference (auto).
            n_reference: trajectories of a sampled reference; chosen from the pilot if None.
            max_reference: most trajectories that it may choose (1,000,000).
            reference_seed: root seed of the reference and its critic (0).
            objectives: of ``J_1`` and ``J_gamma``, what biases refer to (J_1 if γ = 1, else J_gamma).
            seed: root seed (0).
            batch_size: N at which mse and cosine are given (100).
            pilot: trajectories of the pilot (1000).
            part_size: most episodes simulated together (chosen from horizon and episode length if None).
            chunk: trajectories whose gradients are worked on at once (chosen for the cache if None).
            dtype: float32 or float64.
            device: torch device.
            memory_limit: bytes that block moments may take (1 GiB).
            per_parameter: whether to keep the variance of each parameter (True).
            draws: sign-bootstrap draws of the bias test (1999).
            exact: whether to add exact variances where an oracle applies; if None, where that takes seconds (None).
            group_size: G consecutive trajectories that form a group, for estimators of groups (1).
            groups: groups in one unit; a gradient is the mean over the trajectories of a unit, and n a multiple of them (1).
            shared_start: whether the trajectories of a group begin in one state (True).
            behaviour: policy that takes the actions in the place of θ; values are its own, scores and ∇J those of θ (None).
            theta, env_label, policy_label, behaviour_label: names that the rows carry.
            user_module: digest of the file that brought a Φ, environment or policy of the user's own; part of the run's (None).

    Returns:
        The result; ``.summary`` is a DataFrame.

    Raises:
        InputError: for settings that cannot be used, or NaN and infinities from environment, policy or gradient.
    """
    planned = plan(env, policy, phi, **settings)
    return run(planned, cache=cache, sink=sink, progress=progress)


def run(
    planned: Plan,
    *,
    cache: object | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> Result:
    """Carry out a plan. Arguments and result are those of :func:`measure`."""
    began = time.perf_counter()
    with one_thread_each() as cores:
        return _measured(Preparation(planned, progress, cores), cache, sink, began)


def _measured(job: Preparation, cache: object | None, sink: Sink | None, began: float) -> Result:
    """Measure what a preparation is for, which was begun at a time of the performance counter."""
    planned = job.plan
    pilot = job.pilot()
    references = {name: job.references.of(name, pilot, cache) for name in planned.options["objectives"]}
    kept: list[pd.DataFrame] = []
    moments, sentences = _rollout(job, pilot, references, kept.append if sink is None else sink)
    draws, batch_size = planned.options["draws"], planned.options["batch_size"]
    statistics = {}
    for i, (name, reference) in enumerate(references.items()):
        generator = numpy_generator(Streams(job.seed).sequence("bootstrap", i))
        statistics[name] = summarise(
            moments, reference, batch_size=batch_size, rng=generator, draws=draws,
            unbiased=job.proven(name), pilot_kurtosis=pilot.kurtosis.tolist(), targets=[e.target for e in job.phi],
            matrices={k: a.double().cpu().numpy() for k, a in job.matrices.items()},
        )  # fmt: skip
    options = planned.options
    truth, sentence = exact_rows(
        job.env, job.double_policy(job.policy).cpu(), job.phi, job.source, gamma=job.gamma,
        wanted=options["exact"] if job.independent else False,
        **{name: options[name] for name in ("discount_weighting", "cut", "at_cut")},
    )  # fmt: skip
    sentences += [sentence] if sentence else []
    return Result(
        summary=frame(planned, moments, references, statistics, truth, job.value_sources(), job.value_steps()),
        moments=moments,
        references=references,
        notes=notes(planned, sentences, job.scores.kind),
        digest=planned.digest,
        settings=planned.settings,
        steps=dict(job.steps),
        wall=time.perf_counter() - began,
        critic=job.critic,
        trajectories=pd.concat(kept, ignore_index=True) if kept else None,
        layers={name: p.numel() for name, p in policies.parameters(job.policy).items()},
    )


def _rollout(job: Preparation, pilot: Pilot, references: Mapping[str, Reference], sink: Sink) -> tuple[Moments, list[str]]:
    """Sample the blocks, reduce each, hand per-trajectory scalars on; return moments and what there is to say."""
    options, labels = job.options, job.labels
    n, comparator = options["n"], labels.index("total_return") if "total_return" in labels else 0
    per_parameter, sentence = keep_per_parameter(
        BLOCKS, len(labels), job.scores.num_parameters, options["memory_limit"], options["per_parameter"]
    )
    if sentence:
        log.warning(sentence)
    layout, unit = Layout(n, BLOCKS, job.part_size(n, pilot.mean_length, saved=job.snapshots), unit=job.unit), job.unit
    directions = torch.stack([torch.from_numpy(r.grad) for r in references.values()]).to(job.device)
    first = Block(pilot.center, directions, comparator, per_parameter)
    blocks = [first, *(first.empty() for _ in range(BLOCKS - 1))]
    done, charged = 0, np.zeros((BLOCKS, len(labels)), dtype=np.int64)

    def reduce(start: int, traj: Trajectories, groups: Groups) -> tuple[Block, pd.DataFrame, np.ndarray]:
        block, before = first.empty(), np.array(job.value_steps())
        norm_sq = torch.empty(len(traj) // unit, len(labels), dtype=torch.float64, device=job.device)
        dot = norm_sq.new_empty(*norm_sq.shape, len(references))
        for index, scores, phi in groups:
            norm_sq[index], dot[index] = block.add(scores, phi)
        checks.finite_gradients(norm_sq, labels, job.env.name, job.unit_name, start // unit)
        block.steps = traj.cost
        rows = _scalars(traj, start, norm_sq, dot, labels, tuple(references), job.gamma, unit)
        return block, rows, np.array(job.value_steps()) - before

    for b, (block, rows, spent) in job.parts(layout, reduce):
        blocks[b].merge(block)
        charged[b] += spent
        rows.insert(1, "block", np.full(len(rows), b, dtype=np.int32))
        sink(rows)
        done += unit * block.n
        job.progress("rollout", done, n)
    moments = collect(blocks, labels, comparator=comparator, unit=unit, charged=charged)
    job.steps["rollout"] = int(moments.steps.sum())
    if job.snapshots:
        job.steps["branch"] += job.source.steps
    return moments, [sentence] if sentence else []


def _scalars(
    traj: Trajectories,
    first: int,
    norm_sq: Tensor,
    dot: Tensor,
    labels: tuple[str, ...],
    refs: tuple[str, ...],
    gamma: float,
    unit: int,
) -> pd.DataFrame:
    """Per-trajectory scalars of one part, float32 except counts; per unit of several: mean return, length of all together."""
    start = Batch(traj, Values(), gamma, "terminal").reward_to_go[traj.offsets[:-1]].view(-1, unit).mean(1)
    columns = {
        "trajectory": np.arange(first, first + len(traj), unit),
        "return": start.cpu().numpy().astype(np.float32),
        "length": traj.length.view(-1, unit).sum(1).cpu().numpy().astype(np.int32),
    }
    squares, dots = norm_sq.cpu().numpy().astype(np.float32), dot.cpu().numpy().astype(np.float32)
    for k, label in enumerate(labels):
        columns[f"norm_sq[{label}]"] = squares[:, k]
        for r, name in enumerate(refs):
            columns[f"dot[{label}]" if len(refs) == 1 else f"dot[{label}|{name}]"] = dots[:, k, r]
    return pd.DataFrame(columns)
