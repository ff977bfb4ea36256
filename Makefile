# make demo    pretrain for 3 minutes on the default corpus, show a sample, name the report
# make test    lint, types, import contracts, tests
# make test-all  the same with the tests marked slow
#
# WORKERS=N runs the tests in so many processes (a processor each by default), PYTEST_ARGS="tests/model -x" some of them.
# TORCH_INDEX=URL takes torch from another package index (on Linux the usual one brings gigabytes of CUDA).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
CONSTRAINTS := --constraint constraints.txt
TORCH_INDEX ?=
BUDGET ?= 3m
WORKERS ?= auto

.PHONY: demo test test-all lint types floors pytest install install-test clean

demo: install
	$(BIN)/isoflop train --budget $(BUDGET)

test: lint types floors pytest

test-all:
	$(MAKE) test PYTEST_ARGS="-m '' $(PYTEST_ARGS)"

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

floors: install-test
	$(BIN)/lint-imports

pytest: install-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "isoflop needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install --quiet $(CONSTRAINTS) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
