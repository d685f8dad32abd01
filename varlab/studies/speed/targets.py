"""What the benchmark should reach: every target in one place, each a least ratio.

A ratio is what stands beside varlab over what varlab needs: peer time / varlab time, allowed memory / memory used, time in
proportion / time taken, or a share of the machine's peak. So more is always better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOOP = "loop, one backward per trajectory and Φ"
VMAP = "torch.func vmap(grad) per Φ"
NESTED = "torch.func nested over Φ"
OPACUS = "Opacus per-sample gradients"
JAX = "jax.jit(vmap(grad))"
STEPS = "per-step scores times all φ, torch.func"
JAX_STEPS = "per-step scores times all φ, jax.jit"
GRAMS = "varlab through Grams"
GRADIENTS = "varlab through gradients"
ONE_ENVIRONMENT = "loop over one environment"
WHOLE_LOOP = "loop over trajectories and Φ, one environment"
FEWEST_CHOICES = "itself at K=8"
PEAK = "peak of a matrix product"
LIMIT = "limit of 1.5 GiB"
IN_PROPORTION = "in proportion"

#: (work, peer) → least ratio.
TARGETS = {
    ("moments K=8 T=100 MLP 64×64", JAX): 1.8,
    ("moments K=8 T=100 MLP 64×64", OPACUS): 1.8,
    ("moments K=8 T=100 MLP 64×64", NESTED): 1.8,
    ("moments K=8 T=100 MLP 64×64", VMAP): 4.0,
    ("moments K=8 T=100 MLP 64×64", LOOP): 25.0,
    ("trace variance K=64 T=100 MLP 64×64", JAX): 8.0,
    ("trace variance K=64 T=100 MLP 64×64", STEPS): 2.5,
    ("trace variance K=64 T=100 MLP 64×64", JAX_STEPS): 2.5,
    ("trace variance K=256 T=100 MLP 64×64", JAX): 25.0,
    ("trace variance K=256 T=100 MLP 64×64", STEPS): 6.0,
    ("trace variance K=256 T=100 MLP 64×64", JAX_STEPS): 6.0,
    ("trace variance K=256 T=100 MLP 64×64", FEWEST_CHOICES): 0.5,
    ("sampling CartPole-v1, MLP", ONE_ENVIRONMENT): 300.0,
    ("sampling FrozenLake-v1, softmax table", ONE_ENVIRONMENT): 1000.0,
    ("whole measurement, CartPole-v1", WHOLE_LOOP): 100.0,
    ("memory of 1,000,000 CartPole trajectories", LIMIT): 1.0,
    ("time of a measurement, n", IN_PROPORTION): 0.9,
    ("apply MLP 64×64", PEAK): 0.3,
    ("apply MLP 256×256", PEAK): 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        work: what both did.
        peer: what stands beside varlab.
        ratio_median: how many times less varlab needs, median over rounds; None where the peer is absent.
        ratio_min: smallest.
        ratio_max: largest.
        target: least ratio to reach, or None.
        seconds: median time of varlab, for orientation, or None.
        note: what a reader should know, such as that the peer is absent.
    """

    work: str
    peer: str
    ratio_median: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    target: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the target; None where there is none, or no ratio."""
        return None if self.target is None or self.ratio_median is None else self.ratio_median >= self.target


def with_target(row: Row) -> Row:
    """Return the row with the target of its work and peer, if there is one; sizes after a semicolon name no other work."""
    return replace(row, target=TARGETS.get((row.work.partition(";")[0], row.peer)))


def absent(work: str, peer: str, reason: str) -> Row:
    """Return the row of a peer that could not run."""
    return with_target(Row(work, peer, note=f"absent: {reason}"))
