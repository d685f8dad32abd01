"""scripts/figures.py on run folders: one figure from a sweep, four from single runs, one sentence for bad input."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "analysis"))

import synthetic_runs  # noqa: E402

from varlab import InputError, storage  # noqa: E402
from varlab.analysis import tables  # noqa: E402

NAMES = ("total_return", "value_baseline", "gae(lam=0.95)")


def write(folder, numerics=1, **settings):
    """Write a finished run folder."""
    run = synthetic_runs.make(n=150, parameters=5, names=NAMES, **settings)
    summary = run.summary.assign(numerics=numerics)
    digest = summary["digest"][0]
    storage.begin(folder, digest, "n: 150\n")
    result = SimpleNamespace(summary=summary, moments=run.moments, references=run.references, critic=None)
    storage.write_run(folder, result, {"digest": digest, "numerics": numerics, "command": ["measure.py"]})
    storage.finish(folder, digest, numerics)


def script(*words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "figures.py"), *words], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def main(monkeypatch):
    """Return the script's task on the composed configuration, without a process of its own."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("scripts_figures", ROOT / "scripts" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            module.main(compose("figures", list(words)))

    return call


def test_a_multirun_of_eight_jobs_gives_one_figure(tmp_path):
    for env in ("CartPole-v1", "FrozenLake-v1"):
        for gamma in (0.9, 1.0):
            for seed in (1, 2):
                write(tmp_path / "sweep" / f"{env}{gamma}{seed}", env=env, gamma=gamma, seed=seed)
    out = tmp_path / "out"
    code, said, wrong = script(f"runs=[{tmp_path}/sweep]", f"out={out}", "style=talk")
    assert code == 0, wrong
    assert "Gathered 8 runs" in said and wrong == ""
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 8 * 3 and table.digest.nunique() == 8
    pictures = {f"{n}_over_runs.{k}" for n in ("variance", "variance_ratio") for k in ("png", "pdf", "md", "tex")}
    assert {p.name for p in out.iterdir()} == {f"table.{k}" for k in ("csv", "parquet", "md", "tex")} | pictures
    caption = (out / "variance_over_runs.md").read_text()
    assert all(d in caption for d in table.digest) and "gamma, seed" in caption
    assert "Command: `python scripts/figures.py" in caption


def test_runs_of_different_environments_give_the_four_figures(main, tmp_path, capsys):
    write(tmp_path / "a" / "deep" / "run", env="CartPole-v1")
    write(tmp_path / "b", env="FrozenLake-v1", exact=True)
    main(f"runs=[{tmp_path}/a,{tmp_path}/b]", f"out={tmp_path}/out")
    names = ("variance_by_phi", "bias_against_variance", "running_distance", "cosine_against_batch_size")
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == set(names)
    assert str(tmp_path / "out" / "table.parquet") in capsys.readouterr().out


def test_tables_of_convergence_keep_their_own_columns(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write(tmp_path / name, seed=seed)
    running, cosine = tables.gather_convergence(storage.find_runs(tmp_path))
    summary, moments, references, _ = storage.read_run(tmp_path / "b")
    for table, alone in (
        (running, tables.running_table(moments, references)),
        (cosine, tables.cosine_table(moments, references, summary)),
    ):
        mine = table[table.seed == 2].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine[alone.columns], alone)
        assert set(mine.env) == {"CartPole-v1"} and table.digest.nunique() == 2


def test_mixed_numerics_are_refused_unless_allowed(main, tmp_path):
    write(tmp_path / "runs" / "a", seed=1)
    write(tmp_path / "runs" / "b", seed=2, numerics=2)
    with pytest.raises(InputError, match="numerics 1, 2"):
        main(f"runs=[{tmp_path}/runs]", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()
    main(f"runs=[{tmp_path}/runs]", f"out={tmp_path}/out", "allow_mixed_numerics=true")
    assert (tmp_path / "out" / "table.csv").exists()


def test_nothing_found_is_one_sentence_and_exit_code_2(main, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("n: 1\n")
    code, _, wrong = script(f"runs=[{tmp_path}]", f"out={tmp_path}/out")
    assert code == 2 and "none was found" in wrong and "Traceback" not in wrong and len(wrong.strip().splitlines()) == 1
    with pytest.raises(InputError, match="but there is none"):
        main(f"runs=[{tmp_path}/missing]", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()
