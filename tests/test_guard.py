"""Nothing gets in: configurations that name code are refused wherever it stands, before anything is built or written."""

import ast
import functools
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from varlab import guard

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PRIMARY = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "claims_rows")


@functools.cache
def composed(name="measure", *words):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(name, list(words), return_hydra_config=True)


def changed(path, value):
    cfg = composed().copy()
    OmegaConf.set_struct(cfg, False)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.update(cfg, path, value, force_add=True)
    return cfg


@pytest.mark.parametrize("name", PRIMARY)
def test_varlabs_own_configurations_pass(name):
    guard.check(composed(name))


def test_launchers_that_are_installed_pass():
    guard.check(composed("measure", "hydra/launcher=joblib"))
    with pytest.raises(guard.ForeignCodeError):
        guard.check(changed("hydra.launcher._target_", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.joblib.Parallel"))


FOREIGN = [
    ("env.kwargs._target_", "os.system"),
    ("env.kwargs.deep", {"list": [1, {"_target_": "os.system"}]}),
    ("phi.gae._target_", "varlab.estimators.make"),  # not even varlab's own, where nothing is instantiated
    ("_target_", "os.system"),
    ("hydra.callbacks.job_log._target_", "os.system"),
    ("hydra.callbacks.job_log._target_", "varlab.configure.logging.os.system"),  # through a module that varlab imports
    ("hydra.callbacks.job_log._target_", "varlab.configure.Callback"),
    ("hydra.callbacks.job_log._target_", "varlab.no_such_module.Log"),
    ("hydra.callbacks.job_log._target_", ["os.system"]),
    ("hydra.callbacks.job_log.argument", {"_target_": "os.system"}),
    ("hydra.callbacks.other", {"_target_": "subprocess.run", "args": "id"}),
    ("hydra.callbacks.other", "${oc.create:'{_target_: os.system}'}"),
    ("hydra.callbacks.other", "${oc.decode:'{_target_: os.system}'}"),
    ("hydra.launcher._target_", "os.system"),
    ("hydra.launcher.more", {"_target_": "os.system"}),
    ("hydra.sweeper._target_", "hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
    ("hydra.sweeper.more", {"_target_": "os.system"}),
    ("hydra.job_logging.handlers.stderr.class", "os.system"),
    ("hydra.job_logging.handlers.stderr.stream", "ext://os.environ"),
    ("hydra.job_logging.handlers.more", {"()": "os.system"}),
    ("hydra.job_logging.filters.more.arguments", "cfg://root"),
    ("hydra.hydra_logging.formatters.simple.class", "${oc.decode:'subprocess.Popen'}"),
]


@pytest.mark.parametrize(("path", "value"), FOREIGN)
def test_code_named_anywhere_is_refused(path, value):
    with pytest.raises(guard.ForeignCodeError, match="may not name code to run") as caught:
        guard.check(changed(path, value))
    assert "\n" not in str(caught.value) and path.split("._target_")[0] in str(caught.value)


@pytest.mark.parametrize(("path", "value"), [("env.kwargs.target", "os.system"), ("study", "_target_"), ("out", "ext://os")])
def test_harmless_settings_pass(path, value):
    guard.check(changed(path, value))


@pytest.mark.parametrize("words", [["--experimental-rerun", "x"], ["--exp=x"], ["-cp", "pkg://os"], ["hydra.searchpath=[pkg://x]"]])
def test_words_that_would_run_code_before_composing_are_refused(words):
    with pytest.raises(guard.ForeignCodeError):
        guard.check_words(words)
    guard.check_words(["env=cartpole", "--config-dir", "folder", "-m", "--cfg", "job"])


def test_foreign_code_in_a_configuration_folder_is_not_run(tmp_path, monkeypatch, capfd):
    """The whole way: a file that Hydra finds through --config-dir, in a single run and in a sweep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    folder = tmp_path / "given"
    (folder / "env").mkdir(parents=True)
    mark = tmp_path / "mark"
    call = f"{{_target_: pathlib.Path.touch, self: {mark}}}"
    (folder / "env" / "evil.yaml").write_text(f"# @package _global_\nhydra:\n  callbacks:\n    evil: {call}\n")
    (folder / "evil.yaml").write_text(f"defaults: [measure, _self_]\nhydra:\n  callbacks:\n    evil: {call}\n")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for words in (["+env@_global_=evil"], ["--config-name", "evil"], ["-m", "+env@_global_=evil", "seed=0,1"]):
        monkeypatch.setattr(sys, "argv", ["measure.py", "--config-dir", str(folder), *words, "n=49"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / "measure.py"), run_name="__main__")
        said = capfd.readouterr().err
        assert stop.value.code == 2 and "hydra.callbacks.evil" in said and said.count("\n") == 1, said
    root.handlers[:] = handlers
    root.setLevel(level)
    assert not mark.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["given"]


# ---- nothing is unpickled

#: Loaders that would run what a file holds, and the argument that keeps them from it (None: nothing does).
LOADERS = {
    "torch.load": "weights_only=True", "np.load": "allow_pickle=False", "pickle.load": None, "pickle.loads": None,
    "pd.read_pickle": None, "joblib.load": None, "yaml.load": None, "yaml.unsafe_load": None, "torch.jit.load": None,
    "load_from_zip_file": None, "exec": None, "eval": None, "instantiate": None, "hydra.utils.instantiate": None,
}  # fmt: skip
#: The two doors, each opened by name; and pipes, into which nobody writes but a process's own forks.
DOORS = {("varlab/user_modules.py", "exec"), ("varlab/storage/agents.py", "load_from_zip_file")}
PIPES = {("varlab/workers.py", "pickle.loads")}


def open_doors(path, text):
    """Calls in a file that may run what they read: (path, function)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in LOADERS:
            if LOADERS[name] not in {ast.unparse(k).replace(" ", "") for k in node.keywords}:
                yield path, name


def test_every_loader_takes_plain_data():
    files = [*(ROOT / "varlab").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    found = {place for file in files for place in open_doors(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))}
    assert found == DOORS | PIPES


@pytest.mark.parametrize(
    "text", ["torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "pickle.load(f)", "eval(x)"]
)
def test_an_open_loader_is_found(text):
    assert list(open_doors("x.py", text)) and not list(open_doors("x.py", "torch.load(p, weights_only=True)"))


# ---- no network

#: Ends the process at the first use of a socket: audit events of Python itself, which no module can avoid.
HOOK = """
import os, sys
watched = {"socket." + name for name in ("connect", "bind", "sendto", "getaddrinfo", "gethostbyname")} | {"urllib.Request"}
def hook(event, arguments):
    if event in watched:
        os.write(2, f"NETWORK {event} {arguments}".encode())
        os._exit(77)
sys.addaudithook(hook)
"""
RUN = """
import runpy
sys.path.insert(0, {scripts!r})
def run(name, *words):
    sys.argv = [name, *words]
    try:
        runpy.run_path(os.path.join({scripts!r}, name), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (name, stop.code)
small = ("env=frozenlake", "env.horizon=8", "policy=softmax_table", "n=100", "pilot=50", "figures=false")
run("measure.py", *small, "phi=[total_return,value_baseline]", "reference=sampled", "reference.n=100", "out=run")
run("plan.py", "check=run", "value=0.1")
run("train.py", "env=frozenlake", "env.horizon=8", "policy=softmax_table", "epochs=1", "episodes=4", "out=trained")
run("reference.py", *small, "shard=0")
"""


def python(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    return SimpleNamespace(code=done.returncode, err=done.stderr)


def test_nothing_uses_the_network_at_run_time(tmp_path):
    done = python(HOOK + RUN.format(scripts=str(ROOT / "scripts")), tmp_path)
    assert done.code == 0, done.err
    assert {"run", "trained"} <= {p.name for p in tmp_path.iterdir()} and (tmp_path / "run" / "done.json").exists()


def test_the_watch_over_the_network_sees_it(tmp_path):
    for code in (
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import urllib.request as u; u.urlopen('http://localhost:9')",
    ):
        done = python(HOOK + code, tmp_path)
        assert done.code == 77 and "NETWORK" in done.err
