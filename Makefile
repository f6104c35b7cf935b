# Everything here works in a fresh clone on a machine with Python 3.11 or newer (its venv module included) and make.
# PYTHON=python3.12 chooses the interpreter; ARGS="tests/unit -k route" goes to pytest,
# ARGS="proxies --rounds 1" to the benchmarks.
PYTHON ?= python3
VENV ?= .venv
# PyTorch converts models in tests; one release, so that conversions are the same everywhere. CONTRIBUTING.md says how to
# get its smaller CPU build on Linux.
TORCH ?= torch==2.13.0
ARGS ?=
# What `make chaos` does: its seed, how long, how many requests a second, on which engine and model (a folder; without one
# the demo model), with which planted bugs.
SEED ?= 1
MINUTES ?= 5
RATE ?= 20
ENGINE ?= simulated
MODEL ?=
MUTANTS ?= all
# What `make fuzz` does: its seed, for how long, one kind alone, one case of it again. (SEED and MINUTES are chaos's too.)
KIND ?=
CASE ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help up test test-long test-vllm check format bench chaos fuzz protos

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.up ## install what is needed and start everything on this machine
	$(BIN)/headrace up

test: $(VENV)/.test ## install what is needed and run all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory test-vllm)

test-long: $(VENV)/.test ## the tests of faults that take long
	$(BIN)/python -m pytest -m long $(ARGS)

test-vllm: $(VENV)/.test $(VENV)/.vllm ## the tests with real vLLM, in an environment of their own
	@if grep -q SKIPPED $(VENV)/.vllm; then cat $(VENV)/.vllm; else \
	  $(VENV)/vllm/env/bin/python -m pytest tests/real_vllm $(ARGS); fi

check: $(VENV)/.dev ## lint, format, types, layers, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python scripts/generate_protos.sh --check

format: $(VENV)/.dev ## format the code, mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## run the benchmarks, which install their peers; takes about an hour (ARGS="proxies --rounds 1")
	PYTHON=$(BIN)/python scripts/bench.sh $(ARGS)

chaos: $(VENV)/.dev $(if $(filter vllm,$(ENGINE)),$(VENV)/.vllm) ## break the running system at random and check that nothing is lost (SEED, MINUTES, RATE, ENGINE)
	$(if $(filter vllm,$(ENGINE)),@! grep SKIPPED $(VENV)/.vllm)
	GRPC_VERBOSITY=NONE PYTHONPATH=tests SEED=$(SEED) MINUTES=$(MINUTES) RATE=$(RATE) ENGINE=$(ENGINE) MUTANTS=$(MUTANTS) \
	  MODEL=$(MODEL) $(if $(filter vllm,$(ENGINE)),$(VENV)/vllm/env,$(VENV))/bin/python -m chaos_harness

fuzz: $(VENV)/.dev ## send the running system what nobody should, and check that it stands (SEED, MINUTES, KIND, CASE)
	GRPC_VERBOSITY=NONE PYTHONPATH=tests SEED=$(SEED) MINUTES=$(MINUTES) KIND=$(KIND) CASE=$(CASE) $(BIN)/python -m fuzz

protos: $(VENV)/.dev ## generate src/headrace/rpc/v1 from protos/
	PYTHON=$(BIN)/python scripts/generate_protos.sh

# Each stamp says what the environment has: what a user needs, what a developer needs, and what all tests need.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Headrace needs Python 3.11 or newer, and $(PYTHON) is %d.%d: say make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.up: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[cpu,dev]'
	@touch $@ $(VENV)/.up

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(PIP) install '$(TORCH)'
	$(PIP) install -e '.[cpu,convert,dev]'
	@touch $@ $(VENV)/.dev $(VENV)/.up

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install -e '.[cpu,convert,dev,bench]'
	@touch $@

# Where there is no vLLM for the machine, the stamp says so.
$(VENV)/.vllm: pyproject.toml scripts/vllm_env.sh | $(BIN)/python
	@scripts/vllm_env.sh $(VENV)/vllm $(BIN)/python >$@.new || test $$? = 3
	@mv $@.new $@
