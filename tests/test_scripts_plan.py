"""scripts/plan.py on run folders: pilot, plan, run, check; further analyses of scripts/figures.py."""

import importlib.util
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.text import Text

import varlab
from varlab import InputError, provenance, storage
from varlab.analysis import run_analyses

ROOT = Path(__file__).resolve().parents[1]


def write(folder, phi=("total_return", "advantage", "gae(lam=0.0)", "gae(lam=0.9)"), command=("scripts/measure.py",), **settings):
    """Measure CliffWalking briefly and write its folder as scripts/measure.py does."""
    settings = {"n": 500, "pilot": 60, "seed": 0, **settings}
    env = varlab.envs.make("CliffWalking-v1", horizon=settings.pop("horizon", 10))
    policy = varlab.policies.make("softmax_table", env)
    storage.begin(folder, "d", "")
    with storage.ParquetSink(folder / "trajectories.parquet") as sink:
        result = varlab.measure(env, policy, list(phi), sink=sink, **settings)
    storage.begin(folder, "d", "")
    storage.write_run(folder, result, provenance.provenance(result, {"rollout": settings["seed"]}, command))
    storage.finish(folder, result.digest, varlab.NUMERICS)
    return result


def task(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            module.main(compose(name, list(words)))

    return call


@pytest.fixture
def plan(monkeypatch):
    return task("plan", monkeypatch)


def test_pilot_plan_run_check(plan, tmp_path, capsys):
    """The sizes of the printed command, measured with its seed, meet the target that they were planned for."""
    words = ("scripts/measure.py", "env=cliffwalking", "n=500", f"out={tmp_path}/pilot")
    write(tmp_path / "pilot", command=words)
    plan(f"pilot={tmp_path}/pilot", "target=cosine", "value=0.9")
    said = capsys.readouterr().out
    command = next(line.strip() for line in said.splitlines() if line.strip().startswith("python scripts/measure.py"))
    found = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    assert found["env"] == "cliffwalking" and found["seed"] == "1" and found["out"] == f"{tmp_path}/pilot_full"
    assert "To reach it with advantage" in said and int(found["batch_size"]) > 1
    write(tmp_path / "pilot_full", n=int(found["n"]), batch_size=int(found["batch_size"]), seed=1)
    check = re.search(r"python scripts/plan.py (.*)", said)[1].split()
    plan(*check, f"pilot={tmp_path}/pilot")
    last = capsys.readouterr().out.strip().splitlines()
    plan(f"pilot={tmp_path}/pilot", f"check={tmp_path}/pilot_full", "choice=advantage")
    assert "total_return" not in capsys.readouterr().out.split("A cosine")[1]
    with pytest.raises(InputError, match="take another seed"):
        plan(f"pilot={tmp_path}/pilot", f"check={tmp_path}/pilot")
    with pytest.raises(InputError, match="Φ of the run"):
        plan(f"check={tmp_path}/pilot", "choice=gae")
    write(tmp_path / "again", n=550)
    plan(f"pilot={tmp_path}/pilot", f"check={tmp_path}/again")
    assert "not independent" in capsys.readouterr().out
    assert last[-1] == "advantage: met." and not any(line.startswith("total_return ") and line.endswith(" met") for line in last)


def test_nothing_to_do_is_refused(plan):
    with pytest.raises(InputError, match="give pilot=FOLDER"):
        plan()


def test_every_analysis_of_a_run_is_drawn(tmp_path):
    """One panel for each number, one mark for each Φ, and no raw name in a figure."""
    result = write(tmp_path / "a")
    names = ["efficiency", "tails", "layers", "errors", "lambdas"]
    made = {name: (table, item.draw(table, None)) for name, item, _, table in run_analyses.analyses(names, [tmp_path / "a"])}
    assert made["tails"][0]["kurtosis"].tolist() == pytest.approx(result.summary["kurtosis"].tolist(), rel=1e-5)
    assert made["layers"][0]["layer"].unique().tolist() == ["logits.weight"]
    assert made["lambdas"][0]["lam"].unique().tolist() == [0.0, 0.9]
    assert {k: len(figure.axes) for k, (_, figure) in made.items()} == dict(zip(names, (2, 4, 1, 1, 1), strict=True))
    for _, figure in made.values():
        texts = [t.get_text() for t in figure.findobj(Text)]
        assert not [t for t in texts if "_" in re.sub(r"\$[^$]*\$", "", t)]
    ticks = [t.get_text() for t in made["efficiency"][1].axes[0].get_yticklabels()]
    assert len(ticks) == 4 and ticks[-1] == "GAE(λ = 0.9)"


def test_analyses_that_do_not_apply_are_refused(tmp_path):
    write(tmp_path / "a", phi=("total_return",), per_parameter=False)
    for name, said in (("tail", "analysis"), ("slopes", "sweep one with -m"), ("lambdas", "two λ"), ("layers", "per_parameter")):
        with pytest.raises(InputError, match=said):
            run_analyses.analyses([name], [tmp_path / "a"])
    (tmp_path / "a" / "trajectories.parquet").unlink()
    with pytest.raises(InputError, match="trajectories.parquet is missing; repeat the command"):
        run_analyses.analyses(["tails"], [tmp_path / "a"])


def test_slopes_of_a_sweep_and_one_table_for_each_run(monkeypatch, tmp_path):
    for horizon in (8, 12):
        write(tmp_path / "runs" / str(horizon), phi=("total_return", "advantage"), horizon=horizon, seed=horizon)
    out = tmp_path / "out"
    task("figures", monkeypatch)(f"runs=[{tmp_path}/runs]", f"out={out}", "also=[slopes]")
    assert {f"slopes.{kind}" for kind in ("png", "pdf", "md", "csv")} <= {p.name for p in out.iterdir()}
    table, caption = pd.read_csv(out / "slopes.csv"), (out / "slopes.md").read_text(encoding="utf-8")
    assert table["x"].tolist() == ["horizon"] * 2 and table["points"].tolist() == [2, 2] and not table["shared_seed"].any()
    assert "95 %" in caption and all(f"horizon {h}" in caption for h in (8, 12))
    made = run_analyses.analyses(["efficiency"], [tmp_path / "runs" / str(h) for h in (8, 12)])
    assert [name for name, *_ in made] == ["efficiency_1", "efficiency_2"]
    assert [table["steps"][0] for *_, table in made] == [8.0, 12.0]
