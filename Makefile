# Everything a contributor runs. `make` prints this help; every target sets up .venv by itself.

PYTHON ?= python3
TORCH       := 2.13.0
TORCHVISION := 0.28.0
VENV        := .venv
BIN         := $(VENV)/bin
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH        := $(VIRTUAL_ENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup build demo replicate replicate-digits test test-tch test-gpu fuzz sanitize stress \
	rust-demo lint format bench bench-gpu docs release-check clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(VENV)/.installed  ## Make .venv with torch and all tools

# Each step waits for what it is made from, so that a second `make` starts at once.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==$(TORCH) torchvision==$(TORCHVISION) --group dev
	touch $@

build: $(VENV)/.built  ## Build the extension in release mode and install the package, editable

SOURCES := $(shell find src -name '*.rs' -o -name '*.cpp')

$(VENV)/.built: $(VENV)/.installed Cargo.toml Cargo.lock build.rs $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[study]"
	touch $@

demo: build  ## Train on real digits with three losses; print a table, draw reliability diagrams
	$(BIN)/lr-relax compare --dataset digits

replicate: build  ## Train the paper's study on Fashion-MNIST, 6 to 17 core-hours per seed; resumes
	$(BIN)/python misc/replicate.py fashion_mnist

replicate-digits: build  ## Train the paper's study on scikit-learn's digits, ten seeds; resumes
	$(BIN)/python misc/replicate.py digits

# Two workers that take over each other's waiting tests; tests/conftest.py gives each one thread.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: build  ## Test the kernels, the package and the stub
	cargo test --quiet --no-default-features
	$(PYTEST)
	$(BIN)/python -m mypy.stubtest lr_relax._native

# The build with pyo3-tch, beside the default one: what Python finds first when this folder is on its path.
# Cargo has a folder of its own for it, so that both can be built at once.
TCH := target/tch
TCH_CARGO := --release --features pyo3-tch --target-dir target/pyo3-tch
NEEDS_TORCH = @$(BIN)/python -c 'import torch; assert torch.__version__.split("+")[0] == "$(TORCH)"' \
	2> /dev/null || { echo "The feature tch needs torch $(TORCH) in $(VENV): make clean setup" >&2; exit 1; }

$(TCH)/.built: $(VENV)/.installed Cargo.toml Cargo.lock build.rs $(SOURCES) $(shell find -L python -name '*.py*' -o -name '*.json')
	$(NEEDS_TORCH)
	rm -rf $(TCH)
	$(BIN)/maturin build --quiet $(TCH_CARGO) --auditwheel skip --out $(TCH)/wheel
	$(BIN)/python -m pip install --quiet --no-deps --target $(TCH) $(TCH)/wheel/*.whl
	touch $@

# The Python code is the same on both builds: what only exercises that code runs in `make test` alone.
TCH_TESTS := tests/python tests/replication/test_rust.py $(addprefix --ignore=tests/python/, \
	study test_docs.py test_docstrings.py test_integrations.py test_plots.py test_triton.py test_formulas.py \
	test_distributed.py metrics/test_device.py)

test-tch: build $(TCH)/.built  ## Test the crate with tch, and the package on its build with pyo3-tch
	cargo test --quiet --no-default-features --features tch --lib --test tensors
	cargo test --quiet --no-default-features --features tch --doc
	PYTHONPATH=$(abspath $(TCH)) $(PYTEST) $(TCH_TESTS)
	PYTHONPATH=$(abspath $(TCH)) $(BIN)/python -m mypy.stubtest lr_relax._native

test-gpu: build  ## Compare the Triton kernels with those of the CPU; needs a GPU
	$(BIN)/python misc/gpu.py --only tests

SECONDS := 60

fuzz: build  ## Compare random calls with references of higher precision, for SECONDS=60
	$(BIN)/python misc/fuzz --seconds $(SECONDS)

sanitize: build  ## Test the native code under AddressSanitizer, Miri and valgrind; needs a nightly Rust
	misc/sanitize.sh $(SECONDS)

stress: build  ## Threads, processes, interrupts, memory, kills and full disks, about ten minutes
	$(BIN)/python misc/stress.py

rust-demo: build  ## Train on real digits in Rust alone, with tch
	$(NEEDS_TORCH)
	$(BIN)/python misc/examples/export_digits.py target/digits 10
	cargo run --quiet --no-default-features --features tch --example train_digits -- target/digits/*.npz

lint: build  ## Check formatting, lints, types and licenses
	cargo fmt --check
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --no-default-features --features tch -- -D warnings
	cargo clippy --quiet $(TCH_CARGO) -- -D warnings
	$(BIN)/python misc/licenses.py --check
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format:  ## Format all code
	cargo fmt
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: build $(TCH)/.built  ## Measure speed and memory against PyTorch and other packages
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python misc/benchmarks/run.py
	$(BIN)/python misc/benchmarks/tables.py

bench-gpu: build  ## Measure the Triton kernels against PyTorch; needs a GPU
	$(BIN)/python misc/gpu.py --only bench

docs: build  ## Build the documentation site in target/docs; warnings are errors
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -d target/doctrees docs target/docs
	@echo "target/docs/index.html"

# PYTHONS names the executables to install into; without it, all that are found.
release-check: $(VENV)/.installed  ## Build what a release has, as its workflow does; check and install it
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/python misc/release/build.py --pythons $(PYTHONS)

clean:  ## Remove what was built
	rm -rf target dist $(VENV) python/lr_relax/_native*.so
