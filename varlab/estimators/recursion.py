"""How an estimator tells the exact oracle what it is: the same formula once more, in terms of states instead of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recursion:
    """How g = Σ_t w_t (z_t (X_t − b_t) + Σ_a π(a | s_t) z(s_t, a) ψ_t(s_t, a)) unfolds in time.

    The second term is what is left where actions are averaged instead of sampled; most estimators have none. All-action
    gradients have nothing else: x = 0, c = 0 and ψ = Q.

    Attributes:
        local: t → x_t, broadcasts to [S, A, O], with X_t = x_t + c X_{t+1}.
        carry: c.
        window: k, the number of terms, or None for all.
        subtract: t → b_t, [S], or [S, A] for a baseline that sees the action; or None.
        total: whether every step's Φ is X_0 − b_0, the sum from the beginning; then b_0 is [S] and there is no ψ.
        expected: t → ψ_t [S, A], or None.
        later: t → [S], a further baseline that is subtracted from every step's Φ where Φ is the sum from the beginning, or None.
        by_parameter: [P] b_p; the gradient is less b ∘ Σ_t w_t z_t. None for 0.
    """

    local: Callable[[int], np.ndarray]
    carry: float
    window: int | None = None
    subtract: Callable[[int], np.ndarray] | None = None
    total: bool = False
    expected: Callable[[int], np.ndarray] | None = None
    later: Callable[[int], np.ndarray] | None = None
    by_parameter: np.ndarray | None = None

    def baseline(self, t: int) -> np.ndarray:
        """Return b_t in a shape that broadcasts to [S, A]: 0 if there is none."""
        if self.subtract is None:
            return np.zeros((1, 1))
        b = self.subtract(t)
        return b[:, None] if b.ndim == 1 else b
