"""Which share of the machine's peak of matrix products ``apply`` reaches."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from varlab.studies.speed import works
from varlab.studies.speed.own import score_map
from varlab.studies.speed.race import Budget, row, seconds
from varlab.studies.speed.targets import PEAK, Row
from varlab.workers import Crew

#: Rows and columns of the product that sets the peak.
SIZE = 1024
CHUNKS = (4, 8, 16, 32, 64)


def operations(work: works.Work) -> int:
    """Return the floating-point operations of g = Sᵀφ for all trajectories, forward and backward pass included.

    A linear layer takes 2 in·out a step forward, as many for the signal to its input (not in the first layer), and 2 K in·out for
    the K products φ δ ⊗ h.
    """
    layers = [(m.in_features, m.out_features) for m in work.policy.modules() if isinstance(m, nn.Linear)]
    passes = sum(2 * a * b * (2 if i else 1) for i, (a, b) in enumerate(layers))
    return work.steps * (passes + 2 * work.k * sum(a * b for a, b in layers))


def share(
    budget: Budget, hidden: Sequence[Sequence[int]] = ((64, 64), (256, 256)), device: str = "cpu", size: int = SIZE
) -> list[Row]:
    """Time ``apply`` (K = 8, T = 100) on all cores and one large product on all cores in turn.

    Args:
        budget: repeats.
        hidden: widths of the hidden layers of each work.
        device: torch device.
        size: rows and columns of the large product.

    Returns:
        One row for each MLP: operations a second of ``apply`` over those of the product.
    """
    a, b, out = (torch.ones(size, size, device=device) for _ in range(3))
    cores = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    rows = []
    for widths in hidden:
        work = works.make(k=8, t=100, hidden=widths, device=device)
        scores, each = score_map(work), work.n // (2 * cores)

        def part(item: tuple[int, int], work=work, scores=scores, each=each) -> None:  # noqa: ANN001
            first, chunk = item
            for o, action, phi in work.pieces(chunk, first, first + each):
                for _ in scores.at(o, action).tiles(phi):
                    pass

        with Crew(part, cores) as crew:  # its processes have one thread each, and this one is free for the product

            def apply(chunk: int, crew=crew, each=each, n=work.n) -> None:  # noqa: ANN001
                for _ in crew.in_order((first, chunk) for first in range(0, n, each)):
                    pass

            apply(4)
            chunk = min(CHUNKS, key=lambda c: min(seconds(functools.partial(apply, c)) for _ in range(3)))
            own, shares = [], []
            for _ in range(budget.rounds):
                own.append(seconds(functools.partial(apply, chunk)))
                product = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(5))
                shares.append(operations(work) / own[-1] / (2 * size**3 / product))
        label = f"apply MLP {'×'.join(map(str, widths))}"
        rate = operations(work) / float(np.median(own)) / 1e9
        note = f"{rate:.0f} of {rate / float(np.median(shares)):.0f} GFlop/s"
        rows.append(row(label, PEAK, shares, float(np.median(own)), f"{note}, chunks of {chunk}"))
    return rows
