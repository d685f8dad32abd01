from __future__ import annotations
import numpy as np
from typing import NamedTuple

class SquaredNormTest(NamedTuple):
    p_value: float
    low: float
    high: float

def draw_signs(rng, draws, blocks):
    return 2.0 * rng.integers(0, 2, size=(draws, blocks)) - 1.0

def sign_multiplier(norm_sq, inner, gram, signs, level=0.95, tol=0.0, pcl=0.16):
    q = ((signs @ gram) * signs).sum(1)
    p = (1 + int((q >= norm_sq - tol).sum())) / (1 + len(signs))
    x = signs @ inner / np.sqrt(norm_sq) if norm_sq > 0 else np.zeros(len(signs))
    y = np.maximum(q - x * x, 0)
    def roots(t):
        return np.where(t >= y, np.maximum(-x + np.sqrt(np.maximum(t - y, 0)), 0), 0)
    al = 1 - level
    low = np.quantile(roots(norm_sq), al / 2) ** 2
    high = np.quantile(roots(max(norm_sq, np.quantile(q, pcl))), 1 - al / 2) ** 2
    return SquaredNormTest(p, low, high)
