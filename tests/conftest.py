"""What every test shares: torch threads that do not fight for cores with other workers or programs; scripts in this process."""

import logging
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; read once, when torch is loaded

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu are taken wherever there is one, and are no part of the suite elsewhere."""
    if not torch.cuda.is_available():
        left = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """Run a script in this process, in a folder of its own: (name, words) → exit code and what it printed."""
    root = logging.getLogger()
    handlers, level, threads = root.handlers[:], root.level, torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name, *words):
        path = str(SCRIPTS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *words])
        capfd.readouterr()
        try:
            runpy.run_path(path, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    torch.set_num_threads(threads)
