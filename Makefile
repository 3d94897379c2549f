# Every target works alone in a fresh clone: it makes .venv and installs what it needs.
#   make demo      train a Boltzmann generator for alanine dipeptide and write the report (about five minutes)
#   make test      fast tests             make test-all  long statistics
#   make test-cuda tests that need a GPU  make lint      ruff and mypy
#   make test-torchforce   tests of the flow as a TorchForce, in an environment of their own (.venv-torchforce)
#   make docs      build/docs/index.html  make bench     benchmarks; with the figures of `make demo` if it ran
#   make clean     remove .venv and everything that was built
#
# PYTHON is the interpreter that .venv is made from (3.11 or later). TORCH is what pip is told to install as PyTorch,
# before anything else; put your build there, with pip's options if it needs any: make demo TORCH='torch==2.12.1'.
# TORCHFORCE_TORCH is the same for .venv-torchforce: a wheel of openmmtorch works with one release of PyTorch only.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHFORCE_TORCH ?= torch==2.12.1
WORKERS ?= 2
DEMO ?= demo-run

VENV := .venv
TORCHFORCE_VENV := .venv-torchforce
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off
PIP_TORCHFORCE := $(TORCHFORCE_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off
# One thread a process: the test files run side by side, and small systems are faster so.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --dist loadfile

.PHONY: demo test test-all test-cuda test-torchforce lint format docs bench clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "openmm-bg needs Python 3.11 or later, but PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@echo "Installing $(TORCH) into $(VENV) (minutes, once)"
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.torch
	@echo "Installing openmm-bg and its dependencies into $(VENV) (minutes, once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) -e '.[docs]'
	@touch $@

$(TORCHFORCE_VENV)/.dev: pyproject.toml
	@echo "Installing $(TORCHFORCE_TORCH), openmmtorch and openmm-bg into $(TORCHFORCE_VENV) (minutes, once)"
	$(PYTHON) -m venv $(TORCHFORCE_VENV)
	$(PIP_TORCHFORCE) '$(TORCHFORCE_TORCH)'
	$(PIP_TORCHFORCE) -e '.[dev,torchforce]'
	@touch $@

demo: $(VENV)/.package
	$(BIN)/openmm-bg demo $(DEMO)

test: $(VENV)/.dev
	$(PYTEST) $(PARALLEL) -m 'not slow and not cuda and not torchforce' --durations=15

test-all: $(VENV)/.dev
	$(PYTEST) $(PARALLEL) -m 'slow and not cuda and not torchforce' --timeout 2400 --durations=15

test-cuda: $(VENV)/.dev
	$(PYTEST) -m cuda --timeout 2400 --durations=15

test-torchforce: $(TORCHFORCE_VENV)/.dev
	OMP_NUM_THREADS=1 $(TORCHFORCE_VENV)/bin/python -m pytest -m torchforce tests/test_flow_torchforce.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(if $(wildcard $(DEMO)/summary.json),--run $(DEMO))

clean:
	rm -rf $(VENV) $(TORCHFORCE_VENV) build dist .mypy_cache .pytest_cache .ruff_cache
