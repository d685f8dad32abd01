"""How an estimator tells the exact oracle what its Φ is: the same formula once more, in terms of states instead of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recursion:
    """How an estimator's Φ unfolds in time.

    Attributes:
        local: t → x_t [S, A, O].
        carry: c.
        window: k, the number of terms, or None for all.
        subtract: t → b_t [S], or None.
        total: whether every step's Φ is X_0 − b_0, the sum from the beginning.
    """

    local: Callable[[int], np.ndarray]
    carry: float
    window: int | None = None
    subtract: Callable[[int], np.ndarray] | None = None
    total: bool = False
