# The book: set up, execute, build, test. `make book` and `make test` are all that a reader needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CPU-only wheels save several gigabytes: make book TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
FORCE ?=
PORT ?= 8000
# How many fresh processes measure each speed: five give the prediction intervals of the published site.
PROCESSES ?= 2
export QHELPERS_PROCESSES := $(PROCESSES)

.PHONY: book test test-arm-like remeasure repeat package lite-lane serve lint clean notebooks

book: notebooks ## set up, execute every notebook, build _build/html
	$(BIN)/python -m tools.build_site

notebooks: $(VENV)/installed ## the step that book and test share
	$(BIN)/python -m tools.run_notebooks $(if $(FORCE),--force)

test: $(VENV)/installed ## unit tests, doctests, structure tests, then every notebook
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not alone" --doctest-modules tests qhelpers
	$(BIN)/python -m pytest -m alone tests
	$(BIN)/python -m tools.run_notebooks $(if $(FORCE),--force)

test-arm-like: $(VENV)/installed ## every chapter where PyTorch has no x86 engine, as on ARM and macOS
	$(BIN)/python -m tools.check_arm_like

remeasure: $(VENV)/installed ## time everything once more, in fresh kernels: which ratios leave their printed intervals?
	$(BIN)/python -m tools.remeasure

repeat: notebooks ## execute the whole book again, by jupyter-book alone, and compare what both runs measured
	$(BIN)/python -m tools.check_repeat --all

package: $(VENV)/installed ## build the wheel of qhelpers into build/package
	rm -rf build/lib build/package # setuptools would pack what it finds of an earlier build
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/package .

lite-lane: ## the recipe's road to a phone, on the last PyTorch that has all of it (torch 2.12.1)
	$(PYTHON) -m venv .venv-lite
	.venv-lite/bin/pip install --quiet -r experiments/lite-requirements.txt
	.venv-lite/bin/python -m experiments.lite_interpreter

serve: book ## look at the book at http://localhost:8000
	$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 $(PORT)

lint: $(VENV)/installed ## formatting, lint, types, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

clean: ## remove what was built, but not the environment
	rm -rf build _build

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make book PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) $(shell grep -E '^(torch|torchvision)==' requirements.txt))
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip check
	touch $@
