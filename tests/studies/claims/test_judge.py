"""From claims and rows to the table: controls, families, digests, rows on disk, text for readers."""

import logging

import numpy as np
import pandas as pd
import pytest

from varlab import storage
from varlab.checks import InputError
from varlab.studies.claims import catalogue, tables
from varlab.studies.claims.catalogue import Budget, Claim, Control
from varlab.studies.claims.judge import COLUMNS, digest_of, judge
from varlab.studies.claims.pages import claims_page
from varlab.studies.claims.verdicts import Effect


def read(rows, name):
    row = rows.set_index("name").loc[name]
    return Effect(row["value"], row["low"], row["high"], int(row["n"]))


ROWS = pd.DataFrame(
    {
        "name": ["clear", "close", "exact"],
        "value": [0.5, 0.96, 2.0],
        "low": [0.4, 0.91, 2.0],
        "high": [0.6, 1.01, 2.0],
        "n": [1000, 1000, 0],
    }
)


def entry(id_, name, **fields):
    settings = {
        "sentence": f"{name} | is below 1", "source": "Nobody (1999)", "tag": "X", "study": "made up", "statistic": name,
        "effect": lambda rows: read(rows, name), "direction": "below", "bound": 1.0,
        "control": Control("exactly two is below one", lambda rows: read(rows, "exact")),
    }  # fmt: skip
    return Claim(id_, **{**settings, **fields})


@pytest.fixture
def entered(monkeypatch):
    made = {c.id: c for c in (entry("ZZ-1", "clear"), entry("ZZ-2a", "close"), entry("ZZ-3", "exact"), entry("YY-1", "close"))}
    studies = {"made up": catalogue.Study("made up", lambda budget: ROWS, None, "Made up.", 1)}
    monkeypatch.setattr(catalogue, "CLAIMS", made)
    monkeypatch.setattr(catalogue, "STUDIES", studies)
    monkeypatch.setattr("varlab.studies.claims.judge.CLAIMS", made)
    monkeypatch.setattr("varlab.studies.claims.pages.STUDIES", studies)
    return made


def judged(claims):
    return judge(list(claims), {"made up": ROWS}, {"made up": "d"}, Budget())


def test_the_table(entered):
    table = judged(entered.values())
    assert tuple(table.columns) == COLUMNS and table["claim"].tolist() == list(entered)
    assert table["outcome"].tolist() == ["holds", "undecided", "violated", "undecided"]
    assert set(table["control_outcome"]) == {"violated"}
    assert table["question"].tolist() == ["≤ 1"] * 4 and set(table["digest"]) == {"d"}
    undecided = table.set_index("claim").loc[["ZZ-2a", "YY-1"]]
    assert (undecided["n_to_decide"] > 1000).all() and table["n_to_decide"].isna().sum() == 2


def test_a_family_is_corrected_as_a_whole_whichever_is_asked_for(entered):
    """Three members of ZZ count for one that is looked at alone; the family YY has one."""
    alone = judged([entered["ZZ-2a"]]).iloc[0]
    assert alone["p_adjusted"] == pytest.approx(min(1, 3 * alone["p_value"]))
    other = judged([entered["YY-1"]]).iloc[0]
    assert other["p_adjusted"] == pytest.approx(other["p_value"]) == pytest.approx(alone["p_value"])


def test_ids(entered):
    assert [c.catalogued for c in entered.values()] == ["ZZ-1", "ZZ-2", "ZZ-3", "YY-1"]
    assert [c.id for c in catalogue.chosen(["ZZ-2", "YY-1"])] == ["ZZ-2a", "YY-1"]
    assert [c.id for c in catalogue.chosen(["all"])] == list(entered) and catalogue.chosen(["spinningup"]) == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(["ZZ-9"], "No claim is called 'ZZ-9'"), (["MI-3"], "decided here.*MI-3 is cited only: HalfCheetah"), (["al"], "'al'")],
)
def test_unknown_and_cited_claims_are_one_sentence(entered, names, sentence):
    with pytest.raises(InputError, match=sentence):
        catalogue.chosen(names)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"published": "about 3"}, r"A provenance tag such as \[T\] was expected"), ({"tag": "Q"}, "provenance tag"),
        ({"direction": "beside"}, "direction of a claim"),
    ],
)  # fmt: skip
def test_a_badly_written_claim_is_one_sentence(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        entry("ZZ-1", "clear", **fields)


def test_a_missing_claim_and_a_missing_study_are_errors_at_start_up(entered, monkeypatch):
    monkeypatch.setattr(catalogue, "FAMILIES", ())
    monkeypatch.setattr(catalogue, "REQUIRED", ("ZZ-1", "ZZ-2", "WW-1"))
    assert catalogue.missing() == ["WW-1"]
    with pytest.raises(InputError, match="An entry for every claim of the catalogue was expected, but WW-1 have none"):
        catalogue.load()
    monkeypatch.setattr(catalogue, "REQUIRED", ("ZZ-1", "ZZ-2"))
    catalogue.load()
    entered["ZZ-4"] = entry("ZZ-4", "clear", study="nowhere")
    with pytest.raises(InputError, match="A study called 'nowhere' was expected for ZZ-4"):
        catalogue.load()
    entered["ZZ-4"] = entry("ZZ-4", "clear", needs=("no_such_phi",))
    with pytest.raises(InputError, match="no_such_phi"):
        catalogue.load()


def test_budgets_and_digests():
    assert Budget(factor=1).n(20_000) == 20_000 and Budget(factor=0.05).n(20_000) == 1000 and Budget(factor=0.05).n(2000) == 500
    assert Budget(factor=0.05).n(2000, multiple=400) == 800 and Budget(factor=10).n(123, multiple=8) == 1232
    one = catalogue.Study("s", None, None, "", 1)
    digests = {
        digest_of(s, b)
        for s in (one, catalogue.Study("t", None, None, "", 1), catalogue.Study("s", None, None, "", 2))
        for b in (Budget(), Budget(factor=2), Budget(seed=1))
    }
    assert len(digests) == 9 and digest_of(one, Budget("other name")) in digests


def test_rows_come_back_and_damage_is_noticed(tmp_path, caplog):
    path, made = tmp_path / "rows.parquet", []
    rows = ROWS.assign(value=[0.1 + 0.2, np.nan, -np.inf])

    def make():
        made.append(1)
        return rows

    first = storage.rows_or(path, make)
    pd.testing.assert_frame_equal(first, rows)
    storage.rows_or(path, make)
    assert len(made) == 1
    whole = path.read_bytes()
    for position in range(0, len(whole), 101):  # whatever is hit, wrong rows never come back
        raw = bytearray(whole)
        raw[position] ^= 0xFF
        path.write_bytes(raw)
        with caplog.at_level(logging.WARNING):
            pd.testing.assert_frame_equal(storage.rows_or(path, make), rows)
    assert len(made) > 2 and "damaged" in caplog.text
    storage.write_rows(path, rows.assign(n=7))
    assert storage.read_rows(path)["n"].tolist() == [7, 7, 7] and storage.read_rows(tmp_path / "none") is None


def test_text_for_readers(entered):
    table = judged(entered.values())
    markdown = tables.to_markdown(table)
    assert "**violated**" in markdown and "0.500 [0.400, 0.600]" in markdown and "2.00 (exact)" in markdown
    assert "clear \\| is below 1" in markdown and "4 claims: 1 hold, 1 violated, 2 undecided" in markdown
    assert "would decide" in markdown and "[X] derived here" in markdown
    latex = tables.to_latex(table)
    assert latex.count(r"\\") == 5 and r"\toprule" in latex and r"$\le$ 1" in latex
    assert r"π" not in latex and latex.count("&") == 5 * 4
    short = tables.contradicted_to_markdown(table)
    assert "Of 4 claims 1 hold, 1 are violated, 2 are undecided" in short and short.count("\n| ZZ-3 |") == 1
    text = tables.readable(table)
    assert len(text.splitlines()) == 5 and "Controls that did not fail" not in text
    wrong = tables.readable(table.assign(control_outcome="holds"))
    assert "Controls that did not fail: ZZ-1, ZZ-2a, ZZ-3, YY-1" in wrong
    page = claims_page(table, {"made up": b"png"}, {"seed": 0})
    assert page.count("<td class=\"violated\">") >= 5 and "exact | is below 1" in page and "cited" in page.lower()
