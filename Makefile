# One command per habit. `make demo` and `make test` work on a fresh machine: they create .venv and install into it.
# TORCH=cpu or TORCH=cuda says which build of torch; unnamed, one that is there stays, and a new one is for this machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := hybrid profiler placement
TORCH ?= $(or $(patsubst $(VENV)/.torch-%,%,$(wildcard $(VENV)/.torch-*)),auto)
# Tests run in so many processes, those of a file in one; torch's threads would spin on the cores of the others.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
NATIVE := CMakeLists.txt $(wildcard hybrid/ops/native/*)

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-all slow bench bench-peers format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## create .venv and install the project into it, editable

$(VENV)/bin/python:
	@scripts/requirements.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch goes first and bounded: a range that admits a newer build can bring gigabytes of CUDA along.
$(VENV)/.torch-$(TORCH): scripts/install_torch.sh | $(VENV)/bin/python
	scripts/install_torch.sh $(BIN)/python $(TORCH)
	rm -f $(VENV)/.torch-*
	touch $@

$(VENV)/.installed: pyproject.toml $(NATIVE) | $(VENV)/.torch-$(TORCH)
	@scripts/requirements.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## run the main job on the shipped model: complete code, on one unit and split over two, and compare
	$(BIN)/hybrid run demo "def parse_args(" -n 64
	$(BIN)/hybrid plan demo --vram 7MiB
	$(BIN)/hybrid run demo "class Stack:" -n 64 --temperature 0.7 --seed 1 --plan default --second-device cpu
	$(BIN)/hybrid compare demo --text-tokens 2000
	$(BIN)/hybrid compare demo --text-tokens 2000 --vram 7MiB --second-device cpu

check: install  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check  ## check, and every test that is neither slow nor for a GPU
	$(PYTEST) -m "not slow and not gpu"

slow: install  ## only the slow tests
	$(PYTEST) -m "slow and not gpu"

test-all: check  ## every test that needs no GPU, and those of the native operators under sanitizers
	$(PYTEST) -m "not gpu"
	VENV=$(VENV) scripts/sanitize.sh

bench: install  ## time the operators against torch and against the memory's bandwidth
	$(BIN)/python scripts/bench_operators.py --json build/bench-operators.json

bench-peers: install  ## the engine against llama.cpp on a 1B model; PEER_PYTHON names an interpreter that has llama_cpp
	test -n "$(PEER_PYTHON)" || $(BIN)/python -c 'import llama_cpp' || $(BIN)/python -m pip install --quiet llama-cpp-python
	$(BIN)/python scripts/bench_peers.py --peer-python $(or $(PEER_PYTHON),$(BIN)/python)

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
