# Two commands matter: `make demo` and `make test`. Everything they need, they install.
PYTHON ?= python3
VENV ?= .venv
# For machines whose default torch would be a CUDA build: make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements/constraints.txt
REQUIREMENTS := $(wildcard requirements/*.txt services/*/requirements.txt) pyproject.toml

.PHONY: demo test check up bench install install-dev sandbox toolchains clean

demo: install sandbox  ## the whole pipeline on a real model, through the HTTP API
	$(BIN)/privcode demo

test: install-dev sandbox toolchains  ## every tier that this machine can run
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

check: install-dev  ## lint, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install-dev sandbox  ## the figures of docs/benchmarks.md; each script prints ratios of one run
	$(BIN)/python benchmarks/wait_policy.py
	$(BIN)/python benchmarks/dp_step.py time
	$(BIN)/python benchmarks/dp_step.py memory
	$(BIN)/python benchmarks/memory_estimate.py
	$(BIN)/python benchmarks/cost_model.py

up: install sandbox  ## the embedded stack until Ctrl-C
	$(BIN)/privcode up

install: $(VENV)/.embedded
install-dev: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("PrivCode needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.embedded: $(REQUIREMENTS) | $(VENV)/bin/python
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch==2.13.0
	@$(PIP) --requirement requirements/embedded.txt
	@$(PIP) --no-deps --requirement requirements/data.txt
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.embedded requirements/dev.txt
	@$(PIP) --requirement requirements/dev.txt
	@touch $@

sandbox:
	@sh scripts/install-bubblewrap.sh

toolchains:
	@sh scripts/install-toolchains.sh

clean:
	rm -rf $(VENV)
