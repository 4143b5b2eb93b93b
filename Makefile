# make demo, make test: each works on a fresh machine with Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint types acceptance clean

demo: $(INSTALLED)
	$(BIN)/psa demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

check: lint types

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy on an editable install reads psa/ alone; here the four rooms are linked into one package, and all are read.
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types/psa
	ln -s $(CURDIR)/psa/* $(CURDIR)/models $(CURDIR)/inference $(CURDIR)/experiments build/types/psa/
	MYPYPATH=build/types $(BIN)/mypy --config-file pyproject.toml -p psa

# The long checks of the issues, in parts of at most an hour; what they print is kept in docs/acceptance/.
acceptance: $(INSTALLED)
	mkdir -p docs/acceptance
	set -o pipefail; for part in tests/acceptance/test_*.py; do \
	  $(BIN)/python -m pytest -m slow -rA -s --timeout 3600 $$part | tee docs/acceptance/$$(basename $$part .py).txt || exit 1; \
	done

acceptance types lint test: SHELL = /bin/bash

# PyTorch comes alone and first: together with the rest, some indices answer with the CUDA build and its gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "psa needs Python 3.11 or newer"'
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
