"""Everything that comes before the measurement itself: policy copy, critic, fitted baselines, pilot, reference.

Each stage draws from its own stream of randomness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies, scores, terms
from varlab.analysis.moments import Block
from varlab.analysis.reference import STEPS_AT_ONCE
from varlab.cores import Cores, Groups, Out
from varlab.estimators.base import Batch, Estimator, FitBatch, weight
from varlab.estimators.claims import proven
from varlab.estimators.nodes import row_counts
from varlab.layout import Layout
from varlab.plans import Plan
from varlab.references import REFERENCE_PHI, References
from varlab.rng import Streams
from varlab.rollout import parts
from varlab.sources import Sources, cost
from varlab.terms import Terms
from varlab.types import Trajectories, Values
from varlab.values.critic import Critic

#: Environment steps that one simulation part should hold: enough for wide batches, little enough to stay small in memory.
STEPS_PER_PART = 400_000
#: Rows of steps and nodes that values and weights are made for at once.
ROWS_AT_ONCE = 2**18
#: Numbers in the actions of those rows: wide actions are taken fewer at a time.
NUMBERS_AT_ONCE = 2**22
#: Steps of the pilot's first block on which the score map is probed.
PROBE = 16
#: Fewest units of the pilot.
LEAST_PILOT = 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pilot:
    """Centres and first variances, from the pilot stream.

    Attributes:
        center: [K, P] float64 mean gradient of every Φ.
        variance: [K] tr Cov of every Φ, of one unit.
        kurtosis: [K] E‖g−c‖⁴/(E‖g−c‖²)².
        reference_variance: objective → tr Cov of the reference's Φ, where its size is to be chosen.
        mean_length: steps of an episode.
    """

    center: Tensor
    variance: Tensor
    kurtosis: Tensor
    reference_variance: Mapping[str, float]
    mean_length: float


class Preparation:
    """One plan with its objects in place."""

    def __init__(self, plan: Plan, progress: Progress | None = None, cores: int = 1) -> None:
        """Copy the policy, choose its score map, find values and fit baselines; parts go to that many cores."""
        self.plan, self.options, self.env = plan, plan.options, plan.env
        self.progress = progress or (lambda stream, done, total: None)
        self.device, self.dtype = self.options["device"], checks.dtype_of(self.options["dtype"])
        self.policy = policies.prepare(plan.policy, self.dtype, self.device)
        given = self.options["behaviour"]
        self.behaviour = self.policy if given is None else policies.prepare(given, self.dtype, self.device)
        self.unit = self.options["group_size"] * self.options["groups"]
        self.unit_name = "trajectory" if self.unit == 1 else "unit"
        self.group = self.options["group_size"] if self.options["shared_start"] else 1
        self.gamma, self.seed = self.options["gamma"], self.options["seed"]
        self.steps: dict[str, int] = {}
        # A rule that looks values up at a cut needs V even where no Φ does.
        self.cut_needs = frozenset({"v"}) if self.options["cut"] and self.options["at_cut"] != "terminal" else frozenset()
        self.need = frozenset().union(*(e.needs for e in plan.phi)) | self.cut_needs
        self.critic_seed = self.seed if self.options["critic"].seed is None else self.options["critic"].seed
        probe = self.sample("pilot", PROBE, self.seed, block=1)
        count = min(PROBE, probe.steps)
        self.scores = scores.make(self.policy, probe.obs[:count], probe.action[:count], self.env.name)
        self.nodes = row_counts(plan.phi, self.env)
        self.cores = Cores(self.env, self.policy, self.scores, self.dtype, self.device, cores, self.behaviour)
        same = (plan.env, self.double_policy(), self.options, self._critic_stream, self.dtype, self.device, cores)
        self.sources = Sources(*same)
        given = isinstance(self.options["values"], str)
        self.source = self.sources.measured(self.gamma, self.critic_seed) if self.need or not given else None
        self.snapshots = getattr(self.source, "snapshots", False)  # whether values branch off from saved states
        self.references = References(self)
        self.phi = self._fit()
        self.labels, self.matrices = tuple(e.label for e in self.phi), terms.matrices(self.phi)

    # Sampling and layout.

    def part_size(self, n: int, mean_length: float | None = None, *, saved: bool = False) -> int:
        """Episodes simulated together: many, but of bounded memory, that of ``saved`` states included."""
        if self.options["part_size"] is not None:
            return self.options["part_size"]
        kept = getattr(self.source, "snapshots_at_once", None) if saved else None
        return max(1, min(self.env.part_size, n, int((kept or STEPS_PER_PART) / (mean_length or self.env.horizon))))

    def sample(self, stream: str, n: int, seed: int, block: int = 0, in_units: bool = False) -> Trajectories:
        """Sample a small stream as one block and join its parts; only the measurement and its pilot are cut."""
        cut = self.options["cut"] if stream == "pilot" else None
        group, unit = (self.group, self.unit) if in_units else (1, 1)
        saved = in_units and self.snapshots
        layout = Layout(n, 1, self.part_size(n, saved=saved), block, unit)
        same = {"cut": cut, "device": self.device, "group": group, "snapshots": saved}
        return Trajectories.join([t for _, t in parts(self.env, self.behaviour, layout, Streams(seed), stream, **same)])

    def _critic_stream(self, seed: int) -> Trajectories:
        traj = self.sample("critic", self.options["critic"].n, seed)
        self.steps["critic"] = self.steps.get("critic", 0) + traj.cost
        return traj

    def groups(self, traj: Trajectories, together: int = 1, made: Iterable[tuple[int, list[Terms]]] | None = None) -> Groups:
        """Go through the units of some trajectories (:meth:`varlab.cores.Cores.groups`).

        Args:
            traj: N trajectories.
            together: consecutive units that stay neighbours.
            made: their terms, where they are there already.

        Yields:
            (index [C] of the units, their scores, φ [C, K, T]) group by group; nothing is looked up before the first.
        """
        made = self.terms(traj, together=together) if made is None else made
        yield from self.cores.groups(made, self.options["chunk"], together, self.matrices)

    def parts(
        self, layout: Layout, function: Callable[[int, Trajectories, Groups], Out], together: int = 1
    ) -> Iterator[tuple[int, Out]]:
        """Sample the measurement's own stream and reduce each part, on all cores (:meth:`varlab.cores.Cores.parts`).

        Args:
            layout: how n falls into blocks and parts.
            function: of the number of the first trajectory, the trajectories of a part and their groups.
            together: consecutive units that stay neighbours.

        Yields:
            (index of the block, what the function gave), in stream order.
        """

        def work(first: int, traj: Trajectories) -> tuple[Out, Counter[str]]:
            spent = getattr(self.source, "spent", Counter())  # branches count their steps, wherever they are sampled
            before = spent.copy()
            out = function(first, traj, self.groups(traj, together))
            added = spent - before
            spent.subtract(added)
            return out, added

        # A function of the user's may keep anything, and does not expect to lose it.
        alone = not isinstance(self.options["values"], str)
        same = {"cut": self.options["cut"], "group": self.group, "snapshots": self.snapshots}
        for b, (out, added) in self.cores.parts(layout, Streams(self.seed), "rollout", work, alone=alone, **same):
            if added:
                self.source.spent.update(added)
            yield b, out

    # Values and fitted baselines.

    def _fit(self) -> tuple[Estimator, ...]:
        """Give estimators what they take from θ and the world, and baselines their numbers from the critic stream."""
        bound = tuple(e.bind(self.env, self.double_policy(self.policy)) for e in self.plan.phi)
        if not any(e.fits for e in bound):
            return bound
        batch = FitBatch(
            self.sources.critic_stream(self.critic_seed), Values(), self.gamma, env=self.env, policy=self.policy,
            scores=self.scores, discount_weighting=self.options["discount_weighting"],
        )  # fmt: skip
        return tuple(e.fit(batch) if e.fits else e for e in bound)

    def double_policy(self, policy: nn.Module | None = None) -> nn.Module:
        """The same parameters in float64, for exact values: rounding of θ to float32 is part of θ, rounding of sums is not.

        Args:
            policy: θ or the policy that acts; the latter if None.

        Returns:
            A copy.
        """
        return policies.prepare(self.behaviour if policy is None else policy, torch.float64, self.device)

    @property
    def critic(self) -> Critic | None:
        """The critics that the measurement itself uses, or None."""
        base = getattr(self.source, "base", self.source)
        return base if isinstance(base, Critic) else None

    @property
    def independent(self) -> bool:
        """Whether θ itself acts and all trajectories are independent, as the exact oracles take them to be."""
        mdp = self.env.finite
        one_start = self.group == 1 or (mdp is not None and float(mdp.initial.max()) == 1.0)
        return self.options["behaviour"] is None and one_start

    def value_sources(self) -> list[str]:
        """[K] where each Φ's values come from, for the rows."""
        name = getattr(self.source, "source", "user")
        fitted = ["critic stream" if e.fits and e.reads_stream else "none" for e in self.phi]
        return [name if e.needs | self.cut_needs else other for e, other in zip(self.phi, fitted, strict=True)]

    def proven(self, objective: str) -> list[bool]:
        """[K] which Φ are unbiased for an objective by proof."""
        settings = {name: self.options[name] for name in ("gamma", "discount_weighting", "cut")}
        settings["on_policy"] = self.options["behaviour"] is None
        sources = self.value_sources()
        return [proven(e, objective, values_source=s, **settings) for e, s in zip(self.phi, sources, strict=True)]

    def value_steps(self) -> list[int]:
        """[K] environment steps that each Φ's values and fitted numbers cost."""
        stream = self.sources.streams[self.critic_seed].cost if self.critic_seed in self.sources.streams else 0
        spent = [cost(self.source, e, self.nodes, bool(self.cut_needs)) for e in self.phi]
        return [max(own, stream if e.fits and e.reads_stream else 0) for e, own in zip(self.phi, spent, strict=True)]

    def read(self, traj: Trajectories, asks: frozenset[str]) -> Batch:
        """Return what a Φ reads: the trajectories and the values asked for."""
        asks |= self.cut_needs
        values = self.source(traj, asks) if asks else Values()
        ratio = None if self.options["behaviour"] is None else self._log_ratio(traj)
        return Batch(traj, values, self.gamma, self.options["at_cut"], self.options["group_size"], self.unit, ratio)

    @torch.no_grad()
    def _log_ratio(self, traj: Trajectories) -> Tensor:
        ours, theirs = (policies.log_prob(p(traj.obs), traj.action).double() for p in (self.policy, self.behaviour))
        return ours - theirs

    def terms(self, traj: Trajectories, objectives: Sequence[str] = (), together: int = 1) -> Iterable[tuple[int, list[Terms]]]:
        """Return the rows of every Φ: of the whole part at once, or in pieces where nodes make many rows of a step.

        Args:
            traj: N trajectories.
            objectives: those for which the Φ of a sampled reference is appended.
            together: consecutive units that stay in one piece.

        Returns:
            (first unit, terms) of each piece.
        """
        if not self.nodes:
            return [(0, self._terms(traj, objectives))]
        width = 1 if self.env.discrete_actions else self.env.num_actions
        steps = min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // width) // (1 + sum(self.nodes.values()))
        pieces = terms.pieces(traj, steps, self.unit * together)
        return ((first * together, self._terms(piece, objectives)) for first, piece in pieces)

    def _terms(self, traj: Trajectories, objectives: Sequence[str]) -> list[Terms]:
        weighted = self.options["discount_weighting"]
        steps, *further = terms.assemble(self.phi, traj, self.policy, self.read, weighted, self.unit)
        if not objectives:
            return [steps, *further]
        columns, phi = [steps.weights[:, 0]], estimators.make(REFERENCE_PHI)
        for name in objectives:
            batch = Batch(traj, self.references.source(name)(traj, phi.needs), self.references.gamma(name), "terminal")
            columns.append(weight(phi, batch, True).unsqueeze(1) / self.unit)
        weights = torch.cat(columns, 1)
        return [replace(steps, weights=weights.unsqueeze(1), columns=list(range(weights.shape[1]))), *further]

    # Pilot and reference.

    def pilot(self) -> Pilot:
        """Measure centres and first variances on the pilot stream."""
        n = max(-(-self.options["pilot"] // self.unit), LEAST_PILOT if self.unit > 1 else 1)
        traj = self.sample("pilot", n * self.unit, self.seed, in_units=True)
        self.steps["pilot"] = traj.cost
        sampled = self.options["objectives"] if self.references.sized_by_pilot else []
        k = len(self.phi)
        made = self.terms(traj, sampled)
        rows = STEPS_AT_ONCE
        center = sum(terms.summed(of_piece, self.scores, self.dtype, rows, self.matrices) for _, of_piece in made) / n
        # One bad trajectory must not spoil the centre of all, or it could not be named.
        center = torch.where(torch.isfinite(center), center, 0.0)
        block = Block(center, center[:0], 0, per_parameter=False)
        # In pieces they are made once more: all at once they would not fit into memory.
        made = self.terms(traj, sampled) if self.nodes else made
        norm_sq = torch.empty(n, len(center), dtype=torch.float64, device=self.device)
        for index, batch_scores, weights in self.groups(traj, made=made):
            norm_sq[index], _ = block.add(batch_scores, weights)
        checks.finite_gradients(norm_sq[:, :k], self.labels, self.env.name, f"pilot {self.unit_name}")
        if hasattr(self.source, "restart"):
            self.steps["branch"] = self.source.restart()  # the pilot's branches are no part of an estimator's cost
        variance = block.norm_sq / (n - 1)
        reference_variance = {name: float(variance[k + i]) for i, name in enumerate(sampled)}
        kurtosis = n * block.fourth / block.norm_sq**2
        return Pilot(center[:k], variance[:k], kurtosis[:k], reference_variance, traj.steps / len(traj))
