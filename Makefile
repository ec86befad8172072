# Everything runs in a virtual environment of its own, VENV, with the exact versions in constraints.txt.
#   make demo                      install the package and run the demonstration
#   make test ARGS="-k anchors"    install the test tools and run the tests in WORKERS processes; ARGS goes to pytest
#   make lint build docs           checks, distributions, HTML documentation
#   make test VENV=/tmp/other PYTHON=python3.13 CONSTRAINTS=    another environment, newest versions

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INPUTS := pyproject.toml $(CONSTRAINTS)

# Parallelism comes from running processes side by side; threads inside each only get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.DELETE_ON_ERROR:
.PHONY: help demo test lint build docs constraints clean

help:
	@sed -n '2,5s/^#  *//p' Makefile

demo: $(VENV)/.core
	$(BIN)/celltransfer demo

test: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

docs: $(VENV)/.docs
	$(ONE_THREAD) $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# The versions that pip chooses today for this Python, without torch's local tag (+cpu).
constraints:
	rm -rf build/constraints
	$(MAKE) build/constraints/.test VENV=build/constraints CONSTRAINTS=
	{ sed -n '/^#/p' constraints.txt; \
	  build/constraints/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
	  | sed 's/+[a-z0-9.]*$$//' | grep -v -E '^(nvidia|triton|cuda)' | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf build/constraints

clean:
	rm -rf build dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache .coverage coverage.xml htmlcov
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# A stamp per set of packages: nothing is installed again until pyproject.toml or constraints.txt change.
# The pip that comes with Python 3.11 does not know dependency groups (PEP 735).
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.core: $(VENV)/.pip $(INPUTS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.pip $(INPUTS)
	$(INSTALL) -e . --group test --group typecheck
	@touch $@ $(VENV)/.core

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(INSTALL) --group docs
	@touch $@
