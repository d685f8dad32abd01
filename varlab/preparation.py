"""Everything that comes before the measurement itself: policy copy, critic, fitted baselines, pilot, reference.

Each stage draws from its own stream of randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies, scores, storage, terms
from varlab.analysis import reference as references
from varlab.analysis.moments import Block
from varlab.cores import Cores, Out
from varlab.estimators.base import Batch, Estimator, FitBatch, weight
from varlab.estimators.claims import proven
from varlab.estimators.nodes import row_counts
from varlab.layout import Layout
from varlab.plans import BLOCKS, Plan
from varlab.rng import Streams
from varlab.rollout import parts
from varlab.scores.base import BatchScores
from varlab.sources import Sources, ValueSource, cost
from varlab.terms import Terms
from varlab.types import Reference, Trajectories, Values
from varlab.values import exact as exact_values
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

    def __init__(self, plan: Plan, progress: Progress | None = None) -> None:
        """Copy the policy, choose its score map, find values and fit baselines."""
        self.plan, self.options, self.env = plan, plan.options, plan.env
        self.progress = progress or (lambda stream, done, total: None)
        self.device, self.dtype = self.options["device"], checks.dtype_of(self.options["dtype"])
        self.policy = policies.prepare(plan.policy, self.dtype, self.device)
        given = self.options["behaviour"]
        self.behaviour = self.policy if given is None else policies.prepare(given, self.dtype, self.device)
        self.unit = self.options["group_size"] * self.options["groups"]
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
        self.cores = Cores(self.scores, self.policy, self.dtype, self.device)
        same = (plan.env, self.double_policy(), self.options, self._critic_stream, self.dtype, self.device)
        self.sources = Sources(*same)
        given = isinstance(self.options["values"], str)
        self.source = self.sources.measured(self.gamma, self.critic_seed) if self.need or not given else None
        self.snapshots = getattr(self.source, "snapshots", False)  # whether values branch off from saved states
        self.phi = self._fit()
        self.matrices = terms.matrices(self.phi)

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

    def each(
        self, made: Iterable[tuple[int, list[Terms]]], function: Callable[[BatchScores, Tensor], Out], together: int = 1
    ) -> Iterator[tuple[Tensor, Out]]:
        """Apply a function of scores and φ to groups of units, on all cores (:meth:`varlab.cores.Cores.each`)."""
        return self.cores.each(made, function, self.options["chunk"], together, self.matrices)

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
        columns, phi = [steps.weights[:, 0]], estimators.make("value_baseline")
        for name in objectives:
            gamma = self._objective_gamma(name)
            batch = Batch(traj, self._reference_source(name)(traj, phi.needs), gamma, "terminal")
            columns.append(weight(phi, batch, True).unsqueeze(1) / self.unit)
        weights = torch.cat(columns, 1)
        return [replace(steps, weights=weights.unsqueeze(1), columns=list(range(weights.shape[1]))), *further]

    # Pilot and reference.

    def pilot(self) -> Pilot:
        """Measure centres and first variances on the pilot stream."""
        n = max(-(-self.options["pilot"] // self.unit), LEAST_PILOT if self.unit > 1 else 1)
        traj = self.sample("pilot", n * self.unit, self.seed, in_units=True)
        self.steps["pilot"] = traj.cost
        sized = isinstance(self.options["reference"], Reference) or self._reference_is_exact() or self.options["n_reference"]
        sampled = [] if sized else self.options["objectives"]
        k = len(self.phi)
        made = self.terms(traj, sampled)
        rows = references.STEPS_AT_ONCE
        center = sum(terms.summed(of_piece, self.scores, self.dtype, rows, self.matrices) for _, of_piece in made) / n
        # One bad trajectory must not spoil the centre of all, or it could not be named.
        center = torch.where(torch.isfinite(center), center, 0.0)
        block = Block(center, center[:0], 0, per_parameter=False)
        # In pieces they are made once more: all at once they would not fit into memory.
        for index, part in self.each(self.terms(traj, sampled) if self.nodes else made, block.part):
            norm_sq, _ = block.absorb(part)
            self.check_gradient(norm_sq[:, :k], index, "pilot trajectory" if self.unit == 1 else "pilot unit")
        if hasattr(self.source, "restart"):
            self.steps["branch"] = self.source.restart()  # the pilot's branches are no part of an estimator's cost
        variance = block.norm_sq / (n - 1)
        reference_variance = {name: float(variance[k + i]) for i, name in enumerate(sampled)}
        kurtosis = n * block.fourth / block.norm_sq**2
        return Pilot(center[:k], variance[:k], kurtosis[:k], reference_variance, traj.steps / len(traj))

    def _reference_is_exact(self) -> bool:
        wanted = self.options["reference"]
        return wanted == "exact" or (wanted == "auto" and exact_values.applies(self.env, self.policy))

    def _objective_gamma(self, objective: str) -> float:
        return 1.0 if objective == "J_1" else self.gamma

    def _reference_source(self, objective: str) -> ValueSource:
        return self.sources.of(self._objective_gamma(objective), self.options["reference_seed"])

    def reference(self, objective: str, pilot: Pilot, cache: object | None) -> Reference:
        """Return ∇J of one objective: given, exact, from the cache, or sampled.

        Raises:
            InputError: if the reference given is of another policy or objective.
        """
        given = self.options["reference"]
        if isinstance(given, Reference):
            if given.grad.shape != (self.scores.num_parameters,):
                raise checks.InputError(
                    f"A reference gradient of {self.scores.num_parameters} parameters was expected, but it has shape "
                    f"{given.grad.shape}; measure it for this policy."
                )
            if given.objective != objective:
                raise checks.InputError(
                    f"A reference of the objective {objective} was expected, but it is of {given.objective}; measure it for "
                    f"{objective}, or name objectives=['{given.objective}']."
                )
            return given
        gamma, seed = self._objective_gamma(objective), self.options["reference_seed"]
        same = ("numerics", "env", "horizon", "policy", "theta", "trainable", "blocks", "dtype")
        settings = {k: self.plan.settings[k] for k in same}
        if self._reference_is_exact():
            digest = storage.digest({**settings, "gamma": gamma, "kind": "exact"})
            return references.exact(self.env, self.double_policy(self.policy), gamma, objective, digest)
        phi = estimators.make("value_baseline")
        n = self.options["n_reference"] or self._reference_size(pilot, objective)
        settings |= {k: self.plan.settings[k] for k in ("critic", "device", "part_size")}
        settings["critic"] = {**settings["critic"], "seed": seed}
        settings["values"] = self.options["values"] if self.options["values"] in ("exact", "critic") else "auto"
        if "behaviour" in self.plan.settings:  # the reference's critic is fitted on what it did
            settings["behaviour"] = self.plan.settings["behaviour"]
        digest = storage.digest({**settings, "gamma": gamma, "seed": seed, "n": n, "phi": phi.label})
        found = cache.get(digest) if cache is not None else None
        if found is not None:
            return found
        source = self._reference_source(objective)
        # The parts must follow from the reference's own settings: neither from the pilot, nor from a critic stream that
        # another Φ or the measurement's seed happened to need.
        stream = self.sources.critic_stream(seed) if isinstance(source, Critic) else None
        size = self.part_size(n, stream and stream.steps / len(stream))
        made = references.sampled(
            self.env, self.policy, self.scores, phi, source, Layout(n, BLOCKS, size), Streams(seed), gamma, objective, digest,
            self.device, self.dtype, self.progress,
        )  # fmt: skip
        self.steps["reference"] = self.steps.get("reference", 0) + made.steps
        if cache is not None:
            cache.put(digest, made)
        return made

    def _reference_size(self, pilot: Pilot, objective: str) -> int:
        """n_reference with tr_ref / n_ref ≤ 0.1 · min_Φ variance / n, a fifth more for the pilot's own error."""
        n, most = self.options["n"], self.options["max_reference"]
        positive = pilot.variance[pilot.variance > 0]
        needed = 12 * pilot.reference_variance[objective] / float(positive.min()) if positive.numel() else 1.0
        # Powers of two times n, so that neighbouring settings share one cached reference.
        return int(max(BLOCKS, min(most, n * 2 ** int(np.ceil(np.log2(max(needed, 1.0)))))))

    def check_gradient(self, norm_sq: Tensor, index: Tensor, what: str, first: int = 0) -> None:
        """Refuse NaN and infinite gradients.

        Raises:
            InputError: naming Φ and trajectory.
        """
        if bool(torch.isfinite(norm_sq.sum())):
            return
        row, k = (~torch.isfinite(norm_sq)).nonzero()[0].tolist()
        raise checks.InputError(
            f"Finite gradients were expected on {self.env.name}, but {self.phi[k].label} gave NaN or infinity at {what} "
            f"{first + int(index[row])}; look at θ and at the values there, or use dtype=float64."
        )
