# Two commands for a fresh machine: `make demo` and `make test`. Each makes what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help demo test lint types slow sanitize peers bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/demo  ## train on Shakespeare for two minutes, then show a sample and a loss curve
	$(BIN)/openxlstm train --data shakespeare --preset demo

test: lint types  ## lint, types and tests, as CI runs them
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/dev  ## style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev  ## type check
	$(BIN)/basedpyright

slow: $(VENV)/dev  ## the long tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow

sanitize: $(VENV)/dev  ## the native backend's tests under sanitizers, a part of `make slow`
	$(BIN)/python -m pytest -m slow tests/test_build.py -k sanitizer

peers: $(VENV)/dev $(PEERS)/ready  ## the same logits as NX-AI's and Hugging Face's own code
	OPENXLSTM_PEERS_PYTHON=$(PEERS)/bin/python $(BIN)/python -m pytest -m peers

bench: $(VENV)/dev  ## speed beside peers and the machine's limit, and memory (see benchmarks/README.md)
	$(BIN)/openxlstm bench
	$(BIN)/python benchmarks/memory.py

clean:  ## remove the environment and everything built; runs/ stays
	rm -rf $(VENV) $(PEERS) build dist src/*.egg-info .pytest_cache .hypothesis .ruff_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. torch and the build's own needs go first: an isolated build would fetch torch
# a second time.
$(VENV)/base: constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("openxlstm needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel
	@touch $@

$(VENV)/demo: $(VENV)/base pyproject.toml
	$(PIP) --no-build-isolation --editable '.[shakespeare]'
	@touch $@

$(VENV)/dev: $(VENV)/base pyproject.toml
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/demo

# The originals, in an environment of their own. mlstm-kernels is under the NXAI Community Licence:
# something to compare with, nothing that openxlstm uses.
$(PEERS)/ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt torch numpy safetensors
	$(PEERS)/bin/python -m pip install --quiet transformers==5.23.0 einops==0.8.2 omegaconf==2.4.0 dacite==1.9.2
	$(PEERS)/bin/python -m pip install --quiet --no-deps xlstm==2.0.6 mlstm-kernels==2.0.6
	@touch $@
