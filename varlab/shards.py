"""One reference made by many jobs: each samples whole blocks of it, and any of them, or a later one, pools them all.

A block is the unit of randomness and reduction, so the reference is bit-equal to one that a single job makes, whatever the number
of shards, their order, or the machines they ran on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from varlab import checks, storage
from varlab.analysis.reference import SampledBlocks
from varlab.plans import Plan
from varlab.preparation import Preparation
from varlab.references import REFERENCE_PHI
from varlab.types import Reference


class Shards:
    """The shards of every reference that a plan needs, in the folder of a cache."""

    def __init__(
        self, planned: Plan, shards: int, cache: storage.ReferenceCache, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        """Prepare to make or gather shards.

        Args:
            planned: of a measurement with ``reference="sampled"`` and ``n_reference``; its own n and Φ are not used.
            shards: parts that each reference is made in.
            cache: where shards lie and references are put.
            progress: called with ("reference", done, total).

        Raises:
            InputError: if the plan has no sampled reference of a stated size, or there are more shards than blocks.
        """
        self.job, self.shards, self.cache = Preparation(planned, progress), checks.positive_int("shards", shards), cache
        self.n = planned.options["n_reference"]
        if planned.options["reference"] != "sampled" or self.n is None:
            raise checks.InputError(
                f"A sampled reference of a stated size was expected, but reference={planned.options['reference']} with "
                f"n_reference={self.n} came; set reference=sampled and its number of trajectories."
            )
        if self.shards > (blocks := planned.settings["blocks"]):
            raise checks.InputError(
                f"At most {blocks} shards were expected, one for each block, but shards={self.shards}; lower it."
            )
        self.digests = {name: self.job.references.digest(name, self.n) for name in planned.options["objectives"]}

    def make(self, shard: int) -> bool:
        """Sample one shard of every reference and write it, unless it or the whole reference is there.

        Args:
            shard: 0 to shards − 1.

        Returns:
            Whether anything was sampled.

        Raises:
            InputError: if there is no such shard.
        """
        shard = checks.positive_int("shard", shard, least=0)
        if shard >= self.shards:
            raise checks.InputError(
                f"A shard from 0 to {self.shards - 1} was expected, but shard={shard} of shards={self.shards}; lower it."
            )
        sampled = False
        for objective, digest in self.digests.items():
            if self.cache.get(digest) is None and self._read(digest, shard)[0] is None:
                made = self.job.references.blocks(objective, self.n, shard, self.shards)
                storage.write_shard(self.cache.folder, digest, shard, self.shards, vars(made))
                sampled = True
        return sampled

    def lacking(self) -> dict[int, str]:
        """Return shard → what is wrong with it, for those that are missing or damaged where the reference is not there yet."""
        found: dict[int, str] = {}
        for digest in self.digests.values():
            if self.cache.get(digest) is None:
                states = {i: self._read(digest, i)[1] for i in range(self.shards)}
                found |= {i: state for i, state in states.items() if state}
        return dict(sorted(found.items()))

    def gather(self) -> dict[str, Reference]:
        """Pool the shards of every reference and put it where measurements find it.

        Returns:
            Objective → reference.

        Raises:
            InputError: naming the shards that are missing or damaged.
        """
        lacking = self.lacking()
        if lacking:
            named = ", ".join(f"{i} ({state})" for i, state in lacking.items())
            raise checks.InputError(
                f"All {self.shards} shards of a reference of {self.n} trajectories were expected in {self.cache.folder}, but "
                f"some are not there or cannot be used: {named}; make them with shard={','.join(map(str, lacking))} and the "
                "same settings."
            )
        found = {}
        for objective, digest in self.digests.items():
            found[objective] = self.cache.get(digest)
            if found[objective] is None:
                blocks = reduce(SampledBlocks.merge, (self._read(digest, i)[0] for i in range(self.shards)))
                found[objective] = blocks.pool(REFERENCE_PHI, objective, digest)
                self.cache.put(digest, found[objective])
        return found

    def _read(self, digest: str, shard: int) -> tuple[SampledBlocks | None, str]:
        arrays, state = storage.read_shard(self.cache.folder, digest, shard, self.shards)
        return (None if arrays is None else SampledBlocks(**arrays)), state
