"""Digests, atomic writes, run folders, the reference cache and θ files."""

import hashlib
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from varlab import provenance, storage
from varlab.checks import InputError
from varlab.types import Moments, Reference

DIGEST, OTHER = "0123456789abcdef", "fedcba9876543210"


def make_moments(per_parameter=True, blocks=4, choices=("total_return", "gae(lam=0.95)"), size=3):
    draw = np.random.default_rng(0).normal
    shape = (blocks, len(choices))
    return Moments(
        block_id=np.arange(blocks), count=np.full(blocks, 10), mean=draw(size=(*shape, size)), trace_m2=draw(size=shape) ** 2,
        m2=draw(size=(*shape, size)) ** 2 if per_parameter else None, cross=draw(size=shape), m4=draw(size=shape) ** 4,
        m2c=draw(size=shape) ** 2, steps=np.full(blocks, 77), names=tuple(choices), comparator=1,
        low=draw(size=(*shape, size)).astype(np.float32), charged=np.arange(blocks * len(choices)).reshape(shape),
    )  # fmt: skip


def make_reference(exact=False, objective="J_1"):
    draw = np.random.default_rng(1).normal
    blocks = {"block_mean": draw(size=(5, 3)), "block_count": np.full(5, 20)}
    if exact:
        blocks = dict.fromkeys(blocks)
    return Reference(
        grad=draw(size=3), j=0.1 + 0.2, kind="exact" if exact else "value_baseline", n=0 if exact else 100, objective=objective,
        digest=OTHER, steps=123, **blocks,
    )  # fmt: skip


def make_result(critic=None, **moments):
    columns = {"phi": ["total_return", "gae(lam=0.95)"], "variance": [0.1 + 0.2, np.inf], "bias_sq": [-1e-9, np.nan]}
    references = {"J_1": make_reference(exact=True), "J_gamma": make_reference(objective="J_gamma")}
    return SimpleNamespace(
        summary=pd.DataFrame(columns), moments=make_moments(**moments), references=references, notes=("A note.",), digest=DIGEST,
        settings={"n": 40, "dtype": "float64"}, steps={"rollout": 308}, wall=1.5, critic=critic,
    )  # fmt: skip


def assert_same(a, b):
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and np.array_equal(left, right), field.name
        else:
            assert left == right, field.name


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- digests


def test_digest_ignores_the_order_of_keys():
    assert storage.digest({"a": 1, "b": {"c": 2.5, "d": None}}) == storage.digest({"b": {"d": None, "c": 2.5}, "a": 1})


def test_digest_is_the_same_in_another_process():
    mapping = {"gamma": 0.1 + 0.2, "name": "Φ", "list": [1, True, None], "x": torch.arange(4, dtype=torch.float64)}
    code = "import torch; from varlab import storage; print(storage.digest({'x': torch.arange(4, dtype=torch.float64), "
    code += "'name': 'Φ', 'list': (1, True, None), 'gamma': 0.1 + 0.2}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == storage.digest(mapping)
    assert len(storage.digest(mapping)) == 16 and int(storage.digest(mapping), 16) >= 0


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.tensor([1.0, 2.0], dtype=torch.float64)}, {"x": torch.tensor([1.0, 2.0 + 1e-6])},
        {"x": torch.tensor([[1.0, 2.0]])}, {"x": torch.tensor([2.0, 1.0])}, {"y": torch.tensor([1.0, 2.0])}, {"x": [1.0, 2.0]},
    ],
)  # fmt: skip
def test_digest_sees_dtype_shape_name_and_every_number(other):
    assert storage.digest({"x": torch.tensor([1.0, 2.0])}) != storage.digest(other)


def test_digest_tells_neighbouring_floats_apart():
    assert storage.digest({"gamma": 0.99}) != storage.digest({"gamma": np.nextafter(0.99, 1)})
    assert storage.digest({"gamma": 0.99}) == storage.digest({"gamma": np.float64(0.99)})


def test_digest_covers_records_strided_tensors_and_scalars():
    @dataclass(frozen=True)
    class Settings:
        n: int
        hidden: tuple[int, ...]

    assert storage.digest({"s": Settings(1, (2,))}) != storage.digest({"s": Settings(2, (2,))})
    x = torch.arange(6.0).reshape(2, 3)
    assert storage.digest({"x": x.T}) == storage.digest({"x": x.T.contiguous()})
    assert storage.digest({"x": torch.tensor(1.0)}) != storage.digest({"x": torch.tensor([1.0])})


@pytest.mark.parametrize("value", [object(), os, len, np.array([object()]), {1, 2}])
def test_digest_refuses_what_has_no_canonical_content(value):
    with pytest.raises(TypeError, match="digest covers"):
        storage.digest({"x": value})


# ---- atomic writes


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    storage.write_text(tmp_path / "deep" / "file.txt", "old")
    with pytest.raises(RuntimeError), storage.atomic(tmp_path / "deep" / "file.txt") as part:
        part.write_text("half")
        assert (tmp_path / "deep" / "file.txt").read_text() == "old"
        raise RuntimeError
    assert content(tmp_path / "deep") == {(tmp_path / "deep" / "file.txt").relative_to(tmp_path / "deep"): b"old"}


# ---- run folders


def test_a_run_goes_from_free_through_interrupted_to_done(tmp_path):
    folder = tmp_path / "run"
    assert storage.folder_state(folder, DIGEST) == "free"
    storage.begin(folder, DIGEST, "n: 40\n")
    assert storage.folder_state(folder, DIGEST) == "interrupted"
    storage.write_text(folder / "summary.csv", "phi\n")
    storage.finish(folder, DIGEST, 1)
    assert storage.folder_state(folder, DIGEST) == "done"
    done = json.loads((folder / "done.json").read_text())
    assert done.pop("checksums") == {"summary.csv": {"bytes": 4, "sha256": hashlib.sha256(b"phi\n").hexdigest()}}
    assert done == {"digest": DIGEST, "numerics": 1, "files": ["config.yaml", "summary.csv"]}
    (folder / "summary.csv").unlink()
    assert storage.folder_state(folder, DIGEST) == "interrupted"


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_run_is_not_touched(tmp_path, finished):
    storage.begin(tmp_path, OTHER, "n: 40\n")
    if finished:
        storage.finish(tmp_path, OTHER, 1)
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"run {DIGEST} was expected at .* holds run {OTHER}.*; name another folder"):
        storage.begin(tmp_path, DIGEST, "n: 50\n")
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["summary.csv", "config.yaml", "done.json", "figures/mine.png"])
def test_foreign_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"holds {name.split('/')[0]} of unknown origin"):
        storage.begin(tmp_path, DIGEST, "")
    assert content(tmp_path) == before


def test_foreign_files_that_no_run_writes_may_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    storage.begin(tmp_path, DIGEST, "")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="folder was expected at .*run, but it is a file"):
        storage.begin(tmp_path / "run", DIGEST, "")


def test_begin_drops_what_dead_writers_left_and_nothing_else(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / f".moments.npz.{socket.gethostname()}-{process.pid}.part"
    living = tmp_path / f".moments.npz.{socket.gethostname()}-{os.getppid()}.part"
    elsewhere = tmp_path / f".moments.npz.another-host-{process.pid}.part"
    for path in (dead, living, elsewhere):
        path.write_text("half")
    storage.begin(tmp_path, DIGEST, "")
    assert not dead.exists() and living.exists() and elsewhere.exists()


def test_find_runs_gives_complete_runs_once_and_sorted(tmp_path):
    for name in ("b", "a/deep", "unfinished"):
        storage.begin(tmp_path / name, DIGEST, "")
        if name != "unfinished":
            storage.finish(tmp_path / name, DIGEST, 1)
    assert storage.find_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "a" / "deep", tmp_path / "b"]
    assert storage.find_runs(tmp_path / "b") == [tmp_path / "b"]
    with pytest.raises(InputError, match="folder of runs was expected at .*nowhere"):
        storage.find_runs([tmp_path / "nowhere"])


# ---- the files of a run


@pytest.mark.parametrize("per_parameter", [True, False])
def test_a_run_is_read_as_it_was_written(tmp_path, per_parameter):
    result = make_result(critic=torch.nn.Linear(2, 1), per_parameter=per_parameter)
    storage.begin(tmp_path, DIGEST, "")
    storage.write_run(tmp_path, result, provenance.provenance(result, {"rollout": 3}, ["measure.py", "n=40"]))
    summary, moments, references, record = storage.read_run(tmp_path)
    pd.testing.assert_frame_equal(summary, result.summary)
    assert_same(moments, result.moments)
    assert list(references) == ["J_1", "J_gamma"] and references["J_1"].exact
    for objective, reference in references.items():
        assert_same(reference, result.references[objective])
    assert record["settings"] == result.settings and record["notes"] == ["A note."] and record["seeds"] == {"rollout": 3}
    assert record["steps"] == {"rollout": 308} and record["wall_seconds"] == 1.5 and record["command"] == ["measure.py", "n=40"]
    state = torch.load(tmp_path / "critic.pt", weights_only=True)
    assert torch.equal(state["weight"], result.critic.weight)
    assert pd.read_csv(tmp_path / "summary.csv")["variance"][0] == 0.1 + 0.2  # repr in csv: no digit is lost


def test_the_names_of_the_archive_are_those_of_the_record(tmp_path):
    storage.write_run(tmp_path, make_result(), {})
    with np.load(tmp_path / "moments.npz", allow_pickle=False) as data:
        kept = {"reference_grad__J_1", "reference_info__J_1"}
        sampled = {f"reference_{k}__J_gamma" for k in ("grad", "info", "block_mean", "block_count")}
        assert set(data.files) == {f.name for f in fields(Moments)} | kept | sampled
        assert data["names"].dtype.kind == "U"


@pytest.mark.parametrize("name", ["moments.npz", "summary.parquet", "provenance.json"])
def test_a_damaged_run_is_named(tmp_path, name):
    storage.write_run(tmp_path, make_result(), {})
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2] if name != "provenance.json" else b"{")
    with pytest.raises(InputError, match="complete run was expected in .*measure it again"):
        storage.read_run(tmp_path)


def block_of(first, size):
    index = np.arange(first, first + size)
    columns = {"trajectory": index, "block": index // size, "return": index / 7, "length": index}
    return pd.DataFrame({**columns, "norm_sq[gae(lam=0.95)]": 1.0})


def test_the_sink_writes_block_by_block(tmp_path):
    with storage.ParquetSink(tmp_path / "run" / "trajectories.parquet") as sink:
        for b in range(3):
            sink(block_of(10 * b, 10))
            assert not (tmp_path / "run" / "trajectories.parquet").exists()
    file = pq.ParquetFile(tmp_path / "run" / "trajectories.parquet")
    table = file.read().to_pandas()
    assert file.num_row_groups == 3  # nothing waits in memory for the end
    assert table["trajectory"].tolist() == list(range(30)) and table["return"].dtype == "float32"
    np.testing.assert_allclose(table["return"], np.arange(30) / 7, rtol=1e-7)
    assert list(table.columns) == list(block_of(0, 1).columns)


def test_the_sink_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), storage.ParquetSink(tmp_path / "trajectories.parquet") as sink:
        sink(block_of(0, 10))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# ---- the reference cache


@pytest.mark.parametrize("exact", [True, False])
def test_the_cache_gives_back_what_was_put(tmp_path, exact):
    cache, reference = storage.ReferenceCache(tmp_path / "cache"), make_reference(exact)
    assert cache.get(DIGEST) is None
    cache.put(DIGEST, reference)
    assert_same(cache.get(DIGEST), reference)
    assert cache.get(OTHER) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    """Alter one number and leave the archive readable: the zip's own checksums must not be what finds it."""
    with np.load(path) as data:
        arrays = dict(data)
    arrays["grad"] = arrays["grad"] * (1 + 1e-15)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def empty(path):
    path.write_bytes(b"")


def another_reference(path):
    storage.ReferenceCache(path.parent).put(OTHER, make_reference())
    os.replace(path.with_name(f"reference-{OTHER}.npz"), path)


def pickled(path):
    with open(path, "wb") as file:
        np.savez(file, grad=np.array([object()]), checksum=np.array("0"))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, another_reference, pickled])
def test_a_damaged_reference_is_named_and_left_out(tmp_path, caplog, damage):
    cache = storage.ReferenceCache(tmp_path)
    cache.put(DIGEST, make_reference())
    damage(cache.path(DIGEST))
    with caplog.at_level(logging.WARNING):
        assert cache.get(DIGEST) is None
    assert str(cache.path(DIGEST)) in caplog.text and "computed again" in caplog.text
    cache.put(DIGEST, make_reference())
    assert_same(cache.get(DIGEST), make_reference())


# ---- θ


def policy():
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_theta_survives_the_disk(tmp_path, suffix):
    saved, other = policy(), policy()
    for parameter in other.parameters():
        parameter.data.zero_()
    written = storage.save_theta(tmp_path / f"theta{suffix}", saved)
    assert storage.load_theta(tmp_path / f"theta{suffix}", other) == written
    for a, b in zip(saved.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_digest_of_theta_is_of_content_not_of_the_file(tmp_path):
    storage.save_theta(tmp_path / "a.npz", policy())
    storage.save_theta(tmp_path / "b.pt", policy())
    assert storage.load_theta(tmp_path / "a.npz", policy()) == storage.load_theta(tmp_path / "b.pt", policy())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("2.bias"), r"parameter '2.bias' of shape \(2,\) was expected .* holds 0.bias, 0.weight, 2.weight"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 5)}), r"'0.weight' of shape \(4, 3\) was expected .* has shape \(4, 5\)"),
        (lambda s: s.update({"2.wieght": torch.zeros(1)}), r"also holds '2.wieght' \(nearest: 2.weight\)"),
        (lambda s: s["0.bias"].fill_(float("nan")), "Finite real numbers were expected for '0.bias'"),
        (lambda s: s.update({"0.bias": 3.0}), "mapping from names to tensors was expected"),
    ],
)
def test_a_theta_that_does_not_fit_is_one_sentence_and_changes_nothing(tmp_path, change, sentence):
    state = {k: v.clone() for k, v in policy().state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "theta.pt")
    kept = policy()
    with pytest.raises(InputError, match=sentence) as caught:
        storage.load_theta(tmp_path / "theta.pt", kept)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), policy().parameters(), strict=True))


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pickle"])
def test_pickled_code_is_refused_and_never_run(tmp_path, suffix):
    path, proof = tmp_path / f"theta{suffix}", tmp_path / "proof"
    if suffix == ".npz":
        with open(path, "wb") as file:
            np.savez(file, **{"0.weight": np.array([Bomb(proof)], dtype=object)})
    elif suffix == ".pt":
        torch.save({"0.weight": Bomb(proof)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(InputError, match="pickled code, which is never run"):
        storage.load_theta(path, policy())
    assert not proof.exists()
    if suffix == ".pickle":  # the control: this file does run code when it is unpickled
        pickle.loads(path.read_bytes()).close()
        assert proof.exists()


@pytest.mark.parametrize("raw", [b"", b"not an archive", None])
def test_a_missing_or_damaged_theta_is_one_sentence(tmp_path, raw):
    for suffix in (".npz", ".pt"):
        path = tmp_path / f"theta{suffix}"
        if raw is not None:
            path.write_bytes(raw)
        with pytest.raises(InputError, match="was expected at|were expected in") as caught:
            storage.load_theta(path, policy())
        assert "\n" not in str(caught.value)


# ---- provenance


def test_provenance_names_versions_commit_and_dirt(tmp_path):
    assert {"python", "varlab", "torch", "numpy", "gymnasium"} <= set(provenance.versions())
    assert provenance.commit(tmp_path) == (None, None)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "file.py").write_text("1")
    for words in (["init", "-q"], ["add", "file.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.commit(tmp_path) == (head, False)
    (tmp_path / "file.py").write_text("2")
    assert provenance.commit(tmp_path) == (head, True)


def test_a_repository_around_an_installed_varlab_is_not_its_commit(tmp_path):
    (tmp_path / "site-packages").mkdir()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert provenance.commit(tmp_path / "site-packages") == (None, None)


def test_importing_varlab_loads_no_plotting_and_no_hydra():
    code = "import sys, varlab; print([m for m in ('matplotlib', 'seaborn', 'hydra', 'pandas', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_public_name_is_an_attribute_error():
    import varlab

    assert varlab.NUMERICS == 3 and varlab.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        varlab.mesure  # noqa: B018


def test_the_records_compared_here_can_differ():
    with pytest.raises(AssertionError):
        assert_same(make_moments(), replace(make_moments(), steps=np.full(4, 78)))
