"""The works by name, and who takes part in them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from varlab.studies.speed import growth, memory, peak, peers_torch, race, sampling, targets, whole, works
from varlab.studies.speed.own import Own, ThroughGradients, ThroughGrams
from varlab.studies.speed.results import MomentsResult, PairsResult, Result, TraceResult
from varlab.studies.speed.targets import Row


@dataclass(frozen=True)
class Sizes:
    """How much of each work is done.

    Attributes:
        budget: repeats and seconds.
        k: numbers of choices of φ.
        t: lengths.
        long_t: a further length, at which traces are found with the fewest choices alone.
        hidden: widths of hidden layers.
        peak_hidden: those whose share of the peak is taken.
        n: trajectories of a gradient work; fewer where they are large if None.
        whole_n: trajectories of a whole measurement.
        loop_trajectories: those that its loop is timed on.
        memory_n: trajectories of the measurements whose memory is taken.
        growth_n: trajectories of those whose time is compared.
        sampling_steps: steps of one batch of episodes.
        loop_steps: steps of the loop over one environment beside it.
        device: torch device.
        threads: of torch, for processes of their own.
    """

    budget: race.Budget = field(default_factory=race.Budget)
    k: Sequence[int] = (1, 8, 64, 256)
    t: Sequence[int] = (20, 100, 1000)
    long_t: int | None = None
    hidden: Sequence[Sequence[int]] = ((64, 64), (256, 256))
    peak_hidden: Sequence[Sequence[int]] = ((64, 64), (256, 256))
    n: int | None = None
    whole_n: int = 20_000
    loop_trajectories: int = 200
    memory_n: Sequence[int] = (100_000, 1_000_000)
    growth_n: Sequence[int] = (20_000, 40_000, 80_000)
    sampling_steps: int = 400_000
    loop_steps: int = 2000
    device: str = "cpu"
    threads: int = 2


#: Module → (its peers, the package that it needs).
FURTHER = {
    "peers_opacus": (("Opacus", targets.OPACUS),),
    "peers_jax": (("JaxNested", targets.JAX), ("JaxStepScores", targets.JAX_STEPS)),
}
PACKAGES = {"peers_opacus": "opacus", "peers_jax": "jax"}


def entrants(device: str = "cpu") -> tuple[dict[str, race.Entrant], dict[str, str]]:
    """Return the peers that can run here, and why the others cannot.

    Args:
        device: torch device.

    Returns:
        name → peer, and name → reason.
    """
    found: dict[str, race.Entrant] = {peer.name: peer for peer in peers_torch.PEERS}
    missing: dict[str, str] = {}
    for module, peers in FURTHER.items():
        try:
            loaded = importlib.import_module(f"varlab.studies.speed.{module}")
        except ImportError:
            missing |= {name: f"{PACKAGES[module]} is not installed (extra bench)" for _, name in peers}
            continue
        if module == "peers_jax" and device != "cpu":
            missing |= {name: f"extra bench has jax for the CPU, and this is {device}" for _, name in peers}
            continue
        found |= {name: getattr(loaded, cls) for cls, name in peers}
    return found, missing


def contest(work: works.Work, result: type[Result], names: Sequence[str], sizes: Sizes) -> list[Row]:
    """Let varlab race against the named peers."""
    found, missing = entrants(sizes.device)
    taking = [Own, *(found[name] for name in names if name in found)]
    return race.race(work, result, taking, {n: missing[n] for n in names if n in missing}, sizes.budget)


def peers_of(result: type[Result], k: int) -> list[str]:
    """Return who takes part: those that go through Φ one by one only where Φ are few."""
    few = [targets.OPACUS, targets.VMAP] if k <= 8 else []
    loop = [targets.LOOP] if result is MomentsResult and k <= 8 else []
    return [targets.JAX, targets.JAX_STEPS, targets.NESTED, targets.STEPS, *few, *loop]


#: Trajectories of a work on moments, unless they are large: a few tenths of a second.
MOMENTS_N = 2048


def moments(sizes: Sizes) -> Iterator[Row]:
    """Per-parameter moments over the grid of K, T and MLPs.

    Yields:
        Rows.
    """
    for hidden in sizes.hidden:
        for t in sizes.t:
            for k in sizes.k:
                work = works.make(k, t, hidden, n=sizes.n, most=MOMENTS_N, device=sizes.device)
                yield from contest(work, MomentsResult, peers_of(MomentsResult, k), sizes)


def trace(sizes: Sizes) -> Iterator[Row]:
    """Trace variances with intervals, over K and T: from pairs as ``variances`` does, and from all means as ``measure``.

    Yields:
        Rows, the last ones of a T against varlab itself at K = 8.
    """
    for t in sizes.t:
        for k in sizes.k:
            work = works.make(k, t, n=sizes.n, device=sizes.device)
            yield from contest(work, PairsResult, peers_of(PairsResult, k), sizes)
            yield from contest(work, TraceResult, [targets.STEPS, targets.JAX], sizes)
            yield from _ways(work, sizes)
        for result in (PairsResult, TraceResult):
            yield from _against_few(t, result, sizes)
    if sizes.long_t is not None:  # where Grams lose
        work = works.make(min(sizes.k), sizes.long_t, n=sizes.n, device=sizes.device)
        yield from contest(work, PairsResult, peers_of(PairsResult, work.k), sizes)
        yield from _ways(work, sizes)


def _ways(work: works.Work, sizes: Sizes) -> list[Row]:
    """Time the way to pair products that varlab chose beside both ways: it should have taken the faster."""
    mine, *others = (race.prepare(c, work, PairsResult, sizes.budget.longest)[0] for c in (Own, ThroughGrams, ThroughGradients))
    title = f"{PairsResult.name} {work.label}; N={work.n} P={work.num_parameters}"
    return race.compare(title, mine, dict(zip((targets.GRAMS, targets.GRADIENTS), others, strict=True)), sizes.budget.rounds)


def _against_few(t: int, result: type[Result], sizes: Sizes, few: int = 8) -> list[Row]:
    """Time the largest K beside K = 8, per trajectory."""
    k = max(sizes.k)
    if few not in sizes.k or k == few:
        return []
    many, base = (works.make(x, t, n=sizes.n, device=sizes.device) for x in (k, few))
    (mine, _), (other, _) = (race.prepare(Own, w, result, sizes.budget.longest) for w in (many, base))
    title = f"{result.name} {many.label}; N={many.n} P={many.num_parameters}"
    return race.compare(
        title, lambda: mine() / many.n, {targets.FEWEST_CHOICES: lambda: other() / base.n}, sizes.budget.rounds
    )


def shapes(sizes: Sizes) -> Iterator[Row]:
    """Ragged lengths as on CartPole, and Gaussian policies: moments and trace.

    Yields:
        Rows.
    """
    for options in ({"ragged": True}, {"gaussian": True}):
        work = works.make(8, 500 if "ragged" in options else 100, n=sizes.n, device=sizes.device, **options)
        for result in (MomentsResult, PairsResult):
            yield from contest(work, result, peers_of(result, 8), sizes)


def grown(sizes: Sizes) -> Iterator[Row]:
    """Growth of time with n, K, T and P.

    Yields:
        Rows.
    """
    yield from growth.in_n(sizes.budget, sizes.growth_n)
    grids = {"K": sizes.k, "T": sizes.t, "P": growth.GRIDS["P"] if len(sizes.hidden) > 1 else sizes.hidden}
    yield from growth.in_shapes(sizes.budget, sizes.device, grids)


WORKS: Mapping[str, Callable[[Sizes], Iterator[Row] | list[Row]]] = {
    "moments": moments,
    "trace": trace,
    "shapes": shapes,
    "sampling": lambda s: sampling.sampling(s.budget, s.sampling_steps, s.loop_steps),
    "whole": lambda s: whole.whole(s.budget, s.whole_n, s.loop_trajectories),
    "memory": lambda s: memory.memory(s.memory_n, s.threads),
    "growth": grown,
    "peak": lambda s: peak.share(s.budget, s.peak_hidden, s.device),
}
