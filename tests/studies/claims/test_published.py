"""The published table of verdicts: every claim entered, judged anew from its own numbers, by the studies as they stand."""

from pathlib import Path

import pandas as pd
import pytest

import varlab
from varlab.studies.claims import catalogue
from varlab.studies.claims.judge import COLUMNS, digest_of, question
from varlab.studies.claims.verdicts import Effect, decide, family

RESULTS = Path(varlab.__file__).resolve().parents[1] / "results" / "claims"
catalogue.load()


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(RESULTS / "table.csv").set_index("claim")


def effect(row, name):
    """The effect of a row on either scale: which one the claim uses is told by the p-value that it reproduces."""
    ends = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
    return [Effect(*ends, int(row["n"]), log) for log in ((False, True) if ends[0] > 0 else (False,))]


def test_every_entered_claim_is_in_the_table_and_none_else(table):
    assert list(table.index) == list(catalogue.CLAIMS) and ["claim", *table.columns] == list(COLUMNS)
    assert set(table["numerics"]) == {varlab.NUMERICS} and set(table["budget"]) == {"default"}


def test_every_control_came_out_violated_and_every_claim_is_decided(table):
    assert set(table["control_outcome"]) == {"violated"}
    assert set(table["outcome"]) <= {"holds", "violated"}


def test_rows_are_of_the_studies_as_they_stand(table):
    for name, row in table.iterrows():
        study = catalogue.STUDIES[catalogue.CLAIMS[name].study]
        assert row["digest"] == digest_of(study, catalogue.Budget()), name
        assert row["question"] == question(*catalogue.CLAIMS[name].question), name
        assert (RESULTS / "figures" / f"{study.name}.png").exists(), name


@pytest.mark.parametrize("name", dict.fromkeys(c.family for c in catalogue.CLAIMS.values()))
def test_verdicts_follow_from_the_numbers_printed(table, name):
    """Effect and interval give the p-value, Holm's correction over the family the adjusted one, and that the outcome."""
    members = [c for c in catalogue.CLAIMS.values() if c.family == name]
    made = []
    for c in members:
        row = table.loc[c.id]
        found = [decide(c.id, e, *c.question, c.level) for e in effect(row, "effect")]
        assert any(v.p_value == pytest.approx(row["p_value"], rel=1e-6, abs=1e-300) for v in found), c.id
        made.append(min(found, key=lambda v: abs(v.p_value - row["p_value"])))
    corrected = family(made, [c.question for c in members], len(members))
    for c, v in zip(members, corrected, strict=True):
        assert v.outcome == table.loc[c.id, "outcome"], c.id
        assert v.adjusted == pytest.approx(table.loc[c.id, "p_adjusted"], rel=1e-6, abs=1e-300), c.id


def test_an_altered_outcome_or_number_would_be_noticed(table):
    sampled = table[table["n"] > 0].iloc[0]
    c = catalogue.CLAIMS[sampled.name]
    value, low, high = (sampled[f"effect{end}"] for end in ("", "_low", "_high"))
    moved = Effect(value, low, high + 0.1 * abs(value), int(sampled["n"]))
    assert decide(c.id, moved, *c.question).p_value != pytest.approx(sampled["p_value"], rel=1e-6)
