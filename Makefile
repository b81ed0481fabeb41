# make demo: train, evaluate and infer on phantoms.   make test: all tests.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LABEL_VENV ?= .venv-label
DEPLOY_VENV ?= .venv-deploy

.PHONY: help install install-dev install-label install-deploy demo test test-page test-slow test-label test-deploy test-nnunet fuzz mutants lint hooks clean

help:
	@echo "make demo        install, then train, evaluate and infer a small network on phantoms (CPU, minutes)"
	@echo "make test        install what tests need and run them"
	@echo "make test-page   the service's page in a headless Chromium (Debian package chromium)"
	@echo "make test-slow   the tests that take longer than a minute each"
	@echo "make test-label  MONAI Label: its environment in $(LABEL_VENV), then its server and client with this bundle"
	@echo "make test-deploy MONAI Deploy: its environment in $(DEPLOY_VENV), then its operators with this bundle"
	@echo "make install-label, make install-deploy   only these environments"
	@echo "make test-nnunet nnU-Net v2 in an environment of its own (6 GB more) trains an epoch and is scored here"
	@echo "make fuzz        20 000 damaged inputs through the readers and commands; FUZZ=\"--count 500 --seed 1\" for others"
	@echo "make mutants     small faults, one at a time, that the closest tests must notice; MUTANTS=\"--match data/\" for some"
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

# MONAI Label and MONAI Deploy share no environment with each other: one needs pydicom 2, the other pydicom 3.
# sam2, which MONAI Label asks for, would fetch a torch of its own to be built with.
$(LABEL_VENV)/.installed: constraints-label.txt pyproject.toml
	test -x $(LABEL_VENV)/bin/python || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet -c constraints-label.txt torch torchvision setuptools wheel
	SAM2_BUILD_CUDA=0 $(LABEL_VENV)/bin/python -m pip install --quiet -c constraints-label.txt --no-build-isolation --no-deps sam2
	$(LABEL_VENV)/bin/python -m pip install --quiet -c constraints-label.txt -e '.[label]' pytest
	touch $@

$(DEPLOY_VENV)/.installed: constraints.txt pyproject.toml
	test -x $(DEPLOY_VENV)/bin/python || $(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[deploy]' pytest
	touch $@

install-label: $(LABEL_VENV)/.installed

install-deploy: $(DEPLOY_VENV)/.installed

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/python scripts/demo.py

test: install-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-page: install-dev
	$(BIN)/python -m pytest tests/apps/service/test_page.py

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

test-label: install-label
	$(LABEL_VENV)/bin/python -m pytest tests/apps/test_label_stock.py tests/apps/test_label_app.py

test-deploy: install-deploy
	$(DEPLOY_VENV)/bin/python -m pytest tests/apps/test_deploy_app.py

# nnU-Net pins packages of its own, so it never shares an environment with this project.
.venv-nnunet/.installed:
	test -x .venv-nnunet/bin/python || $(PYTHON) -m venv .venv-nnunet
	.venv-nnunet/bin/python -m pip install --quiet --disable-pip-version-check "nnunetv2==2.8.1" "torch==2.12.1"
	touch $@

test-nnunet: install-dev .venv-nnunet/.installed
	NNUNET_ENVIRONMENT=$(CURDIR)/.venv-nnunet $(BIN)/python -m pytest tests/apps/test_nnunet.py

mutants: install-dev
	$(BIN)/python -m tests.mutation $(MUTANTS)

FUZZ ?= --count 20000 --minutes 240
fuzz: install-dev
	$(BIN)/python -m tests.fuzz $(FUZZ)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

hooks: install-dev
	$(BIN)/pre-commit install

clean:
	rm -rf demo_output bundle/runs bundle/cache .pytest_cache .ruff_cache .mypy_cache
	find bundle scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
