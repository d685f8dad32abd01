"""Learning curves: which runs make one, on which steps, and the figure that shows it."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from varlab import storage
from varlab.checks import InputError
from varlab.rng import Streams, numpy_generator
from varlab.studies import learning_curves as study


def run(seed, returns, steps=None, env="A", phi="reward_to_go", setting="s", numerics=3):
    n = len(returns)
    return pd.DataFrame(
        {
            "env": env, "policy": "mlp", "phi": phi, "seed": seed, "epoch": range(n), "mean_return": np.asarray(returns, float),
            "steps": np.arange(1, n + 1) * 100 if steps is None else steps, "setting": setting,
            "digest": f"{env}{phi}{setting}{seed}", "numerics": numerics,
        }
    )  # fmt: skip


def random_runs(seeds=8, points=5, **named):
    x = np.random.default_rng(0).normal(size=(seeds, points)).cumsum(1)
    return x, pd.concat([run(s, x[s], **named) for s in range(seeds)])


def test_curve_is_the_interquartile_mean_at_every_step():
    x, curves = random_runs()
    found = study.summarise(curves)
    assert found["steps"].tolist() == [100, 200, 300, 400, 500]
    np.testing.assert_allclose(found["iqm"], scipy.stats.trim_mean(x, 0.25, axis=0), atol=1e-12)
    assert ((found["iqm_low"] < found["iqm"]) & (found["iqm"] < found["iqm_high"])).all()
    assert set(found["seeds"]) == {"8"}


def test_interval_is_that_of_resampled_runs_from_a_stream_of_its_own():
    x, curves = random_runs()
    found = study.summarise(curves, draws=200, seed=3)
    rows = numpy_generator(Streams(3).sequence("learning_curve", 0)).integers(8, size=(200, 8))
    drawn = scipy.stats.trim_mean(x[rows], 0.25, axis=1)
    np.testing.assert_allclose(found["iqm_low"], np.quantile(drawn, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(found["iqm_high"], np.quantile(drawn, 0.975, axis=0), atol=1e-12)
    pd.testing.assert_frame_equal(found, study.summarise(curves.sample(frac=1, random_state=1), draws=200, seed=3))
    assert not found.equals(study.summarise(curves, draws=200, seed=4))


def test_runs_that_end_at_other_steps_are_interpolated_where_all_of_them_are():
    """Straight lines, so that interpolation is exact: return = slope · steps."""
    at = {0: np.array([50, 300, 1000]), 1: np.array([100, 200, 900]), 2: np.array([80, 700, 1200])}
    curves = pd.concat([run(s, (s + 1) * steps, steps) for s, steps in at.items()])
    found = study.summarise(curves)
    assert len(found) == study.POINTS and found["steps"].iloc[0] == 100 and found["steps"].iloc[-1] == 900
    np.testing.assert_allclose(found["iqm"], 2 * found["steps"], rtol=1e-12)


def test_environments_stand_apart_unless_a_scale_pools_them():
    x, a = random_runs(env="A")
    y, b = random_runs(env="B")
    curves = pd.concat([a, b])
    assert set(study.summarise(curves)["env"]) == {"A", "B"}
    pooled = study.summarise(curves, scale={"A": (0.0, 2.0), "B": (-1.0, 3.0)}, draws=200)
    assert set(pooled["env"]) == {"A, B"} and len(pooled) == 5
    scores = [x / 2, (y + 1) / 4]
    np.testing.assert_allclose(pooled["iqm"], scipy.stats.trim_mean(np.concatenate(scores), 0.25, axis=0), atol=1e-12)
    source = numpy_generator(Streams(0).sequence("learning_curve", 0))
    rows = [source.integers(8, size=(200, 8)) for _ in range(2)]
    drawn = np.concatenate([s[r] for s, r in zip(scores, rows, strict=True)], 1)
    low = np.quantile(scipy.stats.trim_mean(drawn, 0.25, axis=1), 0.025, axis=0)
    np.testing.assert_allclose(pooled["iqm_low"], low, atol=1e-12)
    with pytest.raises(InputError, match="No environment with a scale is called 'B'"):
        study.summarise(curves, scale={"A": (0.0, 1.0)})


def test_batches_without_a_whole_episode_are_left_out():
    curves = pd.concat([run(0, [np.nan, 2, 3]), run(1, [1, 2, 5])])
    found = study.summarise(curves)
    assert found["steps"].min() == 200 and found["iqm"].notna().all()


def test_one_seed_has_a_line_and_no_band():
    found = study.summarise(run(0, [1, 2, 3]))
    assert found["iqm"].tolist() == [1, 2, 3] and found[["iqm_low", "iqm_high"]].isna().all(axis=None)
    assert len(study.curve(found).lines) == 1


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([run(0, [1, 2]), run(1, [1, 2], setting="other")], "Runs that differ in their seed alone were expected for A, mlp, rew"),
        ([run(0, [1, 2]), run(0, [1, 2]).assign(digest="theta")], "Each seed once was expected .* several θ_0"),
        ([run(0, [1, 2], [10, 20]), run(1, [1, 2], [30, 40])], "Runs that share a range of environment steps were expected"),
    ],
)
def test_runs_that_make_no_curve_are_one_sentence(runs, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        study.summarise(pd.concat(runs))
    assert "\n" not in str(caught.value)


def write(folder, curve, numerics=3):
    digest = curve["digest"].iloc[0]
    storage.begin(folder, digest, "", storage.TRAINING_FILES)
    curve.drop(columns="numerics").to_parquet(folder / "curve.parquet", index=False)
    storage.write_json(folder / "provenance.json", {"digest": digest, "numerics": numerics})
    storage.finish(folder, digest, numerics, storage.TRAINING_FILES)


def test_saved_runs_are_gathered_once_and_numerics_do_not_mix(tmp_path):
    for name, seed, numerics in (("a", 0, 3), ("b", 1, 3), ("copy", 0, 3), ("old", 2, 2)):
        write(tmp_path / name, run(seed, [1, 2]), numerics)
    new = [tmp_path / name for name in ("a", "b", "copy")]
    assert len(study.gather(new)) == 4
    with pytest.raises(InputError, match="Training runs of one numerics were expected, but numerics 2, 3 came together"):
        study.gather([*new, tmp_path / "old"])
    assert len(study.gather([*new, tmp_path / "old"], allow_mixed_numerics=True)) == 6
    with pytest.raises(InputError, match="A finished training run was expected"):
        study.gather([])
    (tmp_path / "a" / "curve.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match="A complete run was expected in .*a, but curve.parquet has 4 bytes instead of"):
        study.gather(new)


def test_the_figure_shows_the_numbers():
    curves = pd.concat([random_runs(env=env, phi=phi)[1] for env in "AB" for phi in ("reward_to_go", "gae(lam=0.95)")])
    table = study.summarise(curves)
    figure = study.draw(table)
    panels = [ax for ax in figure.axes if ax.lines]
    assert [ax.get_title() for ax in panels] == ["A", "B"]
    for ax, env in zip(panels, "AB", strict=True):
        for line in ax.lines:
            mine = table[(table["env"] == env) & (table["phi"] == line.get_label())]
            np.testing.assert_array_equal(line.get_xydata(), mine[["steps", "iqm"]].to_numpy())
        assert len(ax.lines) == len(ax.collections) == 2
        band = ax.collections[0].get_datalim(ax.transData)
        mine = table[(table["env"] == env) & (table["phi"] == ax.collections[0].get_label())]
        assert band.y0 == pytest.approx(mine["iqm_low"].min()) and band.y1 == pytest.approx(mine["iqm_high"].max())
    text = study.caption(table, curves, "python scripts/figures.py")
    assert "2,000 resamples" in text and "seeds 0, 1, 2, 3, 4, 5, 6, 7" in text and "digest Areward_to_gos0" in text
