"""Rows and back, and intervals of means."""

import numpy as np
import pandas as pd
import pytest

from varlab import checks
from varlab.studies.claims.cells import cell, geometric_mean_of, mean_of, ratio, row
from varlab.studies.claims.verdicts import Effect

ROWS = pd.DataFrame(
    [row("a", 2.0, panel="p", x=1), row("a", Effect(3.0, 2.5, 4.0, 70, True), panel="p", x=2), row("b", 4, panel="")]
)


def test_rows_and_back():
    assert cell(ROWS, label="a", x=1) == Effect.exact(2.0)
    assert cell(ROWS, label="a", x=2) == Effect(3.0, 2.5, 4.0, 70, True)
    assert ratio(cell(ROWS, label="b"), cell(ROWS, x=1)).value == 2.0
    for where in ({"label": "a"}, {"label": "c"}):
        with pytest.raises(checks.InputError, match="One row with"):
            cell(ROWS, **where)
    with pytest.raises(checks.InputError, match="Two exact effects"):
        ratio(cell(ROWS, x=2), cell(ROWS, x=1))


def test_intervals_of_means():
    sample = np.array([1.0, 2.0, 4.0, 5.0])
    found = mean_of(sample)
    half = 3.182446305 * sample.std(ddof=1) / 2  # t with 3 degrees of freedom
    assert (found.value, found.n) == (3.0, 4) and found.high - 3.0 == pytest.approx(half, rel=1e-8)
    logs = geometric_mean_of(np.exp(sample))
    assert np.log([logs.value, logs.low, logs.high]) == pytest.approx([3.0, 3.0 - half, 3.0 + half]) and logs.log
