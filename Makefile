# make demo: train, evaluate and infer on phantoms.   make test: all tests.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install install-dev demo test test-slow lint hooks clean

help:
	@echo "make demo        install, then train, evaluate and infer a small network on phantoms (CPU, minutes)"
	@echo "make test        install what tests need and run them"
	@echo "make test-slow   the tests that take longer than a minute each"
	@echo "make lint        ruff and mypy"
	@echo "make install     only the package and what it needs, in $(VENV)"
	@echo "make hooks       check each commit before it is made (pre-commit)"
	@echo "make clean       remove what demo and tests wrote; keeps $(VENV)"

# A stamp for each installation: a killed one leaves none, so the next call repairs it.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt into $(VENV): some minutes, about 7 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/python scripts/demo.py

test: install-dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

hooks: install-dev
	$(BIN)/pre-commit install

clean:
	rm -rf demo_output bundle/runs bundle/cache .pytest_cache .ruff_cache .mypy_cache
	find bundle scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
