# These commands work on a fresh machine with Python 3.10 or newer, pip and make:
#   make demo        install into .venv and run the demo
#   make test        install into .venv and run the whole test suite on all cores
#   make test-fast   run only the tests that take a few seconds at most
#   make docs        write the generated parts of the documentation, and build the site: site/index.html
#   make wheels      build the sdist and a wheel for every platform into dist/
#   make wheels-check   check these wheels, and run those that this machine can run
#   make bench       time the scan, the network, epochs, exported files and prediction on this CPU;
#                    MAMBA_MIS_INSTRUCTION_SET=avx2 (or baseline, avx512) selects an instruction set instead of the best
#   make bench-gpu   time the scan and the network on a GPU, and measure memory
#   make lint        run ruff and mypy, check import contracts, English, and whether generated documentation is up to date
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py constraints.txt $(shell find nnunet_mamba_mis csrc -name '*.py' -o -path 'csrc/*')

# all tests of a module run in one process, which trains their models only once
WORKERS := -n auto --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-fast docs wheels wheels-check bench bench-gpu lint format clean

demo: $(VENV)/.installed
	$(BIN)/mamba_mis demo

# `pytest` instead of `python -m pytest`: tests import the installed wheel, not the source tree
test: $(VENV)/.installed-test
	$(BIN)/pytest $(WORKERS) --durations=10

test-fast: $(VENV)/.installed-test
	$(BIN)/pytest $(WORKERS) -m "not slow"

docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/feature_tables.py
	$(BIN)/python scripts/command_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheels: $(VENV)/.installed-wheels
	rm -rf build dist
	$(BIN)/python scripts/build_wheels.py dist

# PYTHONS=... names further interpreters that have torch
wheels-check: $(VENV)/.installed-wheels
	$(BIN)/pytest -rs --durations=5 tests/wheels --wheels dist --pythons $(abspath $(BIN)/python) $(PYTHONS)

bench: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt '.[bench]'
	$(BIN)/python performance/scan.py
	$(BIN)/python performance/network.py
	$(BIN)/python performance/threads.py
	$(BIN)/python performance/where_time_goes.py
	$(BIN)/python performance/epoch.py
	$(BIN)/python performance/exports.py
	$(BIN)/python performance/prediction.py
	$(BIN)/python performance/bounds.py

bench-gpu: $(VENV)/.installed
	$(BIN)/python performance/scan_gpu.py
	$(BIN)/python performance/network_gpu.py
	$(BIN)/python performance/memory.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/prose.py --code
	$(BIN)/python scripts/feature_tables.py --check
	$(BIN)/python scripts/command_reference.py --check

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: run make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo "Installing nnU-Net, torch and this package into $(VENV): about 6 GB, a few minutes"
	rm -rf build  # setuptools would include files of an earlier build
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	rm -rf build
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt '.[docs]'
	@touch $@

$(VENV)/.installed-wheels: $(VENV)/.installed-test
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt '.[wheels]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info mamba_mis_demo site
