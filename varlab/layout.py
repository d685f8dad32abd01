"""How n trajectories fall into blocks, and blocks into parts that are simulated together."""

from __future__ import annotations

from dataclasses import dataclass, field

from varlab import checks


@dataclass(frozen=True)
class Draws:
    """One part of one block: what a stream of randomness and a share of the work are called.

    Attributes:
        block: block id.
        part: part of the block.
        n: trajectories in this part.
    """

    block: int
    part: int
    n: int


@dataclass(frozen=True)
class Layout:
    """How n trajectories fall into B blocks and simulation parts; the unit of randomness is one part of one block.

    Attributes:
        n: trajectories.
        blocks: B.
        part_size: most trajectories simulated together, unless one unit has more.
        first_block: id of the first block.
        unit: trajectories of one unit; n is a multiple.
        before: trajectories of blocks that another layout holds; errors count from there.
    """

    n: int
    blocks: int
    part_size: int
    first_block: int = 0
    unit: int = 1
    before: int = 0
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Spread the units over the blocks; their numbers differ by at most one."""
        base, extra = divmod(self.n // self.unit, self.blocks)
        object.__setattr__(self, "sizes", tuple(self.unit * (base + (b < extra)) for b in range(self.blocks)))

    def parts(self, b: int) -> list[Draws]:
        """Return the simulation parts of the b-th block."""
        units = self.sizes[b] // self.unit
        if units == 0:
            return []
        count = -(-units // max(1, self.part_size // self.unit))
        base, extra = divmod(units, count)
        return [Draws(self.first_block + b, p, self.unit * (base + (p < extra))) for p in range(count)]

    def shard(self, index: int, of: int) -> Layout:
        """Return one of ``of`` shares of the blocks: consecutive ones, of the same sizes and parts as here.

        Raises:
            InputError: if there are more shares than blocks, or none with that index.
        """
        of, index = checks.positive_int("shards", of), checks.positive_int("shard", index, least=0)
        if of > self.blocks or index >= of:
            raise checks.InputError(
                f"A shard from 0 to {min(of, self.blocks) - 1} of at most {self.blocks}, one for each block, was expected, but "
                f"shard={index} of shards={of} came; lower it."
            )
        first, end = (index * self.blocks // of, (index + 1) * self.blocks // of)
        n, before = sum(self.sizes[first:end]), self.before + sum(self.sizes[:first])
        return Layout(n, end - first, self.part_size, self.first_block + first, self.unit, before)
