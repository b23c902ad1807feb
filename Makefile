# Everything a contributor runs. `make` prints this help; every target sets up .venv by itself.

PYTHON ?= python3
TORCH       := 2.13.0
TORCHVISION := 0.28.0
VENV        := .venv
BIN         := $(VENV)/bin
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH        := $(VIRTUAL_ENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint format bench clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(VENV)/.installed  ## Make .venv with torch and all tools

# Each step waits for what it is made from, so that a second `make` starts at once.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==$(TORCH) torchvision==$(TORCHVISION) --group dev
	touch $@

build: $(VENV)/.built  ## Build the extension in release mode and install the package, editable

$(VENV)/.built: $(VENV)/.installed Cargo.toml Cargo.lock $(shell find src -name '*.rs')
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[study]"
	touch $@

demo: build  ## Train on real digits with three losses; print a table, draw reliability diagrams
	$(BIN)/lr-relax compare --dataset digits

test: build  ## Test the kernels, the package and the stub
	cargo test --quiet --no-default-features
	$(BIN)/python -m pytest
	$(BIN)/python -m mypy.stubtest lr_relax._native

lint: build  ## Check formatting, lints and types
	cargo fmt --check
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy --quiet --all-targets -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format:  ## Format all code
	cargo fmt
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: build  ## Measure speed and memory against PyTorch and other packages
	$(BIN)/python misc/benchmarks/run.py

clean:  ## Remove what was built
	rm -rf target $(VENV) python/lr_relax/_native*.so
