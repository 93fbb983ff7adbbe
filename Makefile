# make demo   environment, then the bundled model about sounds that PAL makes; then a small one is trained and asked about files it never heard
# make bench  what a CPU can measure in minutes; docs/efficiency.md has the commands for a GPU
# make test   environment, then the tests: all that a fresh machine with Python 3.11+ and make needs
#
#   PYTHON=python3.12      the Python that makes the environment (default: the first of 3.11 or newer that is found)
#   TORCH_INDEX=URL        where the torch wheel comes from, for example an index of wheels for one CUDA version
#   WORKERS=2              processes of the tests

.PHONY: help setup demo ask-demo train-demo test check format bench clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
TORCH_INDEX ?=
WORKERS ?= 2
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
    "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$python"; break; }; done)
FAIL = { echo "make: error: $(1)" >&2; exit 1; }

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile
	@echo "targets: setup demo train-demo test check format bench clean"

setup: $(READY)

# The stamp is written last: an interrupted setup is repeated, a finished one is not, and a changed pin renews it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || $(call FAIL,no Python 3.11 or newer found. Install one (Debian and Ubuntu: apt install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.11)
	@command -v "$(PYTHON)" >/dev/null || $(call FAIL,PYTHON=$(PYTHON) is not a program)
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || $(call FAIL,$(PYTHON) is $$("$(PYTHON)" -V 2>&1 | head -n 1): PAL needs Python 3.11 or newer)
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || $(call FAIL,$(PYTHON) has no venv. Debian and Ubuntu: apt install python3-venv)
	@if test -e $(VENV) && ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "$(VENV) is there but does not work: it is made again"; "$(PYTHON)" -m venv --clear $(VENV); fi
	@test -e $(VENV) || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[eval,plot,train,dev]'
	@touch $(READY)

demo: setup ask-demo train-demo

ask-demo: $(READY)
	$(BIN)/python examples/ask_bundled.py

train-demo: $(READY)
	$(BIN)/pal train recipes/quickstart.yaml --out runs/quickstart --resume
	$(BIN)/python examples/ask_quickstart.py

# One torch thread for each worker: two workers on two cores are faster than one with two threads.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=10

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python benchmarks/frame_cache.py
	$(BIN)/pal bench train --llm tiny-llama --encoder tiny-frames --audio-tokens 64,256 --batch 2 --out runs/bench-tiny

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
