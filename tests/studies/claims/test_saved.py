"""Rows of studies drawn again: names, missing rows, verdicts as among all claims, nothing computed."""

import importlib.util
import statistics
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from varlab import storage
from varlab.checks import InputError
from varlab.studies.claims import catalogue, judge, saved
from varlab.studies.claims.verdicts import Effect

ROOT = Path(__file__).resolve().parents[3]
BUDGET = catalogue.BUDGETS["smoke"]
NAMES = ("score_norms", "su_counter")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the rows of two studies, exact and made in a second."""
    catalogue.load()
    folder = tmp_path_factory.mktemp("rows")
    for name in NAMES:
        storage.write_rows(saved.path(name, BUDGET, str(folder)), catalogue.STUDIES[name].run(BUDGET))
    return str(folder)


@pytest.fixture
def no_computing(monkeypatch):
    """Studies that cannot run."""

    def refuse(budget):
        raise AssertionError("a study was run")

    for name, one in list(catalogue.STUDIES.items()):
        monkeypatch.setitem(catalogue.STUDIES, name, catalogue.Study(name, refuse, one.draw, one.caption, one.version))


@pytest.fixture
def main(monkeypatch):
    """Return the script's task on the composed configuration, Hydra's own node included."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("scripts_figures_of_studies", ROOT / "scripts" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            cfg = compose("figures", [*words, "budget=smoke"], return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
        module.main(cfg)

    return call


def test_studies_are_chosen_by_name():
    catalogue.load()
    assert saved.chosen("su_map") == ["su_map"] and saved.chosen("all") == list(catalogue.STUDIES)
    several = saved.chosen(["gae_best_lambda", "su_map", "su_map"])
    assert several == [n for n in catalogue.STUDIES if n in ("su_map", "gae_best_lambda")]
    with pytest.raises(InputError, match="No study is called 'su_mop'; the nearest names are su_map"):
        saved.chosen(["su_mop"])


def test_the_file_depends_on_what_made_the_rows():
    one = saved.path("su_map", BUDGET, "c")
    assert one == f"c/su_map-{judge.digest_of(catalogue.STUDIES['su_map'], BUDGET)}.parquet"
    assert len({one, *(saved.path("su_map", saved.budget_of(b, s), "c") for b, s in (("default", 0), ("smoke", 1)))}) == 3
    assert saved.budget_of("smoke", 0) == BUDGET
    for bad in (("smol", 0), ("smoke", -1)):
        with pytest.raises(InputError, match="smoke|at least 0"):
            saved.budget_of(*bad)


def test_missing_rows_are_one_sentence_with_the_command_that_makes_them(cache):
    with pytest.raises(InputError) as caught:
        saved.read(["score_norms", "su_q"], BUDGET, cache)
    said = str(caught.value)
    ids = ",".join(c.id for c in catalogue.CLAIMS.values() if c.study == "su_q")
    assert f"python scripts/claims.py 'claims=[{ids}]' budget=smoke seed=0 cache={cache}" in said
    assert "score_norms" not in said and "\n" not in said
    assert catalogue.chosen(ids.split(",")), "the command names claims"


def test_verdicts_are_those_of_the_whole_family(cache, no_computing):
    rows = saved.read(NAMES, BUDGET, cache)
    for name in NAMES:
        table = saved.verdicts({name: rows[name]}, BUDGET, cache)
        assert table["claim"].tolist() == [c.id for c in catalogue.CLAIMS.values() if c.study == name]
        assert set(table["digest"]) == {judge.digest_of(catalogue.STUDIES[name], BUDGET)}
    both = [c for c in catalogue.CLAIMS.values() if c.study in NAMES]
    whole = judge.judge(both, rows, {n: judge.digest_of(catalogue.STUDIES[n], BUDGET) for n in NAMES}, BUDGET)
    pd.testing.assert_frame_equal(saved.verdicts(rows, BUDGET, cache), whole)


def test_the_script_draws_saved_rows_and_computes_nothing(main, cache, no_computing, tmp_path, capsys):
    main(f"study=[{','.join(NAMES)}]", f"cache={cache}", f"out={tmp_path}", "style=icml")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{k}" for n in NAMES for k in ("png", "pdf", "md", "tex")}
    assert str(tmp_path / "su_counter.pdf") in capsys.readouterr().out
    caption = (tmp_path / "score_norms.md").read_text(encoding="utf-8")
    digest = judge.digest_of(catalogue.STUDIES["score_norms"], BUDGET)
    study = catalogue.STUDIES["score_norms"]
    assert study.caption in caption and "OB-4a holds" in caption and "Command: `python" in caption
    assert f"exact values, budget smoke, seed 0, digest {digest}." in caption
    for name, star, width in (("score_norms", "", 234), ("su_counter", "*", 486)):
        assert rf"\begin{{figure{star}}}" in (tmp_path / f"{name}.tex").read_text(encoding="utf-8")
        assert f"/MediaBox [ 0 0 {width} ".encode() in (tmp_path / f"{name}.pdf").read_bytes()


def test_the_script_refuses_rows_that_are_not_there(main, cache, no_computing, tmp_path):
    with pytest.raises(InputError, match="Saved rows were expected .* for score_norms .*seed 7"):
        main("study=score_norms", f"cache={cache}", f"out={tmp_path}/out", "seed=7")
    with pytest.raises(InputError, match="No study is called 'score_norm'; the nearest names are score_norms"):
        main("study=score_norm", f"cache={cache}", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_other_saved_studies_of_a_family_count(tmp_path, monkeypatch):
    """p = 0.03 and 10⁻¹⁶ in a family of two: Holm decides the first only where the second is known."""

    def entry(name, row):
        def effect(rows):
            return Effect(*rows.iloc[row][["value", "low", "high"]], 1000)

        control = catalogue.Control("the opposite", lambda rows: Effect(9.0, 8.9, 9.1, 1000))
        return catalogue.Claim(
            name, "It is below 1.", "Nobody (1999)", "X", f"study of {name}", "a number", effect, "below", 1.0, control
        )

    half = 1.959964 * 0.03  # of an interval with standard error 0.03
    at = 1 - 0.03 * statistics.NormalDist().inv_cdf(1 - 0.03 / 2)
    rows = pd.DataFrame({"value": [at, 0.5], "low": [at - half, 0.5 - half], "high": [at + half, 0.5 + half]})
    claims = {name: entry(name, i) for i, name in enumerate(("ZZ-1", "ZZ-2"))}
    studies = {c.study: catalogue.Study(c.study, lambda budget: rows, None, "Made up.", 1) for c in claims.values()}
    for place in (saved, judge):
        monkeypatch.setattr(place, "CLAIMS", claims)
    monkeypatch.setattr(saved, "STUDIES", studies)
    mine = {"study of ZZ-1": rows}
    alone = saved.verdicts(mine, BUDGET, str(tmp_path))
    storage.write_rows(saved.path("study of ZZ-2", BUDGET, str(tmp_path)), rows)
    among = saved.verdicts(mine, BUDGET, str(tmp_path))
    assert alone["claim"].tolist() == among["claim"].tolist() == ["ZZ-1"]
    assert (alone["outcome"][0], among["outcome"][0]) == ("undecided", "holds")
    assert (alone["p_adjusted"][0], among["p_adjusted"][0]) == pytest.approx((0.06, 0.03), rel=1e-4)
