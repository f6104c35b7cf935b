# Everything here works in a fresh clone on a machine with Python 3.11 or newer (its venv module included) and make.
# PYTHON=python3.12 chooses the interpreter; ARGS="tests/unit -k route" goes to pytest,
# ARGS="proxies --rounds 1" to the benchmarks.
PYTHON ?= python3
VENV ?= .venv
# PyTorch converts models in tests; one release, so that conversions are the same everywhere. CONTRIBUTING.md says how to
# get its smaller CPU build on Linux.
TORCH ?= torch==2.13.0
# The folder of the lock; `make LOCK=` installs what pyproject.toml allows instead, where an index lacks a locked version.
LOCK ?= requirements
ARGS ?=
# What `make chaos` does: its seed, how long, how many requests a second, on which engine and model (a folder, or smollm2,
# which is fetched; without one the demo model) with which engine arguments (JSON), with which planted bugs.
SEED ?= 1
MINUTES ?= 5
RATE ?= 20
ENGINE ?= simulated
MODEL ?=
ENGINE_ARGS ?=
MUTANTS ?= all
# What `make fuzz` does: its seed, for how long, one kind alone, one case of it again. (SEED and MINUTES are chaos's too.)
KIND ?=
CASE ?=

BIN := $(VENV)/bin
comma := ,
CHAOS_MODEL := $(if $(filter smollm2,$(MODEL)),$(VENV)/smollm2,$(MODEL))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# $(call install,FILE,EXTRAS): this checkout with what it needs: from the lock, or as pyproject.toml has it.
install = $(if $(LOCK),\
  $(PIP) install --no-deps --require-hashes -r $(LOCK)/requirements-$1.txt -r $(LOCK)/requirements-build.txt \
  && $(PIP) install --no-deps --no-build-isolation -e .,\
  $(PIP) install -e '.[$2]')

.DEFAULT_GOAL := help
.PHONY: help up test test-long test-vllm check format bench chaos fuzz protos lock sbom

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

check: $(VENV)/.dev ## lint, format, types, layers, generated code, the lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python scripts/generate_protos.sh --check
	$(BIN)/python scripts/lock.py --check

format: $(VENV)/.dev ## format the code, mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## run the benchmarks, which install their peers; takes about an hour (ARGS="proxies --rounds 1")
	exec env PYTHON=$(BIN)/python $(BIN)/python scripts/contain.py scripts/bench.sh $(ARGS)

chaos: $(VENV)/.dev $(if $(filter vllm,$(ENGINE)),$(VENV)/.vllm) $(if $(filter smollm2,$(MODEL)),$(VENV)/smollm2) ## break the running system at random and check that nothing is lost (SEED, MINUTES, RATE, ENGINE, MODEL)
	$(if $(filter vllm,$(ENGINE)),@! grep SKIPPED $(VENV)/.vllm)
	exec env GRPC_VERBOSITY=NONE PYTHONPATH=tests SEED=$(SEED) MINUTES=$(MINUTES) RATE=$(RATE) ENGINE=$(ENGINE) \
	  MUTANTS=$(MUTANTS) MODEL=$(CHAOS_MODEL) ENGINE_ARGS='$(ENGINE_ARGS)' $(BIN)/python scripts/contain.py \
	  $(if $(filter vllm,$(ENGINE)),$(VENV)/vllm/env,$(VENV))/bin/python -m chaos_harness

fuzz: $(VENV)/.dev ## send the running system what nobody should, and check that it stands (SEED, MINUTES, KIND, CASE)
	exec env GRPC_VERBOSITY=NONE PYTHONPATH=tests SEED=$(SEED) MINUTES=$(MINUTES) KIND=$(KIND) CASE=$(CASE) \
	  $(BIN)/python scripts/contain.py $(BIN)/python -m fuzz

protos: $(VENV)/.dev ## generate src/headrace/rpc/v1 from protos/
	PYTHON=$(BIN)/python scripts/generate_protos.sh

lock: $(VENV)/.dev ## lock the newest versions that pyproject.toml allows, in requirements/; needs the index
	$(PIP) install 'uv>=0.9'
	$(BIN)/python scripts/lock.py --uv $(BIN)/uv

sbom: $(VENV)/.dev ## list what a CPU machine is given, as CycloneDX: dist/sbom.cdx.json
	PYTHON=$(BIN)/python scripts/sbom.sh dist/sbom.cdx.json

# Each stamp says what the environment has: what a user needs, what a developer needs, and what all tests need.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Headrace needs Python 3.11 or newer, and $(PYTHON) is %d.%d: say make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.up: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call install,scheduler-cpu,cpu)
	@touch $@

$(VENV)/.dev: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call install,dev,cpu$(comma)dev)
	@touch $@ $(VENV)/.up

$(VENV)/.test: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call install,test,cpu$(comma)convert$(comma)dev)
	$(PIP) install '$(TORCH)'
	@touch $@ $(VENV)/.dev $(VENV)/.up

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install -e '.[cpu,convert,dev,bench]'
	@touch $@

$(VENV)/smollm2: | $(VENV)/.test
	$(BIN)/python scripts/smollm2.py $@

# Where there is no vLLM for the machine, the stamp says so.
$(VENV)/.vllm: pyproject.toml scripts/vllm_env.sh | $(BIN)/python
	@scripts/vllm_env.sh $(VENV)/vllm $(BIN)/python >$@.new || test $$? = 3
	@mv $@.new $@
