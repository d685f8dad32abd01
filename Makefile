# Each target makes .venv first where it is missing (test-extras, test-ray and benchmark their own: .venv-extras, …); nothing else
# is needed beforehand but Python 3.11 or newer.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
WORKERS ?= 2
PY := .venv/bin/python
STAMP := .venv/.installed
# Other libraries that varlab is checked against live apart, so that .venv holds what varlab needs and nothing else.
EXTRAS_PY := .venv-extras/bin/python
EXTRAS_STAMP := .venv-extras/.installed
RAY_PY := .venv-ray/bin/python
RAY_STAMP := .venv-ray/.installed
BENCH_PY := .venv-bench/bin/python
BENCH_STAMP := .venv-bench/.installed

.PHONY: help reproduce test test-extras test-faults test-oracles test-slurm test-ray calibrate benchmark lint clean browser slurm

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter of a new .venv, WORKERS=4 the number of test processes."

reproduce: $(STAMP)  ## measure three worlds, then decide every claim of Spinning Up: tables, figures, page (resumes where it stopped)
	$(PY) scripts/measure.py experiment=reproduce_cartpole
	$(PY) scripts/measure.py experiment=reproduce_frozenlake
	$(PY) scripts/measure.py experiment=reproduce_cliffwalking
	$(PY) scripts/figures.py runs=results/reproduce/runs out=results/reproduce
	$(PY) scripts/claims.py claims=spinningup workers=$(WORKERS) out=results/reproduce/claims

test: lint  ## check the style, then run every test
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

test-extras: $(EXTRAS_STAMP) browser  ## check against torchrl, Stable-Baselines3 and MuJoCo (in .venv-extras), and pages in a browser
	$(EXTRAS_PY) -m pytest tests/extras

# Headless Chromium opens report.html; its Debian packages and those of SLURM are the only system packages that tests use.
browser:
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver; } || { echo "chromium and chromedriver were expected, but they are neither here nor could they be installed; on Debian and Ubuntu: sudo apt install chromium chromium-driver" >&2; exit 1; }

test-faults: $(STAMP)  ## kill a sweep of sixty jobs fifty times, finish it, compare with an undisturbed one (some ten minutes)
	$(PY) -m pytest tests/faults

test-oracles: $(STAMP)  ## compare exact moments with a million trajectories on each of five worlds (a few minutes)
	$(PY) -m pytest tests/slow

test-slurm: $(STAMP) slurm  ## run a sweep through a one-node SLURM that is started and stopped for it (needs root)
	$(PY) -m pytest tests/slurm

test-ray: $(RAY_STAMP)  ## run a sweep through a local Ray cluster (in .venv-ray)
	$(RAY_PY) -m pytest tests/ray

slurm:
	@test "$$(id -u)" = 0 || { echo "The rights of root were expected, with which slurmd starts jobs; run: sudo make test-slurm" >&2; exit 1; }
	@PATH="$$PATH:/usr/sbin" command -v slurmctld > /dev/null && PATH="$$PATH:/usr/sbin" command -v munged > /dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge; } || { echo "SLURM and munge were expected, but they are neither here nor could they be installed; on Debian and Ubuntu: sudo apt install slurm-wlm munge" >&2; exit 1; }

calibrate: $(STAMP)  ## measure how often the intervals hold exact values (about an hour on 2 cores; resumes where it stopped)
	$(PY) scripts/calibrate.py

benchmark: $(BENCH_STAMP)  ## race varlab against its peers, JAX and Opacus among them, in .venv-bench (hours; ARGS=size=headline: less than one)
	$(BENCH_PY) scripts/benchmark.py $(ARGS)

lint: $(STAMP)  ## check style and docstrings
	$(PY) -m ruff check .

clean:  ## remove caches and build leftovers; keeps all environments and every result
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find varlab scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): EXTRA := test
$(RAY_STAMP): EXTRA := ray
$(RAY_STAMP): ALSO := pytest
$(EXTRAS_STAMP): EXTRA := extras
$(BENCH_STAMP): EXTRA := bench
# The Ray launcher asks for cloudpickle below 3, which joblib refuses, and what it brings asks for dateutil below 3: it lives apart from
# the other launchers, against the pins of everything else.
$(RAY_STAMP): PINS := sed -e s/^cloudpickle==.*/cloudpickle==2.2.1/ -e s/^python-dateutil==.*/python-dateutil==2.9.0.post0/
$(STAMP) $(EXTRAS_STAMP) $(BENCH_STAMP) $(RAY_STAMP): PINS ?= cat
$(STAMP) $(EXTRAS_STAMP) $(BENCH_STAMP) $(RAY_STAMP): pyproject.toml constraints.txt
	@test -x $(@D)/bin/python || command -v $(PYTHON) > /dev/null || { echo "varlab needs Python 3.11 or newer, but '$(PYTHON)' was not found; install it or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(@D)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "varlab needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(@D)/bin/python || $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "Python's venv module was expected, but '$(PYTHON)' lacks it; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(@D)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(@D)
	$(PINS) constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install -q torch==2.13.0 -c $(@D)/constraints.txt
	$(@D)/bin/python -m pip install -q -e ".[$(EXTRA)]" $(ALSO) -c $(@D)/constraints.txt
	@touch $@
