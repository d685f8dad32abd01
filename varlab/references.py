"""∇J that a measurement's biases refer to: given, exact, from the cache, or sampled on a stream of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlab import estimators, storage
from varlab.analysis import reference as analysis
from varlab.analysis.reference import SampledBlocks
from varlab.layout import Layout
from varlab.plans import BLOCKS
from varlab.rng import Streams
from varlab.sources import ValueSource
from varlab.types import Reference
from varlab.values import exact as exact_values
from varlab.values.critic import Critic

if TYPE_CHECKING:
    from varlab.preparation import Pilot, Preparation

#: Unbiased for any values: samples references.
REFERENCE_PHI = "value_baseline"


class References:
    """The references of one measurement, each named by its objective."""

    def __init__(self, job: Preparation) -> None:
        """Take the measurement."""
        self.job, self.options, self.settings = job, job.options, job.plan.settings

    @property
    def exact(self) -> bool:
        """Whether they are exact."""
        wanted = self.options["reference"]
        return wanted == "exact" or (wanted == "auto" and exact_values.applies(self.job.env, self.job.policy))

    @property
    def sized_by_pilot(self) -> bool:
        """Whether the pilot has to say how many trajectories they take."""
        return not (isinstance(self.options["reference"], Reference) or self.exact or self.options["n_reference"])

    def gamma(self, objective: str) -> float:
        """Return γ of an objective."""
        return 1.0 if objective == "J_1" else self.job.gamma

    def source(self, objective: str) -> ValueSource:
        """Return the values that a sampled one looks up."""
        return self.job.sources.of(self.gamma(objective), self.options["reference_seed"])

    def of(self, objective: str, pilot: Pilot | None, cache: object | None) -> Reference:
        """Return ∇J of one objective.

        Args:
            objective: its name.
            pilot: says how many trajectories a sampled one takes, where nothing else does.
            cache: of sampled references, or None.

        Returns:
            The reference.
        """
        given, gamma, job = self.options["reference"], self.gamma(objective), self.job
        if isinstance(given, Reference):
            return analysis.check_given(given, objective, job.scores.num_parameters)
        if self.exact:
            digest = storage.digest({**self._settings(), "gamma": gamma, "kind": "exact"})
            return analysis.exact(job.env, job.double_policy(job.policy), gamma, objective, digest)
        n = self.options["n_reference"]
        if n is None:
            own, wanted = pilot.reference_variance[objective], self.options["n"]
            n = analysis.size_for(wanted, self.options["max_reference"], BLOCKS, own, pilot.variance)
        digest = self.digest(objective, n)
        found = cache.get(digest) if cache is not None else None
        if found is not None:
            return found
        made = self.blocks(objective, n).pool(REFERENCE_PHI, objective, digest)
        if cache is not None:
            cache.put(digest, made)
        return made

    def _settings(self) -> dict[str, object]:
        same = ("numerics", "env", "horizon", "policy", "theta", "trainable", "blocks", "dtype")
        found = {k: self.settings[k] for k in same}
        if "user_module" in self.settings:  # its code may be the world or the policy
            found["user_module"] = self.settings["user_module"]
        return found

    def digest(self, objective: str, n: int) -> str:
        """Return the digest of a sampled reference of n trajectories: of what moves it, and of nothing else."""
        seed = self.options["reference_seed"]
        settings = self._settings() | {k: self.settings[k] for k in ("critic", "device", "part_size")}
        settings["critic"] = {**settings["critic"], "seed": seed}
        settings["values"] = self.options["values"] if self.options["values"] in ("exact", "critic") else "auto"
        if "behaviour" in self.settings:  # the reference's critic is fitted on what it did
            settings["behaviour"] = self.settings["behaviour"]
        own = {"gamma": self.gamma(objective), "seed": seed, "n": n, "phi": REFERENCE_PHI}
        return storage.digest({**settings, **own})

    def blocks(self, objective: str, n: int, shard: int = 0, shards: int = 1) -> SampledBlocks:
        """Sample a reference of n trajectories, or one of the shards that it falls into."""
        seed, phi, job = self.options["reference_seed"], estimators.make(REFERENCE_PHI), self.job
        source = self.source(objective)
        # The parts must follow from the reference's own settings: neither from the pilot, nor from a critic stream that
        # another Φ or the measurement's seed happened to need.
        stream = job.sources.critic_stream(seed) if isinstance(source, Critic) else None
        layout = Layout(n, BLOCKS, job.part_size(n, stream and stream.steps / len(stream))).shard(shard, shards)
        made = analysis.blocks(job.cores, phi, source, layout, Streams(seed), self.gamma(objective), job.progress)
        job.steps["reference"] = job.steps.get("reference", 0) + int(made.steps.sum())
        return made
