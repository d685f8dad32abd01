"""Twelve small runs whose numbers may move only together with varlab.NUMERICS."""

import copy
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from golden import regenerate, small_runs
from golden.small_runs import NUMBERS, RUNS, moved, numbers, read

import varlab

HOW = "if that is meant, raise varlab.NUMERICS and run: python tests/golden/regenerate.py"


@pytest.fixture(scope="module")
def golden():
    return read()


def test_the_file_belongs_to_this_numerics(golden):
    assert golden["numerics"] == varlab.NUMERICS, (
        f"runs.json holds the numbers of NUMERICS {golden['numerics']}, the package has {varlab.NUMERICS}; "
        "run: python tests/golden/regenerate.py"
    )


def test_the_file_holds_twelve_runs_with_every_column(golden):
    assert len(RUNS) == 12 and golden["runs"].keys() == RUNS.keys(), "run: python tests/golden/regenerate.py"
    assert all(columns.keys() == set(NUMBERS) for run in golden["runs"].values() for columns in run.values())


@pytest.mark.parametrize("name", RUNS)
def test_numbers_have_not_moved(golden, name):
    lines = moved(golden["runs"][name], numbers(RUNS[name]().summary))
    assert not lines, f"{len(lines)} numbers of {name} moved while NUMERICS is {varlab.NUMERICS}; {HOW}\n" + "\n".join(lines[:10])


@pytest.mark.parametrize("column", NUMBERS)
def test_a_moved_number_is_noticed(golden, column):
    """Negative control: a change in the sixth digit of one column of one row, a lost row, a number turned NaN."""
    kept = golden["runs"]["random_sampled"]
    row = next(iter(kept))
    for change in (lambda x: x * (1 + 1e-6) + (0.002 if column == "bias_p_value" else 2e-9), lambda x: math.nan):
        other = copy.deepcopy(kept)
        other[row][column] = change(other[row][column])
        assert len(moved(kept, other)) == (0 if math.isnan(kept[row][column]) else 1)
    lost = {k: v for k, v in kept.items() if k != row}
    assert len(moved(kept, lost)) == len(NUMBERS)
    assert moved(kept, kept) == []


def test_regenerating_refuses_moved_numbers_until_numerics_is_raised(tmp_path, monkeypatch, capsys):
    def run(variance):
        row = dict.fromkeys(NUMBERS, 1.0) | {"phi": "total_return", "objective": "J_1", "variance": variance}
        monkeypatch.setattr(regenerate, "RUNS", {"one": lambda: SimpleNamespace(summary=pd.DataFrame([row]))})
        return regenerate.main()

    for module in (regenerate, small_runs):
        monkeypatch.setattr(module, "FILE", tmp_path / "runs.json")
    monkeypatch.setattr(varlab, "NUMERICS", 1)
    assert run(2.0) == 0 and run(2.0) == 0
    assert run(2.00001) == 1 and "variance was 2.0 and is 2.00001" in capsys.readouterr().err
    assert read()["runs"]["one"]["total_return | J_1"]["variance"] == 2.0
    monkeypatch.setattr(varlab, "NUMERICS", 2)
    assert run(2.00001) == 0 and read()["numerics"] == 2
